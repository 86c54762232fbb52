"""InfoGAN: codes that are functions of a normal latent, the bound of their information, and figures of them."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

import jaxgan
from experiments import generate, infogan, interpret
from jaxgan import adversarial, critic, data, information
from jaxgan.errors import InputError
from jaxgan.metrics import classify
from jaxgan.metrics.clusters import matching
from jaxgan.metrics.strokes import correlations, strokes
from jaxgan.models.infogan import Discriminator, Generator
from tests import runs
from tests.pages import self_contained
from tests.runs import compile_quickly
from tests.weights import drawn

__all__ = ["compile_quickly"]  # a fixture

call = functools.partial(runs.here, script=infogan)
TINY = ("--width=2", "--noise=3", "--batch_size=8", "--steps_per_call=2", "--notensorboard", "--sample_every=0")


def test_codes_of_a_normal_latent_have_their_distributions():
    generator = Generator((8, 8, 1), latent=9, width=2, categorical=4, continuous=2)
    z = jax.random.normal(jax.random.key(0), (20_000, 9))
    codes = np.asarray(generator.codes(z))
    np.testing.assert_array_equal(codes[:, :4].sum(1), 1)
    counts = codes[:, :4].sum(0)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    for j in (4, 5):
        assert scipy.stats.kstest(codes[:, j], scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(codes[:, 6:], z[:, 6:])
    # Independent: the category says nothing of a number.
    assert abs(np.corrcoef(codes[:, 0], codes[:, 4])[0, 1]) < 0.03
    variables = drawn(generator, z[:4])
    images = jax.jit(generator.apply)(variables, z[:4])
    from_codes = jax.jit(functools.partial(generator.apply, method="from_codes"))
    np.testing.assert_array_equal(images, from_codes(variables, codes[:4]))
    with pytest.raises(InputError, match="expected at least 6"):
        Generator((8, 8, 1), latent=5, categorical=4, continuous=2)


def test_networks_are_those_of_the_paper():
    """Table 1: 28x28, 74 inputs; counts of weights by hand."""

    def count(module, *inputs):
        params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
        return sum(x.size for x in jax.tree.leaves(params))

    kinds = {"categorical": 10, "continuous": 2}
    gen = 74 * 1024 + 2 * 1024 + 1024 * 7 * 7 * 128 + 2 * 7 * 7 * 128 + 16 * 128 * 64 + 2 * 64 + 16 * 64 + 1
    assert count(Generator((28, 28, 1), latent=74, **kinds), jnp.zeros((1, 74))) == gen
    trunk = (16 * 64 + 64) + (16 * 64 * 128 + 128 + 2 * 128) + (7 * 7 * 128 * 1024 + 1024 + 2 * 1024)
    q = (1024 * 128 + 128 + 2 * 128) + (128 * 14 + 14)
    assert count(Discriminator((28, 28, 1), **kinds), jnp.zeros((1, 28, 28, 1))) == trunk + q + 1024 + 1


def test_the_bound_by_hand():
    output = jnp.array([[9.0, 2.0, 0.0, 0.5, -0.1], [9.0, 0.0, 0.0, -1.0, 0.3]])  # verdict, 2 logits, mean, log σ
    codes = jnp.array([[1.0, 0.0, 0.8, 7.0], [0.0, 1.0, -0.5, 7.0]])
    said = information.recognised(output, 2, 1)
    category, numbers = information.bound(said, codes)
    expected = np.log(2) - (np.log1p(np.exp(-2)) + np.log(2)) / 2
    assert float(category) == pytest.approx(expected, rel=1e-5)
    normal = [scipy.stats.norm.logpdf(c, m, np.exp(s)) for c, m, s in ((0.8, 0.5, -0.1), (-0.5, -1.0, 0.3))]
    np.testing.assert_allclose(numbers, [np.log(2) + np.mean(normal)], rtol=1e-5)
    with pytest.raises(ValueError, match="3 categories"):
        information.recognised(output, 3, 1)


def test_the_bound_is_reached_by_a_perfect_reader_and_never_passed():
    """Q that knows: H(c) for the category; of a number in Gaussian noise of σ, no more than its information."""
    rng = np.random.default_rng(0)
    n, sigma = 200_000, 0.5
    codes = np.concatenate([np.eye(4)[rng.integers(0, 4, n)], rng.uniform(-1, 1, (n, 1))], 1)
    mean = codes[:, 4:] + sigma * rng.normal(size=(n, 1))
    sure = np.concatenate([np.zeros((n, 1)), 50 * codes[:, :4], mean, np.full((n, 1), np.log(sigma))], 1)
    category, numbers = information.bound(information.recognised(jnp.asarray(sure), 4, 1), jnp.asarray(codes))
    assert float(category) == pytest.approx(np.log(4), abs=1e-4)
    # I(c; c + noise) = h(c + noise) - h(noise), by numerical integration.
    x = np.linspace(-3, 3, 20_001)
    p = 0.5 * (scipy.stats.norm.cdf((x + 1) / sigma) - scipy.stats.norm.cdf((x - 1) / sigma))
    entropy = -np.trapezoid(np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0), x)
    truth = entropy - np.log(sigma * np.sqrt(2 * np.pi * np.e))
    assert float(numbers[0]) == pytest.approx(np.log(2) - np.log(sigma * np.sqrt(2 * np.pi * np.e)), abs=0.01)
    assert float(numbers[0]) < truth


def test_the_information_of_two_categories_by_hand():
    joint = np.array([[0.4, 0.1], [0.2, 0.3]])
    p = np.repeat(np.eye(2), 5, 0)
    q = 2 * joint[p.argmax(1)]  # of half of the images each
    even = (joint + joint.T) / 2
    margin = even.sum(0)
    expected = (even * np.log(even / np.outer(margin, margin))).sum()
    assert float(information.shared(jnp.asarray(p), jnp.asarray(q))) == pytest.approx(expected, rel=1e-4)
    entropy = -(margin * np.log(margin)).sum()
    weighted = float(information.shared(jnp.asarray(p), jnp.asarray(q), 1.5))
    assert weighted == pytest.approx(expected + 0.5 * 2 * entropy, rel=1e-4)
    sure, flat = jnp.eye(7), jnp.full((7, 7), 1 / 7)
    assert float(information.shared(sure, sure)) == pytest.approx(np.log(7), rel=1e-4)
    assert float(information.shared(sure, flat)) == pytest.approx(0, abs=1e-5)


def test_a_warped_image_is_the_same_one_moved_a_little():
    """A round blob in the middle stays one, of the size and at the place that the bounds allow; edges go on."""
    y, x = np.mgrid[:41, :41] - 20.0
    blob = np.exp(-(x**2 + y**2) / 18)
    images = jnp.asarray(np.tile(np.stack([blob, 1 - 2 * blob], -1), (64, 1, 1, 1)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 64)
    found = np.asarray(jax.jit(information.warped)(keys, images), np.float64)
    np.testing.assert_allclose(found[..., 1], 1 - 2 * found[..., 0], atol=1e-5)  # channels move together
    mass = found[..., 0].sum((1, 2))
    middle = [(found[..., 0] * p).sum((1, 2)) / mass for p in (x, y)]
    reach = 41 * information.SHIFT * np.exp(information.SCALE) * (1 + information.SHEAR)
    assert 2 < np.abs(middle).max() < 1.5 * reach
    ratio = mass / blob.sum()
    assert np.exp(-2 * information.SCALE) * 0.98 < ratio.min() < 0.8
    assert 1.2 < ratio.max() < np.exp(2 * information.SCALE) * 1.02
    np.testing.assert_allclose(information.warped(keys, jnp.ones((64, 8, 9, 1))), 1, atol=1e-6)


def test_both_players_move_for_the_information_of_the_codes_that_made_the_images():
    """The regularisers' metrics are the surprise of Q at the very codes of the batch, and both move."""
    config = infogan.Config(width=2, noise=3, batch_size=4, categorical=3, continuous=1, ema=0.0, invariance=0.0)
    pair = infogan.make_pair(config, (8, 8, 1))
    game = infogan.make_game(config, pair)
    source = data.load("digits")
    batch = {
        "image": classify.scaled(source.read(np.arange(8))["image"]).reshape(2, 4, 8, 8, 1)[: game.draws],
        "label": np.zeros((game.draws, 4), np.int32),
        "row": np.tile(np.arange(4), (game.draws, 1)),
    }
    state = jax.jit(game.init)(jax.random.key(0), {k: v[0] for k, v in batch.items()})
    one = {name: x[0] for name, x in batch.items()}

    @jax.jit
    def both(state):
        after, metrics = game.step(state, batch)
        # The generator's move by hand, at the discriminator after its own.
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
        z_key, fake_key, _ = jax.random.split(jax.random.fold_in(key, 0), 3)
        gen, disc = state.players["gen"], after.players["disc"]
        fake, _ = pair.generate(gen.params, gen.variables, one, z_key)
        output, _ = pair.critic(disc.params, state, one, fake_key)(disc.variables, fake)
        z = adversarial.latents(jax.random.split(z_key)[0], one["row"], pair.generator.latent)
        said = information.recognised(output, 3, 1)
        return after, metrics, information.surprise(said, pair.generator.codes(z))

    after, metrics, (category, numbers) = both(state)
    disc = after.players["disc"]
    assert float(metrics["gen/category"]) == pytest.approx(float(category.mean()), rel=1e-4)
    assert float(metrics["gen/numbers"]) == pytest.approx(float(numbers.mean()), rel=1e-4)
    assert {"disc/category", "disc/numbers"} <= metrics.keys()
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), disc.params["Dense_2"], state.players["disc"].params["Dense_2"]
    )
    assert min(jax.tree.leaves(moved)) > 0  # Q's last layer


