"""What a command says and does at its edges: flags without effect, few images, names of figures, long waits."""

import functools
import json
import logging
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import augment, evaluate, generate, gmmn, image, image_evaluation, interpret_views
from jaxgan import checkpoint, flags, hosts, lastwords, numerics, report, shelf, trained, workdir
from jaxgan.config import Common
from jaxgan.errors import HostLost, InputError, StorageFault
from jaxgan.metrics import frechet, measure
from jaxgan.metrics.embed import Embedded, Network
from jaxgan.metrics.reference import Reference
from jaxgan.models import mlp
from tests import small
from tests.runs import compile_quickly, here

__all__ = ["compile_quickly"]  # a fixture


# --- flags


@pytest.mark.parametrize(
    ("script", "argv", "name"),
    [
        (evaluate, ("--run=r", "--metrics=fid", "--test_split=validation"), "test_split"),
        (evaluate, ("--run=r", "--resize=antialias"), "resize"),
        (evaluate, ("--run=r", "--inception_weights=w.pth"), "inception_weights"),
        (evaluate, ("--run=r", "--metrics=cas", "--features=pixels"), "features"),
        (evaluate, ("--run=r", "--metrics=cas", "--reference_images=100"), "reference_images"),
        (evaluate, ("--samples=digits", "--dataset=mnist", "--skip_bad_images"), "skip_bad_images"),
        (evaluate, ("--samples=digits", "--dataset=mnist", "--allow_code"), "allow_code"),
        (generate, ("--run=r", "--out=x.png", "--frames=20"), "frames"),
        (image, ("--rollbacks=5",), "rollbacks"),
        (gmmn, ("--rollbacks=5",), "rollbacks"),
    ],
)
def test_a_flag_without_effect_is_refused(script, argv, name):
    with pytest.raises(InputError, match=f"^--{name}.* does nothing without "):
        flags.parse(script.Config, {}, argv)


def test_a_flag_with_effect_is_taken():
    flags.parse(evaluate.Config, {}, ("--run=r", "--metrics=all", "--test_split=validation", "--reference_images=9"))
    flags.parse(generate.Config, {}, ("--run=r", "--out=x.GIF", "--frames=20"))
    flags.parse(image.Config, {}, ("--rollbacks=5", "--on_nonfinite=rollback"))


def test_a_flag_of_several_values_is_given_once(tmp_path):
    with pytest.raises(InputError, match=r"^--run is given twice; several values are one flag.*: --run=A,B$"):
        flags.parse(evaluate.Config, {}, ("--run=a", "--metrics=fid", "--run", "b"))
    (tmp_path / "flags.txt").write_text("--metrics=kid\n--num=9\n")
    config = flags.parse(
        evaluate.Config, {}, (f"--flagfile={tmp_path}/flags.txt", "--metrics=is", "--num=4", "--num=5")
    )
    assert config.metrics == ("is",) and config.num == 5  # what a file holds, and what is one value, may be given again


# --- runs and checkpoints


