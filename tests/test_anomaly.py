"""Anomaly detection in images: residuals and losses by hand, scores, several seeds at once, and the whole script."""

import csv
import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from experiments import anomaly as script
from jaxgan import checkpoint, critic, data
from jaxgan.anomaly import bigan, calibration, detector, fanogan, ganomaly, joint, parts
from jaxgan.errors import InputError
from jaxgan.game import Game, Move, Player
from jaxgan.image_detector import ImageDetector
from jaxgan.several import each, several
from tests.runs import compile_quickly, here, snapshot  # noqa: F401
from tests.weights import begun

SHAPE = (8, 8, 1)
METHODS = {"joint": joint, "fanogan": fanogan, "bigan": bigan, "ganomaly": ganomaly}


def batch(n=6, seed=0):
    images = jax.random.uniform(jax.random.key(seed), (n, *SHAPE), minval=-1.0, maxval=1.0)
    return {"image": images, "label": jnp.zeros(n, jnp.int32), "row": jnp.arange(n)}


@pytest.fixture(scope="module")
def games():
    """{method: (networks, game, state)} after the game has begun; fanogan's is that of its encoder."""
    found = {}
    for name, method in METHODS.items():
        networks = method.networks(SHAPE, 4, 3, jnp.float32)
        game = method.game(networks, parts.Plan(100.0))
        found[name] = networks, game, begun(game, batch())
    return found


def loss_of(game, name, state, key=3):
    """(value, metrics, gradients) of a move, by its title."""
    move = next(move for move in game.moves if move.title == name)
    params = {player: state.players[player].params for player in move.movers}
    gradient = jax.jit(jax.value_and_grad(move.loss, has_aux=True))
    (value, (metrics, _)), grads = gradient(params, state, batch(), jax.random.key(key))
    return float(value), {k: float(v) for k, v in metrics.items()}, grads


def test_blur_is_that_of_scipy():
    x = np.random.default_rng(0).normal(size=(2, 30, 36, 2))
    sigma = 30 / 28
    expected = gaussian_filter(x, (0, sigma, sigma, 0), mode="constant", radius=(0, 3, 3, 0))
    np.testing.assert_allclose(parts.blurred(jnp.asarray(x, jnp.float32)), expected, atol=1e-5)


def test_prior_is_zero_at_mean_zero_and_covariance_one():
    z = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert joint.prior(jnp.asarray(z)) == pytest.approx(0, abs=1e-6)
    # Mean (2, 0): 4/2. Second axis of variance 9: (9 - 1)²/2.
    assert joint.prior(jnp.asarray(z * [1, 3] + [2, 0])) == pytest.approx(2 + 32, rel=1e-6)


def test_residuals_are_those_of_the_papers(games):
    """The formulas in float64, of what the networks put out."""
    x = batch()["image"]
    for name, method in METHODS.items():
        networks, _, state = games[name]
        weights = parts.of(state)

        @jax.jit
        def outputs(x, method=method, networks=networks, weights=weights, bigan=name == "bigan"):
            apply = {player: functools.partial(module.apply, weights[player]) for player, module in networks.items()}
            z = apply["enc"](x)
            again = apply["gen"](z)
            inputs = (z,) if bigan else ()
            seen = [critic.seen_by_last(networks["disc"], weights["disc"], y, *inputs)[1] for y in (x, again)]
            second = apply.get("again", apply["enc"])(again)
            out = {"z": z, "again": again, "real": seen[0], "fake": seen[1], "second": second}
            return method.residuals(networks, weights, x), out

        found, out = jax.device_get(outputs(x))
        out = {key: np.float64(value) for key, value in out.items()}
        np.testing.assert_allclose(found.images, out["again"], atol=1e-6)
        difference, feature = np.asarray(x, np.float64) - out["again"], (out["real"] - out["fake"]).reshape(len(x), -1)
        blurred = gaussian_filter(difference, (0, 0.5, 0.5, 0), mode="constant", radius=(0, 2, 2, 0))
        expected = {
            "ganomaly": {"code": np.abs(out["z"] - out["second"]).mean(1)},
            "bigan": {"egbad": 0.9 * np.abs(difference).sum((1, 2, 3)) + 0.1 * np.abs(feature).sum(1)},
            "fanogan": {"izi_f": (difference**2).mean((1, 2, 3)) + (feature**2).mean(1)},
            "joint": {
                "image": (blurred**2).mean((1, 2, 3)),
                "feature": (feature**2).mean(1),
                "cycle": ((out["second"] - out["z"]) ** 2).mean(1),
                "latent": (out["z"] ** 2).mean(1),
            },
        }[name]
        assert found.scores.keys() == expected.keys()
        for residual, values in expected.items():
            np.testing.assert_allclose(
                found.scores[residual], values, rtol=2e-3, atol=1e-6, err_msg=f"{name} {residual}"
            )


