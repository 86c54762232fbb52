"""Directions, units, projections and saliency against what is known by hand, and the page that shows them."""

import functools
import importlib
import json
import re
import tracemalloc

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import image, interpret
from jaxgan import data, page
from jaxgan.critic import Critic
from jaxgan.interpret import directions, dissection, probe, spaces
from jaxgan.interpret.projection import project, psnr
from jaxgan.interpret.saliency import saliency
from jaxgan.interpret.spaces import Space
from jaxgan.metrics import classify
from jaxgan.models import mlp
from jaxgan.trained import Trained
from tests import runs
from tests.pages import self_contained
from tests.runs import compile_quickly, narrow_dense
from tests.weights import drawn

__all__ = ["compile_quickly", "narrow_dense"]  # fixtures


class Linear(nn.Module):
    """A generator of one dense layer, and one behind a ReLU where `hidden`."""

    shape: tuple[int, int, int] = (3, 4, 1)
    num_classes: int = 0
    latent: int = 5
    hidden: int = 0

    @nn.compact
    def __call__(self, z, label=None, train=False):
        x = nn.relu(nn.Dense(self.hidden)(z)) if self.hidden else z
        return nn.Dense(12)(x).reshape(-1, *self.shape)


def gan_of(module, seed=0, **params):
    z = jnp.zeros((1, module.latent))
    label = jnp.zeros(1, jnp.int32) if module.num_classes else None
    variables = dict(jax.jit(functools.partial(module.init, train=False))(jax.random.key(seed), z, label))
    return Trained(module, params or variables.pop("params"), {k: v for k, v in variables.items() if k != "params"})


@pytest.fixture(scope="module")
def factors():
    """A = U diag(s) Vᵀ of a linear generator: outputs 12, latent 5."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 5)))[0] for n in (12, 5))
    return u, np.array([4.0, 3.0, 2.0, 1.0, 0.5]), v


def linear(factors):
    u, s, v = factors
    kernel = jnp.asarray((u * s @ v.T).T, jnp.float32)
    return Space.of(gan_of(Linear(), Dense_0={"kernel": kernel, "bias": jnp.arange(12.0)}))


def same_up_to_sign(a, b, atol=1e-4):
    signs = np.sign((np.asarray(a) * np.asarray(b)).sum(-1, keepdims=True))
    np.testing.assert_allclose(signs * a, b, atol=atol)


def test_sefa_and_the_jacobian_of_a_linear_generator(factors):
    u, s, v = factors
    space = linear(factors)
    render = space.at()
    first, later = probe.affine_layers(render, 5)
    assert first == ["Dense_0"] and later == []
    weight = probe.weight_of(render, first, 5)
    np.testing.assert_allclose(weight, u * s @ v.T, atol=1e-5)
    found = directions.sefa(weight, 3)
    same_up_to_sign(found.vectors, v.T[:3])
    np.testing.assert_allclose(found.values, s[:3] ** 2, rtol=1e-4)
    np.testing.assert_allclose(found.share, s[:3] ** 2 / (s**2).sum(), rtol=1e-4)
    assert (np.take_along_axis(found.vectors, np.abs(found.vectors).argmax(1)[:, None], 1) > 0).all()

    for block in (2, 64):  # the last block of 2 is half full
        derivative = directions.jacobian(render, jnp.ones(5), block)
        np.testing.assert_allclose(derivative, u * s @ v.T, atol=1e-5)
    spectrum = directions.spectrum(derivative, 2)
    same_up_to_sign(spectrum.directions.vectors, v.T[:2])
    same_up_to_sign(spectrum.changes, u.T[:2])
    np.testing.assert_allclose(spectrum.singular, s, rtol=1e-4)
    # A step along a right singular vector changes the image by σ times the left one, the signs being of one choice.
    np.testing.assert_allclose(derivative @ spectrum.directions.vectors[0], s[0] * spectrum.changes[0], atol=1e-4)
    p = s / s.sum()
    assert spectrum.rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    assert directions.effective_rank(np.array([3.0, 0, 0])) == 1
    assert directions.effective_rank(np.full(7, 0.1)) == pytest.approx(7)


def test_what_is_affine_shows_of_a_generator_in_bfloat16_too():
    """Whose own arithmetic bends a line by more than what counts as straight."""
    gan = gan_of(mlp.Generator((4, 4, 1), latent=6, widths=(8,), batch_norm=False, dtype=jnp.bfloat16))
    space = Space.of(gan)
    assert probe.affine_layers(space.at(), 6) == (["Dense_0"], ["Dense_1"])
    points = np.asarray(space.points(jax.random.key(0), 5))
    np.testing.assert_allclose(space.images(points), gan.images(points), atol=0.02)


def test_the_jacobian_of_a_network_by_finite_differences():
    space = Space.of(gan_of(mlp.Generator((4, 4, 1), latent=3, widths=(8,), batch_norm=False)))
    point, h = np.array([0.3, -0.2, 0.5], np.float32), 1e-2
    found = directions.jacobian(space.at(), jnp.asarray(point))
    for i, e in enumerate(np.eye(3, dtype=np.float32)):
        ends = space.images(np.stack([point + h * e, point - h * e])).reshape(2, -1).astype(np.float64)
        np.testing.assert_allclose(found[:, i], (ends[0] - ends[1]) / (2 * h), atol=2e-3)


@pytest.mark.parametrize("wide", [True, False], ids=["few samples", "many samples"])
def test_ganspace_of_known_activations(wide):
    """Points without correlation, activations M z: components and steps are M's singular vectors."""
    rng = np.random.default_rng(1)
    points = rng.normal(size=(60, 4))
    points = np.linalg.qr(points - points.mean(0))[0] * np.sqrt(59)  # covariance 1
    points = points + 3.0
    m = 200 if wide else 10
    u, v = np.linalg.qr(rng.normal(size=(m, 4)))[0], np.linalg.qr(rng.normal(size=(4, 4)))[0]
    s = np.array([5.0, 3.0, 2.0, 1.0])
    found = directions.ganspace((points @ (v * s) @ u.T).reshape(60, -1, 2) + 7, points, 3)
    same_up_to_sign(found.vectors, v.T[:3], atol=1e-6)
    np.testing.assert_allclose(found.values, s[:3] ** 2, rtol=1e-6)
    np.testing.assert_allclose(found.share, s[:3] ** 2 / (s**2).sum(), rtol=1e-6)
    # Fewer components than asked for, where there are no more.
    assert len(directions.ganspace(points[:, :2], points, 4).vectors) == 2