def test_resume_on_a_disk_that_became_read_only_is_a_storage_fault(tmp_path, monkeypatch):
    """Which a supervisor tries again, unlike a directory that never could be written to."""
    config = Common(workdir=str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(workdir.os, "access", lambda *_: False)
    with pytest.raises(InputError, match="cannot write to --workdir"):
        workdir.check(config)
    flags.write(config, tmp_path / "run")
    with pytest.raises(StorageFault, match="cannot write to --workdir") as raised:
        workdir.check(config)
    assert raised.value.code == 74


def test_a_checkpoint_that_a_run_replaces_while_it_is_read_is_not_damaged(tmp_path, monkeypatch, caplog):
    """As `generate` beside a run with --keep=1 may meet it."""
    with checkpoint.Checkpoints(tmp_path, keep=2) as saved:
        for step in (1, 2):
            saved.save(step, {"x": np.full(3, step, np.float32)})
    (tmp_path / "2").rename(tmp_path / "aside")
    load, paths = checkpoint._load, []

    def replaced(path, *options):
        paths.append(path.name)
        if len(paths) == 1:
            (tmp_path / "aside").rename(tmp_path / "2")
            shelf.absolute(tmp_path / "1").rmtree()
        return load(path, *options)

    monkeypatch.setattr(checkpoint, "_load", replaced)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.read(tmp_path)["x"].tolist() == [2, 2, 2]
    assert paths == ["1", "2"] and not caplog.records
    paths.clear()
    (tmp_path / "2").rename(tmp_path / "aside")
    (tmp_path / "1").mkdir()
    with pytest.raises(InputError, match=r"the checkpoint of step 1 .* was removed while it was read"):
        checkpoint.read(tmp_path, 1)


def test_a_dry_run_of_a_data_set_that_is_not_prepared_prepares_nothing(tmp_path, capfd):
    argv = ("--dataset=stacked_mnist", "--size=32", f"--data_dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}")
    code, out, err = here(capfd, *argv, "--dry_run")
    assert (code, err) == (0, ""), err
    assert out.startswith("data     stacked_mnist: not prepared in ") and str(tmp_path / "data") in out
    assert not (tmp_path / "run").exists() and not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_advice_on_few_images_of_a_class_is_of_use(tmp_path):
    labels = np.repeat([0, 1], [30, 40])
    np.savez(tmp_path / "x.npz", image=np.zeros((70, 8, 8), np.uint8), label=labels)
    config = augment.Config(dataset=f"npz:{tmp_path / 'x.npz'}", workdir="unused")
    with pytest.raises(InputError, match=r"class 0 .* has 24 images; .* for example --per_class=10$"):
        augment.load(config)
    with pytest.raises(InputError, match=r"for example --per_class=24$"):
        augment.load(augment.Config(dataset=config.dataset, per_class=(50, 90)))


# --- truncation


class Styled(nn.Module):
    shape: tuple[int, int, int] = (2, 2, 1)
    latent: int = 3
    num_classes: int = 0

    @nn.compact
    def __call__(self, z, label=None, train=False, psi=None):
        mean = self.variable("moving", "w", jnp.zeros, (1,)).value
        w = z[:, :1] if psi is None else mean + psi * (z[:, :1] - mean)
        return jnp.broadcast_to(w[:, :, None, None], (len(z), *self.shape))


class Plain(nn.Module):
    shape: tuple[int, int, int] = (2, 2, 1)
    latent: int = 3
    num_classes: int = 0

    @nn.compact
    def __call__(self, z, label=None, train=False):
        bias = jnp.zeros(()) if not self.num_classes else label[:, None].astype(jnp.float32) / 4
        return jnp.broadcast_to((z[:, :1] / 8 + bias)[:, :, None, None], (len(z), *self.shape))


def test_truncation_0_of_a_style_generator_is_its_mean_image():
    gan = trained.Trained.of(Styled(), {}, {"moving": {"w": jnp.full((1,), 0.25)}})
    key = numerics.key(0)
    assert np.std(gan.sample(key, 4)) > 0
    np.testing.assert_array_equal(gan.sample(key, 4, truncation=0.0), np.full((4, 2, 2, 1), 0.25, np.float32))
    with pytest.raises(InputError, match=r"truncation -0.5: expected ψ of 0 \(the mean image\) or more"):
        gan.truncated(-0.5)
    with pytest.raises(InputError, match=r"truncation 0.0: expected a number above 0, the largest \|z\|"):
        trained.Trained.of(Plain(), {}, {}).truncated(0.0)
    generate.check(generate.Config(run="r", out="x.png", truncation=0.0))
    with pytest.raises(InputError, match=r"--truncation=-1.0: .* ψ of a style generator, of which 0 is the mean image"):
        generate.check(generate.Config(run="r", out="x.png", truncation=-1.0))


# --- figures


def compared(n, name="classifier", d=4):
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, n, d)).astype(np.float32)
    network = Network(name, "digest", lambda params, images: (images, None))
    return measure.Comparison(
        network, Reference(real, frechet.moments(real), np.arange(n), n), Embedded(fake, None), None
    )


def test_precision_and_recall_need_4_images_and_density_6():
    found = compared(4).precision_recall()
    assert 0 <= found["precision"] <= 1 and measure.METRICS["precision_recall"].least == 4
    with pytest.raises(InputError, match="expected at least 4, for the 3 nearest"):
        compared(3).precision_recall()
    with pytest.raises(InputError, match="density and coverage of 5 images: expected at least 6"):
        compared(5).density_coverage()
    assert compared(6).density_coverage()["coverage"] >= 0 and measure.METRICS["density_coverage"].least == 6


def test_the_fréchet_distance_is_called_fid_in_the_features_of_papers_alone():
    ours, papers = compared(9).fid(), compared(9, "inception").fid()
    assert ours == {"frechet": pytest.approx(papers["fid"])} and list(papers) == ["fid"]
    for name in ("fid", "frechet"):
        assert image_evaluation.best(image.Config(metrics=(name,))) == "eval/frechet"
        assert image_evaluation.best(image.Config(metrics=(name,), features="inception")) == "eval/fid"
        assert flags.parse(evaluate.Config, {}, (f"--metrics={name}",)).metrics == (name,)


def test_the_best_checkpoint_of_an_older_run_is_known_by_the_older_name(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=1, best="eval/frechet") as saved:
        for step, metrics in enumerate([{"eval/fid": 3.0}, {"eval/fid": 1.0}, {"eval/frechet": 2.0}], 1):
            saved.save(step, {"x": np.zeros(1, np.float32)}, metrics)
        assert saved.best() == 2 and saved.steps == [2, 3]