def test_egbad_and_ganomaly_play_the_games_of_their_papers(games):
    _, game, state = games["bigan"]
    value, metrics, grads = loss_of(game, "disc", state)
    other, _, other_grads = loss_of(game, "gen", state)
    assert set(grads) == {"disc"} and set(other_grads) == {"gen", "enc"}
    # Both see the same logits r, f under one key: softplus(-r) + softplus(f), and softplus(r) + softplus(-f), whose
    # difference is r - f.
    assert other - value == pytest.approx(metrics["real"] - metrics["fake"], rel=1e-4, abs=1e-5)

    _, game, state = games["ganomaly"]
    value, terms, grads = loss_of(game, "gen", state)
    assert value == pytest.approx(terms["adversarial"] + 50 * terms["image"] + terms["code"], rel=1e-6)
    assert set(grads) == {"enc", "gen", "again"}
    assert all(
        np.abs(np.concatenate([np.ravel(g) for g in jax.tree.leaves(tree)])).max() > 0 for tree in grads.values()
    )


def test_fanogan_trains_its_encoder_alone(games):
    _, game, state = games["fanogan"]
    draws = jax.tree.map(lambda x: x[None], batch())
    after, _ = jax.jit(game.step)(state, draws)
    for name in ("gen", "disc"):
        assert all(
            (a == b).all()
            for a, b in zip(
                jax.tree.leaves((state.players[name].params, state.players[name].variables)),
                jax.tree.leaves((after.players[name].params, after.players[name].variables)),
                strict=True,
            )
        )
    moved = [
        (a != b).any() for a, b in zip(*(jax.tree.leaves(s.players["enc"].params) for s in (state, after)), strict=True)
    ]
    assert all(moved)


def noisy_game():
    """One player whose loss draws noise from its key."""

    def loss(params, state, batch, key):
        noise = jax.random.normal(key, params["one"].shape)
        return jnp.sum((params["one"] - noise) ** 2), ({"noise": noise.sum()}, {})

    init = lambda key, batch: (jax.random.normal(key, (3,)), {})  # noqa: E731
    return Game({"one": Player(init, optax.sgd(0.1))}, (Move("one", loss, times=2),))


def test_several_plays_are_those_of_one_by_one():
    one, many = noisy_game(), several(noisy_game(), 3)
    draws = jax.tree.map(lambda x: jnp.stack([x, x]), batch())
    state = many.init(jax.random.key(5), batch())
    after, metrics = jax.jit(many.step)(state, draws)
    losses, step = [], jax.jit(one.step)
    for i, player in enumerate(each(state.players["one"], 3)):
        alone = one.init(jax.random.key(0), batch())
        alone = alone.replace(key=jax.random.fold_in(state.key, i), players={"one": player})
        done, played = step(alone, draws)
        np.testing.assert_allclose(after.players["one"].params[i], done.players["one"].params, rtol=1e-6)
        losses.append(float(played["one/loss"]))
    assert float(metrics["one/loss"]) == pytest.approx(np.mean(losses), rel=1e-6)
    assert after.step == 1 and after.images == 6 and after.step.shape == ()
    first = state.players["one"].params
    assert len({tuple(row) for row in np.asarray(first)}) == 3  # weights of their own
    assert several(one, 1) is one


def test_scores_are_standardised_and_p_values_count(games):
    networks, _, state = games["joint"]
    weights = [parts.of(state), jax.tree.map(lambda x: 1.1 * x, parts.of(state))]
    rng = np.random.default_rng(0)
    seen, held, new = (rng.integers(0, 256, (n, *SHAPE), dtype=np.uint8) for n in (40, 39, 300))
    found = detector.Detector.of(joint, networks, weights, seen, held)
    scores = found.look(new).scores
    residuals = jax.jit(lambda w, x: joint.residuals(networks, w, x).scores)
    for i, w in enumerate(weights):
        raw, base = (residuals(w, jnp.asarray(x / 127.5 - 1, jnp.float32)) for x in (new, seen))
        logs = {k: np.log(np.asarray(v, np.float64)) for k, v in base.items()}
        expected = sum((np.log(np.asarray(raw[k], np.float64)) - v.mean()) / v.std() for k, v in logs.items())
        np.testing.assert_allclose(scores[i], expected, rtol=1e-3, atol=1e-3)
    kept = np.sort(found.look(held).scores.mean(0))
    np.testing.assert_allclose(found.calibration.held, kept)
    assert (
        found.calibration.threshold(0.05) == kept[37] and found.calibration.threshold(0.5) == kept[19]
    )  # ceil(40 (1 - rate)) = 38th, 20th
    values = np.array([kept[0] - 1, kept[38], kept[38] + 1])
    np.testing.assert_allclose(found.calibration.p_values(values), [1.0, 2 / 40, 1 / 40])