def test_a_unit_that_is_left_out_is_zero_and_no_other():
    space = Space.of(gan_of(Linear(hidden=6)))
    points = np.asarray(jax.random.normal(jax.random.key(1), (7, 5)))
    layers = dissection.layers(space, 5, None)
    assert layers == {"Dense_1": (6,)}
    found = dissection.ablate(space, points, None, "Dense_1")
    one, two = (jax.device_get(space.gan.params[f"Dense_{i}"]) for i in (0, 1))
    hidden = np.maximum(points @ one["kernel"] + one["bias"], 0)
    before = hidden @ two["kernel"] + two["bias"]
    np.testing.assert_allclose(found.before.reshape(7, -1), before, atol=1e-5)
    assert sorted(found.units) == list(range(6)) and found.channels == 6
    for unit, change, images, maps in zip(found.units, found.change, found.images, found.maps, strict=True):
        without = before - hidden[:, [unit]] * two["kernel"][unit]
        np.testing.assert_allclose(images.reshape(7, -1), without, atol=1e-5)
        assert change == pytest.approx(np.sqrt(np.mean((without - before) ** 2)), abs=1e-5)
        np.testing.assert_allclose(maps.ravel(), hidden[:, unit], atol=1e-5)
    assert (np.diff(found.change) <= 0).all()
    strongest = np.argsort(-hidden.mean(0))[:2]
    assert set(dissection.ablate(space, points, None, "Dense_1", most=2).units) == set(strongest)
    with pytest.raises(ValueError, match="no layer 'Dense_7'"):
        probe.edited(space.at(), "Dense_7", lambda x: x)(points)