def test_matching_is_the_best_of_all_assignments():
    rng = np.random.default_rng(0)
    for k, classes in ((4, 4), (3, 5), (5, 3)):
        clusters, labels = rng.integers(0, k, 60), rng.integers(0, classes, 60)
        wide = max(k, classes)
        best = max(
            np.mean([order[c] == label for c, label in zip(clusters, labels, strict=True)])
            for order in itertools.permutations(range(wide))
        )
        found = matching(clusters, labels, k, classes)
        assert found.accuracy == pytest.approx(best)
        assert np.mean(found.classes[clusters] == labels) == pytest.approx(best)
        assert found.table.sum() == 60 and (found.classes >= 0).sum() == min(k, classes)
    order = rng.permutation(10)
    labels = rng.integers(0, 10, 500)
    assert matching(order[labels], labels, 10, 10).accuracy == 1
    with pytest.raises(InputError, match="labels from 0 to 10"):
        matching(np.zeros(11, int), np.arange(11), 10, 10)


def test_strokes_of_drawn_bars():
    """A bar of known shear, breadth and width, light on dark."""
    h = w = 64
    y, x = np.mgrid[:h, :w][0][::-1], np.mgrid[:h, :w][1]

    def bar(shear, width):
        centre = 31.5 + shear * (y - 31.5)
        inside = (np.abs(x - centre) <= width / 2) & (np.abs(y - 31.5) <= 20)
        return 2.0 * inside[..., None] - 1

    for shear, width in itertools.product((-0.5, 0.0, 0.3), (4, 8)):
        found = strokes(bar(shear, width)[None])
        assert found.slant[0] == pytest.approx(shear, abs=0.02)
        assert found.breadth[0] == pytest.approx(width / np.sqrt(12), abs=0.2)
    thin, thick = (strokes(bar(0.0, width)[None]).thickness[0] for width in (4, 8))
    assert thin == pytest.approx(2 * 4 * 41 / (2 * (4 + 41)), rel=0.1) and thick > 1.5 * thin
    assert np.isnan(strokes(-np.ones((1, 8, 8, 1))).slant[0])