def test_a_fréchet_distance_of_few_samples_says_so_once(tmp_path, capfd):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    for name, part in {"a": images[:20], "b": images[20:]}.items():
        np.savez(tmp_path / f"{name}.npz", image=part)
    argv = (f"--samples=npz:{tmp_path}/a.npz", f"--dataset=npz:{tmp_path}/b.npz", "--features=pixels", "--metrics=fid")
    code, out, err = here(capfd, *argv, f"--out={tmp_path / 'x.json'}", script=evaluate)
    assert code == 0, err
    assert err.count("the Fréchet distance is of 20 samples in 64 dimensions") == 1
    assert out.splitlines()[0].split() == ["samples", "frechet"]
    (found,) = json.loads((tmp_path / "x.json").read_text())["results"].values()
    assert found["repeats"][0].keys() == {"samples", "frechet"}
    assert measure.few_samples(64, 64) == ""


def test_runs_that_differ_in_their_seed_alone_have_intervals_over_them():
    own = {"model": "mlp", "steps": 5, "workdir": "x", "tensorboard": True}
    runs = {
        "a": own | {"seed": 0},
        "b": own | {"seed": 1, "workdir": "y", "tensorboard": False},
        "c": own | {"seed": 2, "steps": 6},
        "d": own | {"seed": 3},
    }
    rows = {
        "a": [{"kid": 1.0}, {"kid": 3.0}],
        "b": [{"kid": 4.0}, {"kid": 4.0}],
        "c": [{"kid": 9.0}],
        "d": [{"kid": 6.0}],
    }
    found = evaluate.over_seeds(runs, rows)
    assert found == {"3 seeds, a ...": {"runs": ["a", "b", "d"], "figures": [{"kid": 2.0}, {"kid": 4.0}, {"kid": 6.0}]}}
    assert evaluate.table(rows | {"3 seeds": found["3 seeds, a ..."]["figures"]}).splitlines()[-1].endswith("4 ± 5")
    assert evaluate.over_seeds({"a": runs["a"], "b": runs["a"]}, rows) == {}  # the same run twice


def test_the_same_latents_are_shown_in_every_class():
    gan = trained.Trained.of(Plain(num_classes=3), {}, {})
    source = types.SimpleNamespace(class_names=("ant", "bee", "cat"))
    subject = types.SimpleNamespace(classes=3, source=source)
    views = types.SimpleNamespace(space=types.SimpleNamespace(gan=gan), subject=subject, key=numerics.key(5))
    picture = interpret_views.by_class(views)
    z = np.asarray(gan.latents(views.key, 4))
    rows = [[gan.images(z[i : i + 1], np.array([k]))[0] for k in range(3)] for i in range(4)]
    np.testing.assert_array_equal(picture.array, report.grid(np.array(rows).reshape(12, 2, 2, 1), columns=3))
    assert "ant, bee, cat" in picture.caption


def test_width_is_that_of_the_narrowest_dense_layer():
    def shapes(network, *inputs):
        params = jax.eval_shape(network.init, numerics.key(0), *inputs)["params"]
        return [params[name]["kernel"].shape for name in sorted(params) if name.startswith("Dense")]

    pair = image.networks(image.Config(model="mlp", width=16, latent=5), (4, 4, 1), 0)
    z, x = jnp.zeros((1, 5)), jnp.zeros((1, 4, 4, 1))
    assert shapes(pair.generator, z) == [(5, 16), (16, 32), (32, 64), (64, 16)]
    assert shapes(pair.discriminator, x) == [(16, 64), (64, 32), (32, 16), (16, 1)]
    assert shapes(mlp.Generator((4, 4, 1), latent=5), z)[0] == (5, 256)
    assert trained.build(trained.network(pair.generator)) == pair.generator


# --- waiting


def test_waiting_for_other_hosts_says_so(monkeypatch, capfd):
    def unreachable(config, given):
        hosts.time.sleep(0.5)
        raise HostLost("not there")

    monkeypatch.setattr(hosts, "reach", unreachable)
    monkeypatch.setattr(hosts, "WAIT", 0.05)
    monkeypatch.setattr(lastwords, "prepare", lambda words: None)
    monkeypatch.setattr(type(jax.config), "update", lambda *_: None)
    with pytest.raises(HostLost):
        hosts.initialise(Common(coordinator="10.0.0.2:8476", num_hosts=2, host_id=1, host_timeout=7))
    assert (
        "waiting for the other hosts of this run, at most 7 s (--host_timeout): 0 s so far\n" in capfd.readouterr().err
    )


def test_a_long_evaluation_says_that_it_is_at_it(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(lastwords, "patience", functools.partial(lastwords.patience, after=0.05))

    def evaluate_slowly(state):
        hosts.time.sleep(0.4)
        return {"x": 1.0}

    small.run(tmp_path, steps=5, eval_every=5, evaluate=evaluate_slowly)
    assert "evaluating step 5; the first evaluation takes longest: 0 s so far" in capfd.readouterr().err