def test_a_projection_finds_the_latent_of_an_image():
    space = Space.of(gan_of(mlp.Generator((6, 6, 1), latent=3, widths=(24,), batch_norm=False), seed=3))
    z = np.asarray(jax.random.normal(jax.random.key(5), (3, 3)))
    targets = space.images(z)
    start = {"restarts": 1, "steps": 1, "candidates": 16}
    far = project(space, targets, jax.random.key(0), rate=0.0, **start)
    near = project(space, targets, jax.random.key(0), restarts=4, steps=400, candidates=64)
    assert near.error.max() < 1e-6 < 1e-3 < far.error.min()
    np.testing.assert_allclose(near.points, z, atol=0.02)
    np.testing.assert_allclose(near.images, space.images(near.points), atol=1e-5)
    np.testing.assert_allclose(psnr(np.array([4.0, 0.04])), [0, 20])
    # Features weigh in: of the upper half alone, the lower half no longer matters.
    half = lambda images, label: images[:, :3]  # noqa: E731
    seen = project(space, targets, jax.random.key(0), features=half, weight=1e3, restarts=1, steps=20, candidates=16)
    assert seen.losses.shape == (20, 3) and (seen.losses[-1] < seen.losses[0]).all()


class Coloured(nn.Module):
    """A class shows as its number in every pixel, and the latent a little."""

    num_classes: int
    shape: tuple[int, int, int] = (2, 2, 1)
    latent: int = 4

    def __call__(self, z, label=None, train=False):
        return label[:, None, None, None] + 0.01 * z.reshape(-1, *self.shape)


@pytest.mark.parametrize(("classes", "restarts"), [(1000, 8), (10, 128), (10, 600)])
def test_a_projection_starts_from_the_class_that_was_asked_for(classes, restarts):
    space = Space.of(Trained(Coloured(classes), {}, {}))
    labels = np.array([3, classes - 1, 3])
    targets = space.images(np.ones((3, 4), np.float32), labels)
    found = project(space, targets, jax.random.key(0), labels=labels, restarts=restarts, steps=2)
    np.testing.assert_array_equal(found.labels, labels)
    # Without a label the nearest of all classes, among which this is.
    free = project(space, targets[:1], jax.random.key(0), restarts=restarts, steps=2)
    assert free.labels == [3] and free.error < 1e-3


def test_the_starts_of_a_projection_need_the_memory_of_one_batch(monkeypatch):
    monkeypatch.setattr(spaces, "BATCH", 16)
    space = Space.of(Trained(Coloured(10, (32, 32, 3), 3072), {}, {}))
    targets = np.zeros((16, 32, 32, 3), np.float32)
    find = functools.partial(project, space, targets, jax.random.key(0), restarts=1, steps=1, rate=0.0)
    find()
    tracemalloc.start()
    found = find()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50 * targets.nbytes < 512 * targets.nbytes
    drawn = np.arange(512) % 10
    pool = space.points(jax.random.fold_in(jax.random.key(0), 0), 512, drawn)
    nearest = np.square(space.images(pool, drawn)).mean((1, 2, 3)).argmin()
    np.testing.assert_array_equal(found.points, np.repeat(pool[None, nearest], 16, 0))


class Square(nn.Module):
    """A critic whose gradient is known: Σ w (x + x²)."""

    shape: tuple[int, int, int] = (2, 3, 2)
    num_classes: int = 0
    mixes_batch: bool = False

    @nn.compact
    def __call__(self, x, label=None, train=False):
        w = self.param("w", nn.initializers.normal(), self.shape)
        return jnp.sum(w * (x + x**2), (1, 2, 3))


def test_saliency_is_the_gradient_and_its_mean_over_noise():
    module = Square()
    x = np.random.default_rng(0).uniform(-1, 1, (3, 2, 3, 2)).astype(np.float32)
    w = module.init(jax.random.key(0), x)["params"]["w"]
    critic = Critic(module, {"w": w}, {})
    exact = np.abs(w * (1 + 2 * x)).max(-1)
    np.testing.assert_allclose(saliency(critic, x), exact, rtol=1e-5)
    smooth = saliency(critic, x, copies=4000, noise=0.2)
    scale = 2 * np.abs(w).max() * 0.2 * 2 / np.sqrt(4000)
    assert 0 < np.abs(smooth - exact).max() < 5 * scale
    np.testing.assert_array_equal(smooth, saliency(critic, x, copies=4000, noise=0.2))