def test_correlations_are_within_groups():
    rng = np.random.default_rng(0)
    codes, groups = rng.uniform(-1, 1, (2000, 2)), rng.integers(0, 3, 2000)
    measured = 10.0 * groups + codes[:, 0] + 0.5 * rng.normal(size=2000)
    measured[5] = np.nan
    found = correlations(codes, measured, groups)
    expected = np.sqrt(1 / 3 / (1 / 3 + 0.25))
    assert found[0] == pytest.approx(expected, abs=0.03) and abs(found[1]) < 0.07


# --- the script


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("infogan") / "run"
    argv = (*TINY, "--steps=4", "--eval_samples=16", f"--workdir={workdir}")
    before, (infogan.MEASURED, classify.STEPS) = (infogan.MEASURED, classify.STEPS), (64, 20)
    yield workdir, argv
    infogan.MEASURED, classify.STEPS = before


def test_seeds_one_after_the_other_and_a_table(trained, tmp_path, capfd):
    workdir, argv = trained
    if not (workdir / "seed-0").exists():
        assert call(capfd, *argv, "--seeds=1")[0] == 0
    code, out, err = call(capfd, *argv, "--seeds=2")  # the first is there
    assert code == 0 and "already trained" in out, err
    table = json.loads((workdir / "table.json").read_text())
    assert list(table["seeds"]) == ["seed-0", "seed-1"]
    totals = {name: row["information"]["total"] for name, row in table["seeds"].items()}
    assert table["best"] == max(totals, key=totals.get) and totals["seed-0"] != totals["seed-1"]
    for row in table["seeds"].values():
        assert row["information"]["total"] == pytest.approx(
            row["information"]["category"] + sum(row["information"]["numbers"]), abs=1e-5
        )
        assert row["information"]["category"] <= np.log(10)
        assert np.sum(row["table"]) == 64 and 0.1 <= row["match"] <= 1
    assert {"eval/information", "eval/match"} <= json.loads(runs.lines(workdir / "seed-0")[-1]).keys()
    assert Image.open(workdir / "codes.png").width > 500
    # Runs like any other: sampled by path and arguments, its discriminator a critic.
    gan = jaxgan.load(workdir / "seed-1")
    assert gan.generator.categorical == 10 and gan.sample(jax.random.key(0), 3).shape == (3, 8, 8, 1)
    assert critic.load(workdir / "seed-1").logits(gan.sample(jax.random.key(0), 3)).shape == (3,)
    assert runs.here(capfd, f"--run={workdir}/seed-1", f"--out={tmp_path}/x.png", script=generate)[0] == 0
    code, _, err = call(capfd, *argv, "--seeds=2", "--categorical=5")
    assert code == 2 and "categorical is '10' there, '5' here" in err