def test_what_is_no_number_is_no_score():
    known = calibration.Calibration({}, {}).keeping(np.arange(5.0))
    assert known.p_values(np.array([np.inf])) == pytest.approx(1 / 6)
    with pytest.raises(InputError, match="the score of example 2 is nan, the first of 1 such; expected a number"):
        known.p_values(np.array([1.0, np.inf, np.nan]))
    with pytest.raises(InputError, match="the score of the held-out example 1 is inf"):
        known.keeping(np.array([1.0, np.inf]))
    with pytest.raises(InputError, match="the residual 'row' of the normal example 1 is inf"):
        calibration.Calibration.of({"row": np.array([[1.0, 2.0], [1.0, np.inf]])})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run on one digit."""
    run = tmp_path_factory.mktemp("anomaly") / "run"
    script.main(script.Config(workdir=str(run), normal="0", steps=200, width=8, tensorboard=False))
    return run


def test_digits_and_their_csv(trained, tmp_path, capfd):
    table, maps = tmp_path / "scores.csv", tmp_path / "maps"
    arguments = ("--mode=score", f"--workdir={trained}", f"--out={table}", f"--heatmaps={maps}", "--num_heatmaps=3")
    code, out, err = here(capfd, *arguments, script=script)
    assert code == 0, err
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 1797 and [row["image"] for row in rows[:2]] == ["0", "1"]
    score, zero = np.array([float(r["score"]) for r in rows]), np.array([r["label"] == "0" for r in rows])
    assert np.mean(score[zero][:, None] < score[~zero]) > 0.97  # AUROC, by its definition
    flagged = np.array([r["anomalous"] == "1" for r in rows])
    assert flagged[zero].mean() < 0.15 and flagged[~zero].mean() > 0.6
    assert out.startswith(f"{flagged.sum():,} of 1,797 images score above")
    assert "normal ones do, by the highest of only 28 held out, 39 would be surer; wrote" in out
    pictures = sorted(p.name for p in maps.iterdir())
    best = np.argsort(-score, kind="stable")[:3]
    assert pictures == [f"{i:04d}-{row:06d}.png" for i, row in enumerate(best)] + ["sheet.png"]
    assert np.asarray(Image.open(maps / pictures[0])).shape[2] == 3
    before = snapshot(tmp_path)
    code, _, err = here(capfd, *arguments, script=script)
    assert code == 2 and "exists" in err and snapshot(tmp_path) == before


def test_python_and_the_command_line_score_images_the_same(trained):
    digits = data.load("digits")
    rows = np.arange(digits.num_examples)
    normal = digits.read(rows[(rows % 5 > 0) & (data.labels(digits) == 0)])["image"]
    images = digits.read(np.arange(50))["image"]
    found = ImageDetector(steps=200, width=8).fit(normal)
    np.testing.assert_array_equal(found.score(images), ImageDetector.load(trained).score(images[..., 0]))
    assert found.trained.calibration == detector.load(trained).calibration
    np.testing.assert_array_equal(
        found.predict(images, 0.2), found.score(images) > found.trained.calibration.threshold(0.2)
    )
    with pytest.raises(InputError, match=r"not fitted; call fit\(images\)"):
        ImageDetector().score(images)


def test_heat_maps_are_named_by_file_and_images_shaped_as_in_the_fit(trained, tmp_path, capfd):
    digits = data.load("digits").read(np.arange(4))["image"][..., 0]
    for name, pixels in zip(("bad/img 3", "bad/été", "good/1", "good/2"), digits, strict=True):
        (tmp_path / f"new/{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((16, 16)).save(tmp_path / f"new/{name}.png")
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    stored = json.loads((run / "config.json").read_text())
    stored["config"] |= {"size": "8"}  # it had been fitted with --size=8
    (run / "config.json").write_text(json.dumps(stored))
    argv = (f"--workdir={run}", f"--dataset=folder:{tmp_path}/new", f"--out={tmp_path}/s.csv")
    code, _, err = here(capfd, "--mode=score", *argv, f"--heatmaps={tmp_path}/maps", script=script)
    assert code == 0, err
    pictures = sorted(p.name.partition("-")[2] for p in (tmp_path / "maps").iterdir())
    assert pictures == ["", "000000-bad_img_3.png", "000001-bad_été.png", "000002-good_1.png", "000003-good_2.png"]
    # A flag that is given wins over the fit's.
    code, _, err = here(capfd, "--mode=score", *argv, "--size=16", "--overwrite", script=script)
    assert code == 2 and "images (16, 16, 1), but this detector looks at 8x8x1" in err


def test_started_again_it_measures_and_trains_no_more(trained, capfd):
    before = (trained / "anomaly.json").read_text()
    arguments = ("--normal=0", "--steps=200", "--width=8", "--notensorboard", f"--workdir={trained}")
    code, out, _ = here(capfd, *arguments, script=script)
    assert code == 0 and "already trained" in out and "AUROC" in out
    assert (trained / "anomaly.json").read_text() == before


def test_seeds_at_once_with_a_gan_before(tmp_path, capfd):
    """f-AnoGAN, two seeds in one program, which are loaded and scored as two."""
    arguments = ("--method=fanogan", "--normal=1", "--seeds=2", "--gan_steps=2", "--steps=2", "--steps_per_call=2")
    sizes = ("--width=4", "--latent=4", "--batch_size=8", "--notensorboard", f"--workdir={tmp_path}/run")
    code, _, err = here(capfd, *arguments, *sizes, script=script)
    assert code == 0, err
    found = detector.load(tmp_path / "run")
    images = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    scores = found.look(images).scores
    assert scores.shape == (2, 5) and not np.allclose(scores[0], scores[1])
    kept = [jax.tree.leaves(w["gen"]) for w in found.weights]
    assert any((a != b).any() for a, b in zip(*kept, strict=True))  # each encoder has the GAN of its own seed
    gan = checkpoint.read(tmp_path / "run/gan/checkpoints")["players"]["gen"]
    stacked = jax.tree.leaves(gan["ema"])
    assert all(
        (a == s[1]).all() for a, s in zip(jax.tree.leaves(found.weights[1]["gen"]["params"]), stacked, strict=True)
    )


def test_of_all_classes_each_has_the_run_that_it_has_alone(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(script, "train", lambda config, *rest: seen.append(config))
    monkeypatch.setattr(script, "measure", lambda task, *rest: {"class": task.name, "auroc": 1.0, "text": ""})
    script.fit(script.Config(workdir=str(tmp_path)))
    script.fit(script.Config(workdir=f"{tmp_path}/normal-2", normal="2"))
    assert len(seen) == 11 and seen[2] == seen[10]


def test_classes_of_another_split_are_told_by_name(tmp_path):
    """Folders as MVTec AD's: training images of one class, and test images whose classes lie in another order."""
    digits = data.load("digits").read(np.arange(70))["image"][..., 0]
    for i, pixels in enumerate(digits):
        place = f"train/good/{i}.png" if i < 40 else f"test/{('good', 'bent', 'torn')[i % 3]}/{i}.png"
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / place)
    config = script.Config(dataset=f"folder:{tmp_path}", test_split="test", normal="good")
    (task,) = script.tasks(config)
    assert task.train.num_examples + task.held.num_examples == 40 and task.test.class_names == ("bent", "good", "torn")
    np.testing.assert_array_equal(task.anomalous, data.labels(task.test) != 1)
    with pytest.raises(InputError, match="unknown class --normal 'all'; choices: bent, good, torn"):
        script.tasks(dataclasses.replace(config, normal="all"))
    (tmp_path / "train/odd").mkdir()
    Image.fromarray(digits[0]).save(tmp_path / "train/odd/0.png")  # now good is 0 in one split and 1 in the other
    (task,) = script.tasks(config)
    np.testing.assert_array_equal(task.anomalous, data.labels(task.test) != 1)
    with pytest.raises(InputError, match="all 30 test images are anomalous, where the class odd is normal"):
        script.tasks(dataclasses.replace(config, normal="odd"))