# --- every family

FAMILIES = {
    "mlp": ("z", {"widths": (8,)}),
    "dcgan": ("z", {"width": 2}),
    "biggan": ("z", {"width": 2}),
    "stylegan2": ("w", {"width": 8}),
    "r3gan": ("z", {"width": 8}),
    "infogan": ("codes", {"width": 2, "categorical": 3, "continuous": 1}),
    "gmmn": ("z", {"widths": (8,)}),
    "resnet": ("z", {"width": 2}),
}


def random_gan(module, label):
    variables = drawn(module, jnp.zeros((1, module.latent)), label)
    return Trained(module, variables.pop("params"), variables)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_space_first_layers_and_units(name):
    kind, options = FAMILIES[name]
    module = importlib.import_module(f"jaxgan.models.{name}").Generator
    classes = 0 if name in ("gmmn", "resnet") else 3
    side = 32 if name == "resnet" else 8
    given = {"latent": 12} | options | ({"num_classes": classes} if classes else {})
    label = jnp.ones(3, jnp.int32) if classes else None
    space = Space.of(random_gan(module((side, side, 1), **given), None if label is None else label[:1]))
    render, z = space.at(1 if classes else None), jax.random.normal(jax.random.key(0), (3, 12))

    @jax.jit
    def everything(z):
        points = space.enter(space.variables, z, label)
        direct = space.gan.generator.apply(space.variables, z, label, train=False)
        return points, direct, *probe.observed(render)(points)

    points, direct, rendered, seen = jax.device_get(everything(z))
    assert space.name == kind and np.ptp(direct) > 0
    np.testing.assert_allclose(rendered, direct, atol=2e-5)
    first, later = probe.affine_layers(render, points.shape[1])
    if name == "gmmn":  # which sees erf(z)
        assert not first
    else:
        weight = probe.weight_of(render, first, points.shape[1])
        outputs = np.concatenate([seen[layer].outputs for layer in first], 1)
        np.testing.assert_allclose(outputs - outputs[0], (points - points[0]) @ weight.T, atol=2e-3, rtol=1e-3)
        assert np.abs(weight).max(0).min() > 0  # every dimension goes somewhere
    assert later and not set(first) & set(later)


# --- the page


def test_a_page_is_one_file():
    array = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    sections = [
        page.Section("A <b>", "x & y", [page.Picture("p", array, "a <script>", 'an "image"')], note="why <not>"),
        page.Section("B", "", tables=[page.Table("t", ("a", "b"), [("<i>", 0.12345), (np.float32("nan"), 3)])]),
    ]
    text = page.page("Title", "intro", sections)
    (picture,) = self_contained(text)
    np.testing.assert_array_equal(np.asarray(picture), array[..., 0])
    assert "a &lt;script&gt;" in text and "0.123" in text and "–" in text and "<i>" not in text


def test_numbers_in_a_table_have_no_exponent_around_a_thousand():
    values = (999.4, 999.5, np.float32(999.9), -999.7, 1000.0, 12345.6)
    text = page.page("T", "", [page.Section("A", "", tables=[page.Table("t", ("a",), [(value,) for value in values])])])
    assert re.findall("<td>(.*?)</td>", text) == ["999", "1,000", "1,000", "-1,000", "1,000", "12,346"]


SHORT = ("--num=48", "--directions=2", "--restarts=2", "--projection_steps=3", "--units=3")
call = functools.partial(runs.here, script=interpret)