def test_the_page_of_its_codes(trained, tmp_path, capfd):
    workdir, argv = trained
    if not (workdir / "seed-0").exists():
        assert call(capfd, *argv, "--seeds=1")[0] == 0
    short = ("--num=48", "--directions=2", "--restarts=2", "--projection_steps=3", "--units=3")
    page = tmp_path / "page"
    code, _, err = runs.here(capfd, f"--run={workdir}/seed-0", f"--out={page}", *short, script=interpret)
    assert code == 0, err
    text = (page / "index.html").read_text()
    self_contained(text)
    assert "The codes" in text and (page / "codes_2.png").exists()
    report = json.loads((page / "report.json").read_text())
    assert report["space"] == "codes" and 0 < report["traversals"]["purity"] <= 1
    assert set(report["saliency"]["verdicts"]) == {"real", "generated"} and "verdict" in report["explained"]
    code, _, err = runs.here(capfd, f"--run={workdir}", f"--out={tmp_path / 'other'}", script=interpret)
    assert code == 2 and "is not a run" in err and not (tmp_path / "other").exists()


def test_a_folder_without_labels(tmp_path, capfd):
    for i, pixels in enumerate(data.load("digits").read(np.arange(24))["image"]):
        (tmp_path / "own").mkdir(exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(tmp_path / "own" / f"{i}.png")
    argv = (*TINY, "--steps=2", "--seeds=1", "--eval_every=0", "--continuous=0")
    code, _, err = call(capfd, *argv, f"--dataset=folder:{tmp_path / 'own'}", f"--workdir={tmp_path / 'run'}")
    assert code == 0, err
    row = json.loads((tmp_path / "run" / "table.json").read_text())["seeds"]["seed-0"]
    assert "match" not in row and row["information"]["numbers"] == []


def test_wrong_calls_are_one_line(tmp_path, capfd):
    for argv, error in (
        (("--seeds=0",), "--seeds=0: expected at least 1"),
        (("--categorical=1",), "--categorical=1"),
        (("--categorical=0", "--continuous=0"), "leaves no code"),
        (("--information=-1",), "--information=-1.0: expected at least 0"),
        (("--information_numbers=1,2,3",), "--information_numbers=1.0,2.0,3.0: expected one value"),
        (("--learning_rate=0",), "--learning_rate=0.0: expected more than 0"),
        (("--dataset=digit",), "digit"),
        (("--test_split=tets",), "tets"),
        (("--model=dcgan",), "infogan"),
    ):
        code, _, err = call(capfd, *argv, f"--workdir={tmp_path / 'run'}")
        assert code == 2 and error in err and "Traceback" not in err and len(err.strip().splitlines()) == 1, (argv, err)
    assert call(capfd)[0] == 2  # no --workdir
    assert list(tmp_path.iterdir()) == []


def test_presets_fit_together():
    for name, row in infogan.PRESETS.items():
        config = infogan.Config(workdir="x", **row)
        infogan.check(config)
        shape = (28, 28, 1) if "mnist" in name else (8, 8, 1)
        game = infogan.make_game(config, infogan.make_pair(config, shape))
        example = {"image": np.zeros((1, *shape), np.float32), "label": np.zeros(1, np.int32), "row": np.arange(1)}
        jax.eval_shape(game.init, jax.random.key(0), example)
