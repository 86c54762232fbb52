import json
import runpy
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image, ImageSequence

import jaxgan
from experiments import generate, image, template
from jaxgan import adversarial, checkpoint, data, flags, report, trained
from jaxgan.adversarial import latents
from jaxgan.errors import InputError
from jaxgan.models import dcgan, mlp
from tests.runs import narrow_dense

__all__ = ["narrow_dense"]  # a fixture

SHORT = {"steps_per_call": 5, "checkpoint_every": 5, "eval_every": 0, "tensorboard": False, "batch_size": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Dense, on digits, with checkpoints of steps 5 and 10, and a moving average that is not the weights."""
    workdir = tmp_path_factory.mktemp("runs") / "dense"
    image.main(image.Config(workdir=str(workdir), model="mlp", steps=10, ema=(200.0,), sample_every=10, **SHORT))
    return workdir


@pytest.fixture(scope="module")
def gan(run):
    return jaxgan.load(run)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "conditional"
    image.main(
        image.Config(workdir=str(workdir), conditional=True, width=4, latent=8, steps=5, sample_every=0, **SHORT)
    )
    return workdir


def made(run, out, **options):
    generate.main(generate.Config(run=str(run), out=str(out), **options))
    return out


def uint8(images):
    return np.round((images + 1) * 127.5).astype(np.uint8)


def close(a, b):
    """Pixels are equal but where another program, of another batch, rounds a tie to the other side."""
    return a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1 and np.mean(a != b) < 0.001


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_samples_depend_on_key_and_place_alone(gan):
    many = gan.sample(jax.random.key(3), 200)  # two compiled calls
    assert many.shape == (200, 8, 8, 1) and many.dtype == np.float32 and np.abs(many).max() <= 1
    np.testing.assert_array_equal(many, gan.sample(jax.random.key(3), 200))
    for n in (1, 7, 129):
        np.testing.assert_allclose(gan.sample(jax.random.key(3), n), many[:n], atol=1e-5)
    assert np.abs(many - gan.sample(jax.random.key(4), 200)).max(axis=(1, 2, 3)).min() > 0.01
    assert np.abs(many[:100] - many[100:]).max(axis=(1, 2, 3)).min() > 0.01


@pytest.mark.parametrize("bound", [None, 0.5])
def test_sample_is_the_averaged_generator_with_standing_statistics(run, gan, bound):
    """Measured over latents as they will come, truncated or not."""
    player = checkpoint.read(run / "checkpoints")["players"]["gen"]
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), player["ema"])
    assert np.abs(p["Dense_3"]["kernel"] - player["params"]["Dense_3"]["kernel"]).max() > 1e-4

    def forward(z, moments):
        x, used = np.asarray(z, np.float64), []
        for i in range(3):
            x = x @ p[f"Dense_{i}"]["kernel"]
            used.append(moments[i] if moments else (x.mean(0), x.var(0)))
            mean, var = used[-1]
            x = (x - mean) / np.sqrt(var + 1e-5) * p[f"BatchNorm_{i}"]["scale"] + p[f"BatchNorm_{i}"]["bias"]
            x = np.where(x > 0, x, 0.2 * x)
        return np.tanh(x @ p["Dense_3"]["kernel"] + p["Dense_3"]["bias"]).reshape(-1, 8, 8, 1), used

    # The mean of the moments of 16 batches of 128, each normalised by its own.
    keys = [jax.random.split(key, 3)[0] for key in jax.random.split(jax.random.key(0), 16)]
    inner = (lambda z: z) if bound is None else (lambda z: adversarial.truncated(z, bound))
    batches = [forward(inner(latents(key, jnp.arange(128), 100)), None)[1] for key in keys]
    moments = [np.mean([batch[i] for batch in batches], axis=0) for i in range(3)]
    expected, _ = forward(inner(gan.latents(jax.random.key(1), 20)), moments)
    np.testing.assert_allclose(gan.sample(jax.random.key(1), 20, truncation=bound), expected, atol=1e-4)


def test_truncation_moves_latents_inwards_by_quantile(gan):
    key = jax.random.key(5)
    z = np.asarray(gan.latents(key, 300))
    assert np.abs(z).max() > 3
    for bound in (0.5, 2.0):
        inner = np.asarray(adversarial.truncated(z, bound))
        assert np.abs(inner).max() <= bound
        expected = scipy.stats.truncnorm.ppf(scipy.stats.norm.cdf(z.astype(np.float64)), -bound, bound)
        np.testing.assert_allclose(inner, expected, atol=1e-5)
    np.testing.assert_allclose(
        adversarial.truncated(z, 100.0), z, atol=2e-3
    )  # no bound at all; inf must not come of it


def test_grid_is_the_picture_that_the_run_left(run, gan, tmp_path, capsys):
    out = made(run, tmp_path / "new" / "grid.PNG", num=64, seed=0)
    picture = np.asarray(Image.open(out))
    assert close(picture, report.grid(gan.sample(jax.random.key(0), 64))[..., 0])
    assert close(picture, np.asarray(Image.open(run / "samples" / "0000010.png")))
    assert capsys.readouterr().out == f"wrote 64 images, 8x8x1, to {out}\n"
    assert tree(tmp_path) == ["new", "new/grid.PNG"]


def test_arrays(run, gan, conditional, tmp_path):
    stored = dict(np.load(made(run, tmp_path / "a.npz", num=130, seed=7, truncation=0.7)))
    assert stored.keys() == {"image"} and stored["image"].dtype == np.uint8
    assert close(stored["image"], uint8(gan.sample(jax.random.key(7), 130, truncation=0.7)))
    older = jaxgan.load(run, step=5).sample(jax.random.key(0), 9)
    assert close(np.load(made(run, tmp_path / "b.npz", num=9, step=5))["image"], uint8(older))
    assert np.abs(older - gan.sample(jax.random.key(0), 9)).max() > 0.01

    source = data.load(f"npz:{made(conditional, tmp_path / 'c.npz', num=25)}")
    read = source.read(np.arange(25))
    assert source.num_classes == 10 and (read["label"] == np.arange(25) % 10).all()
    assert close(read["image"], uint8(jaxgan.load(conditional).sample(jax.random.key(0), 25)))


def test_classes(conditional, tmp_path):
    gan, key = jaxgan.load(conditional), jax.random.key(0)
    stored = np.load(made(conditional, tmp_path / "a.npz", num=5, classes=(3, 5)))
    assert stored["label"].tolist() == [3, 5, 3, 5, 3] and stored["label"].dtype == np.int32
    assert close(stored["image"], uint8(gan.sample(key, 5, [3, 5, 3, 5, 3])))
    np.testing.assert_array_equal(gan.sample(key, 5, 3)[::2], gan.sample(key, 5, [3, 5, 3, 5, 3])[::2])
    assert np.abs(gan.sample(key, 5, 3) - gan.sample(key, 5, 5)).max() > 1e-4
    for wrong in (10, -1, [0, 1], 1.5):
        with pytest.raises(InputError, match=r"class|labels"):
            gan.sample(key, 5, wrong)


def test_folders_read_back(run, gan, conditional, tmp_path):
    out = tmp_path / "plain.d"
    made(run, f"{out}/", num=12)
    assert tree(out) == [f"{i:06d}.png" for i in range(12)]
    source = data.load(f"folder:{out}")
    assert source.num_classes == 0
    assert close(source.read(np.arange(12))["image"], uint8(gan.sample(jax.random.key(0), 12)))

    source = data.load(f"folder:{made(conditional, tmp_path / 'classes', num=24)}")
    read = source.read(np.arange(24))
    label = np.arange(24) % 10
    order = np.argsort(label, kind="stable")
    assert source.class_names == tuple("0123456789") and (read["label"] == label[order]).all()
    assert close(read["image"], uint8(jaxgan.load(conditional).sample(jax.random.key(0), 24)[order]))
    assert tree(tmp_path / "classes" / "3") == ["000003.png", "000013.png", "000023.png"]
    assert all(not name.startswith(".") for name in tree(tmp_path))


def test_animation(run, gan, tmp_path):
    gif = Image.open(made(run, tmp_path / "walk.gif", num=4, frames=9, truncation=1.0))
    assert gif.n_frames == 9 and gif.info["loop"] == 0 and gif.info["duration"] == generate.FRAME_MS
    frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(gif)]
    assert close(frames[0], report.grid(gan.sample(jax.random.key(0), 4, truncation=1.0))[..., 0])
    assert min(np.abs(frames[i].astype(int) - frames[i - 1]).max() for i in range(9)) > 0


def test_walk_keeps_the_distribution():
    stops = jax.random.normal(jax.random.key(0), (3, 40, 1000))
    path = np.stack(list(generate.walk(stops, 12)))
    np.testing.assert_array_equal(path[::4], stops)
    assert abs(path.std(axis=(1, 2)) - 1).max() < 0.02 and abs(path.mean(axis=(1, 2))).max() < 0.02
    steps = np.linalg.norm(np.roll(path, -1, axis=0) - path, axis=-1)  # (12, 40): all of one length, the last one too
    np.testing.assert_allclose(steps / steps.mean(), 1, atol=0.15)


WRONG = {
    "--run=nowhere": "nowhere",
    "--run=": "--run is empty",
    "--out=": "--out is empty",
    "--out=grid.jpg": ".png, .npz, .gif",
    "--num=0": "--num=0",
    "--frames=1": "--frames=1",
    "--truncation=0": "--truncation=0",
    "--truncation=-1": "--truncation=-1",
    "--classes=1": "unconditional",
    "--step=7": "[5, 10]",
    "--seed=-1": "--seed=-1",
    "--out=taken.png": "--overwrite",
    "--out=folder": "--overwrite",
    "--out=folder --overwrite": "'precious.txt'",
    "--out=folder.png --overwrite": "is a folder",
    "--out=file --overwrite": "is a file",
    "--out=file/grid.png": "file/grid.png",
    "--out=/proc/nothing/grid.png": "/proc/nothing",
    "--frame=3": "--frames",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_input_is_one_line(arguments, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "folder.png"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "precious.txt").write_text("mine")
    for file in ("taken.png", "file"):
        (tmp_path / file).write_text("mine")
    before = tree(tmp_path)
    fails([f"--run={run}", "--out=grid.png", *arguments.split()], WRONG[arguments], capsys)
    assert tree(tmp_path) == before and (tmp_path / "taken.png").read_text() == "mine"


def test_wrong_class_of_a_conditional_model(conditional, tmp_path, capsys):
    for classes in ("10", "3,-1"):
        fails([f"--run={conditional}", f"--out={tmp_path}/a.png", f"--classes={classes}"], "0 to 9", capsys)
    assert tree(tmp_path) == []


def fails(argv, text, capsys):
    with pytest.raises(SystemExit) as left:
        flags.main(generate.Config, {}, generate.main, argv)
    out, err = capsys.readouterr()
    assert left.value.code == 2 and out == ""
    line = err.rpartition("\r")[2]  # a slow machine has shown a bar before
    assert line.startswith("error: ") and err.count("\n") == 1 and text in line


def test_overwrite(run, conditional, tmp_path):
    for name, options in {"a.png": {}, "a.npz": {}, "a.gif": {"frames": 2}}.items():
        first = made(run, tmp_path / name, num=2, **options).read_bytes()
        assert made(run, tmp_path / name, num=2, seed=1, overwrite=True, **options).read_bytes() != first
    out = made(conditional, tmp_path / "images", num=20)
    made(run, out, num=2, overwrite=True)
    assert tree(out) == ["000000.png", "000001.png"]
    assert tree(tmp_path) == ["a.gif", "a.npz", "a.png", "images", "images/000000.png", "images/000001.png"]


def test_a_folder_is_whole_or_absent(run, tmp_path, monkeypatch):
    def full(path, array):
        if path.name == "000003.png":
            raise OSError(28, "No space left on device")
        save(path, array)

    save = report.save_png
    monkeypatch.setattr(report, "save_png", full)
    with pytest.raises(InputError, match="No space left"):
        made(run, tmp_path / "images", num=8)
    assert tree(tmp_path) == []


def test_networks_survive_json():
    for module in (
        mlp.Generator((8, 8, 1), latent=7, widths=(3, 4)),
        dcgan.Generator((8, 9, 3), 5, dtype=jnp.bfloat16),
    ):
        assert trained.build(json.loads(json.dumps(trained.network(module)))) == module


DIGITS = {"shape": [8, 8, 1]}


@pytest.mark.parametrize(
    "stored",
    [
        {"path": "os:system", "arguments": {}},
        {"path": "evil:Generator", "arguments": DIGITS},
        {"path": "jaxgan.models.evil:Generator", "arguments": DIGITS},
        {"path": "jaxgan.models..dcgan:Generator", "arguments": DIGITS},
        {"path": "jaxgan.models.dcgan.evil:Generator", "arguments": DIGITS},
        {"path": "jaxgan.models.dcgan:nn", "arguments": {}},
        {"path": "jaxgan.models.dcgan:nn.Dense", "arguments": {"features": 3}},
        {"path": "jaxgan.models.dcgan:Conv", "arguments": {"features": 3}},
        {"path": "jaxgan.models.dcgan:sizes", "arguments": DIGITS},
        {"path": "jaxgan.models.dcgan:__builtins__", "arguments": {}},
        {"path": "jaxgan.models.dcgan:Generator:__init__", "arguments": DIGITS},
        {"path": "jaxgan.loop:run", "arguments": {}},
        {"path": "jaxgan.models.dcgan:Generator", "arguments": DIGITS | {"parent": None}},
        {"path": "jaxgan.models.dcgan:Generator", "arguments": DIGITS | {"depth": 3}},
        {"path": "jaxgan.models.dcgan:Generator", "arguments": DIGITS | {"dtype": "nothing"}},
        {"path": "jaxgan.models.dcgan:Generator", "arguments": {}},
        {"path": "jaxgan.models.dcgan:Generator", "arguments": [1]},
        {"path": 3, "arguments": {}},
        {},
        None,
    ],
)
def test_a_config_runs_no_code(stored, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError):
        trained.build(stored)


def test_a_config_of_other_weights_is_refused(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = json.loads((run / "config.json").read_text())
    changes = [{"latent": 99}, {"widths": [256, 512]}, {"shape": [8, 9, 1]}, {"shape": [8]}, {"num_classes": 3}]
    changes += [{"dtype": "object"}, {"latent": "x"}, {"latent": 10**15}, {"widths": {"a": 1}}, {"num_classes": -1}]
    for change in changes:
        stored = json.loads(json.dumps(config))
        stored["networks"]["generator"]["arguments"] |= change
        (copy / "config.json").write_text(json.dumps(stored))
        with pytest.raises(InputError, match=r"does not fit|cannot build the network"):
            jaxgan.load(copy)
    for networks in ({}, {"generator": config["networks"]["discriminator"]}, 3, None):
        (copy / "config.json").write_text(json.dumps(config | {"networks": networks}))
        with pytest.raises(InputError):
            jaxgan.load(copy)


def test_template(tmp_path, monkeypatch):
    """A copy of it under another name, as a fork has one: trains, samples, and is loaded where that is allowed."""
    shutil.copy(template.__file__, tmp_path / "mine.py")
    arguments = ["--workdir=run", "--steps=10", "--steps_per_call=5", "--eval_every=0", "--notensorboard"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mine", *arguments])
    runpy.run_module("mine", run_name="__main__", alter_sys=True)  # python -m mine
    stored = flags.read(tmp_path / "run")["networks"]["generator"]
    assert stored["path"] == "mine:Generator"  # not __main__, which is another module in every script
    with pytest.raises(InputError, match="--allow_code"):
        jaxgan.load(tmp_path / "run")
    assert "mine" not in sys.modules
    picture = np.asarray(Image.open(tmp_path / "run" / "samples" / "0000010.png"))
    gan = jaxgan.load(tmp_path / "run", allow=True)
    assert close(picture, report.grid(gan.sample(jax.random.key(0), 64))[..., 0])
    assert close(picture, np.asarray(Image.open(made(tmp_path / "run", tmp_path / "a.png", allow_code=True))))


def test_template_says_what_it_would_do(tmp_path, capsys):
    wrong = {"--model=classifier": "Discriminator", "--loss=hing": "'hinge'", "--width=-3": "--width=-3: expected"}
    wrong |= {"--r1=-5": "--r1=-5.0: expected", "--learning_rate=-1": "--learning_rate=-1.0: expected"}
    for argument, text in ({"--dry_run": ""} | wrong).items():
        try:
            flags.main(template.Config, template.PRESETS, template.main, [f"--workdir={tmp_path}/run", argument])
            assert "1797 images" in capsys.readouterr().out
        except SystemExit as left:
            assert left.code == 2 and text in capsys.readouterr().err
    assert tree(tmp_path) == []