@pytest.fixture(scope="module", autouse=True)
def learn_quickly():
    before, classify.STEPS = classify.STEPS, 20
    yield
    classify.STEPS = before


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A conditional run, which forgot its discriminator."""
    folder = tmp_path_factory.mktemp("runs") / "mlp"
    options = {"steps": 2, "steps_per_call": 2, "eval_every": 0, "sample_every": 0, "tensorboard": False}
    image.main(image.Config(workdir=str(folder), model="mlp", conditional=True, latent=6, batch_size=8, **options))
    config = json.loads((folder / "config.json").read_text())
    del config["networks"]["discriminator"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_run_without_a_discriminator_and_an_image_of_ones_own(run, tmp_path, capfd):
    pixels = data.load("digits").read(np.arange(1))["image"][0, ..., 0]
    Image.fromarray(pixels).resize((20, 16)).convert("RGB").save(tmp_path / "own.jpg")
    argv = (f"--run={run}", *SHORT, f"--image={tmp_path / 'own.jpg'}", "--sample=5")
    code, out, err = call(capfd, *argv, f"--out={tmp_path / 'page'}")
    assert code == 0 and "index.html" in out, err
    text = (tmp_path / "page" / "index.html").read_text()
    pictures = self_contained(text)
    files = {p.name for p in (tmp_path / "page").iterdir()}
    assert len(files) == len(pictures) + 2 and min(p.width for p in pictures) > 50
    assert "There is no discriminator to ask" in text and "names no discriminator" in text
    report = json.loads((tmp_path / "page" / "report.json").read_text())
    assert np.shape(report["sefa"]["vectors"]) == np.shape(report["ganspace"]["vectors"]) == (2, 6)
    np.testing.assert_allclose(np.linalg.norm(report["sefa"]["vectors"], axis=1), 1, rtol=1e-5)
    assert len(report["projection"]["psnr"]) == 1 and len(report["projection"]["psnr_of_samples"]) == 2
    assert 1 <= report["jacobian"]["effective_rank"] <= 6 and len(report["units"]["units"]) == 3
    assert len(report["explained"]["nearest"]) == 6 and report["explained"]["realism"] > 0
    assert "verdicts" not in report["saliency"] and "verdict" not in report["explained"]
    # Nothing is replaced that was not asked for, and nothing that is not ours.
    assert call(capfd, *argv, f"--out={tmp_path / 'page'}")[0] == 2
    (tmp_path / "page" / "mine.txt").write_text("x")
    code, _, err = call(capfd, *argv, f"--out={tmp_path / 'page'}", "--overwrite")
    assert code == 2 and "mine.txt" in err and (tmp_path / "page" / "index.html").exists()


def test_wrong_calls_are_one_line(run, tmp_path, capfd):
    (tmp_path / "text.png").write_text("no image")
    np.savez(tmp_path / "large.npz", image=np.zeros((20, 9, 9, 1), np.uint8))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "config.json").write_text('{"config": {"steps": 4}}')
    before = runs.snapshot(tmp_path)
    out = tmp_path / "page"
    for argv, error in (
        ((f"--out={out}",), "--run is empty"),
        ((f"--run={run}",), "--out is empty"),
        ((f"--run={tmp_path}", f"--out={out}"), "is not a run"),
        ((f"--run={tmp_path / 'toy'}", f"--out={out}"), "names no generator"),
        ((f"--run={run}", f"--out={tmp_path / 'text.png'}"), "exists"),
        ((f"--run={run}", f"--out={tmp_path / 'toy'}", "--overwrite"), "'config.json', which was not written by this"),
        ((f"--run={run}", f"--out={tmp_path / 'text.png'}", "--overwrite"), "is a file"),
        ((f"--run={run}", "--out=..", "--overwrite"), "expected a folder by its name"),
        ((f"--run={run}", "--out=/proc/x/page"), "cannot write"),
        ((f"--run={run}", f"--out={out}", "--sample=-1"), "--sample=-1: expected 0 to"),
        ((f"--run={run}", f"--out={out}", "--num=3"), "--num=3: expected 16"),
        ((f"--run={run}", f"--out={out}", "--label=10"), "--label=10: this generator has the classes 0 to 9"),
        ((f"--run={run}", f"--out={out}", "--layer=Dense_9"), "Dense_3"),
        ((f"--run={run}", f"--out={out}", f"--image={tmp_path / 'no.png'}"), "there is no such file"),
        ((f"--run={run}", f"--out={out}", f"--image={tmp_path / 'text.png'}"), "is not a readable image"),
        ((f"--run={run}", f"--out={out}", f"--dataset=npz:{tmp_path / 'large.npz'}"), "its images are (9, 9, 1)"),
        ((f"--run={run}", f"--out={out}", "--dataset=digts"), "digts"),
    ):
        code, text, err = call(capfd, *argv)
        (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
        assert code == 2 and error in line and "Traceback" not in err and not text, (argv, err)
    assert runs.snapshot(tmp_path) == before