def test_wrong_inputs_write_nothing(trained, tmp_path, capfd):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "one.npz", image=image, label=np.zeros(40, np.int64))
    np.savez(tmp_path / "few.npz", image=image[:5])
    np.savez(tmp_path / "large.npz", image=np.zeros((40, 9, 9), np.uint8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "d.csv").mkdir()
    (tmp_path / "all/normal-3").mkdir(parents=True)
    for i, size in enumerate((8, 9)):
        Image.new("L", (size, size)).save(tmp_path / "mixed" / f"{i}.png")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps({"config": {"steps": 3}}))
    fit, score = f"--workdir={tmp_path}/new", "--mode=score"
    out = f"--out={tmp_path}/s.csv"
    cases = {
        (fit, "--normal=ten"): "unknown class --normal 'ten'",
        (fit, f"--dataset=npz:{tmp_path}/one.npz"): "one class only",
        (fit, f"--dataset=npz:{tmp_path}/few.npz"): "5 normal images: expected 20 or more",
        (fit, f"--dataset=npz:{tmp_path}/few.npz", "--normal=3"): "has no classes; expected --normal=",
        (fit, f"--dataset=folder:{tmp_path}/empty"): "no images in",
        (fit, f"--dataset=folder:{tmp_path}/mixed"): "--size",
        (
            fit,
            "--normal=",
            "--test_split=test",
        ): "--test_split=test does nothing without --normal, the class that is normal",
        (fit, "--loss=hinge"): "--loss=hinge does nothing here: networks and losses are those of --method",
        (fit, "--model=mlp"): "--model=mlp does nothing here",
        (fit, "--eval_every=5"): "--eval_every=5 does nothing here: nothing is evaluated on the way",
        (fit, "--eval_samples=5"): "--eval_samples=5 does nothing here",
        (fit, "--method=jont"): "did you mean 'joint'",
        (fit, "--seeds=0"): "--seeds=0: expected at least 1",
        (fit, "--out=a.csv"): "is for --mode=score",
        (fit, "--method=fanogan", f"--gan_steps={10**11}"): "--gan_steps=100000000000: expected at most",
        (f"--workdir={tmp_path}/other",): "holds a run of another config",
        (score, f"--workdir={tmp_path}/other", out): "is no finished anomaly detector",
        (score, f"--workdir={tmp_path}/none", out): "is not a run",
        (score, f"--workdir={tmp_path}/all", out): f"as in --workdir={tmp_path}/all/normal-3",
        (score, out): "--workdir is empty",
        **{
            (
                score,
                out,
                f"--workdir={trained}",
                flag,
            ): f"{flag} does nothing in --mode=score, which takes what was fitted"
            for flag in ("--steps=7", "--normal=3", "--method=bigan", "--seed=4", "--mirror", "--gan_steps=3")
        },
        (score, out, f"--workdir={trained}", "--num_heatmaps=3"): "--num_heatmaps=3 does nothing without --heatmaps",
        (score, out, f"--workdir={trained}", "--loss=hinge"): "--loss=hinge does nothing here",
        (score, out, f"--workdir={trained}", "--dry_run"): "--dry_run is for --mode=fit",
        (score, f"--workdir={trained}"): "--out=: expected a name that ends in .csv",
        (score, f"--workdir={trained}", out, f"--dataset=npz:{tmp_path}/large.npz"): "expected --size=8x8",
        (score, f"--workdir={trained}", out, "--false_positive_rate=0.001"): "expected 999 or more",
        (score, f"--workdir={trained}", f"--out={tmp_path}/s.txt"): "expected a name that ends in .csv",
        (score, f"--workdir={trained}", f"--out={tmp_path}/few.npz/s.csv"): "few.npz' is no folder to write to",
        (score, f"--workdir={trained}", f"--out={tmp_path}/d.csv", "--overwrite"): "d.csv is a folder",
        (score, f"--workdir={trained}", out, "--heatmaps=/proc/maps"): "--heatmaps=/proc/",
        (score, f"--workdir={trained}", out, f"--heatmaps={tmp_path}/few.npz", "--overwrite"): "few.npz is a file",
    }
    before = snapshot(tmp_path)
    for arguments, expected in cases.items():
        code, _, err = here(capfd, *arguments, script=script)
        assert code == 2 and expected in err and err.count("\n") == 1, (arguments, code, err)
        assert snapshot(tmp_path) == before, arguments


def test_flags_that_say_what_is_so_anyway_are_none_too_many(trained, tmp_path):
    """A run's own flags.txt, of all flags, goes on being accepted, and so is an evaluation every 0 steps."""
    for argv in ([f"--flagfile={trained}/flags.txt"], ["--eval_every=0", f"--workdir={tmp_path}/run"]):
        script.check(script.flags.parse(script.Config, script.PRESETS, argv))


def test_a_method_outside_jaxgan_is_not_run(trained, tmp_path):
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    told = json.loads((trained / detector.FILE).read_text()) | {"method": "tests.test_anomaly"}
    (tmp_path / detector.FILE).write_text(json.dumps(told))
    with pytest.raises(InputError, match="lies outside"):
        detector.load(tmp_path)
    (tmp_path / detector.FILE).write_text("[1, 2")
    with pytest.raises(InputError, match="cannot read"):
        detector.load(tmp_path)
