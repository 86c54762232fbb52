"""Train, generate, evaluate, for every kind of data set: what is written is read back, with its classes."""

import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageSequence

from experiments import evaluate, generate, image
from jaxgan import data, flags, folders, prepared, report, sources
from jaxgan.errors import InputError
from jaxgan.metrics import classify
from tests import runs
from tests.runs import compile_quickly, narrow_dense, optimised_classifier

__all__ = ["compile_quickly", "narrow_dense", "optimised_classifier"]  # fixtures

LEVELS = np.arange(36) % 3
PIXELS = np.clip(80 * LEVELS[:, None, None] + np.random.default_rng(0).integers(0, 60, (36, 8, 8)), 0, 255)
RGBA = np.stack([PIXELS, 255 - PIXELS, PIXELS, 255 * (PIXELS > 90)], -1).astype(np.uint8)
KINDS = ("digits", "named", "numeric", "labels", "plain", "rgba", "tfds")
QUIET = {"eval_every": 0, "sample_every": 0, "tensorboard": False, "steps": 1, "steps_per_call": 1}


@pytest.fixture(scope="module", autouse=True)
def learn_quickly():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classify, "STEPS", 20)
        yield


def folder(root, names, pixels=PIXELS.astype(np.uint8)):
    for i, (level, one) in enumerate(zip(LEVELS, pixels, strict=True)):
        path = root / names[level] / f"{i}.png" if names else root / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(path)
    return f"folder:{root}"


def tfds(root):
    """Digits as TFDS keeps a set of another name."""
    prepared.prepare("digits", root, None)
    (root / "digits").rename(root / "tens")
    for path in list((root / "tens" / "1.0.0").iterdir()):
        if path.suffix == ".json":
            path.write_text(path.read_text().replace('"digits"', '"tens"'))
        else:
            path.rename(path.with_name(path.name.replace("digits", "tens")))
    return "tens"


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """(workdir, flags of the data) of a run on data of a kind."""
    root = tmp_path_factory.mktemp("round")

    def arrays(name, **given):
        np.savez(root / f"{name}.npz", image=PIXELS.astype(np.uint8), **given)
        return f"npz:{root / name}.npz"

    @functools.cache
    def make(kind):
        options = {"named": {"dataset": lambda: folder(root / kind, ("ant", "bee", "no. 7"))}}
        options["numeric"] = {"dataset": lambda: folder(root / kind, ("9", "10", "11"))}
        options["labels"] = {"dataset": lambda: arrays(kind, label=LEVELS)}
        options["plain"] = {"dataset": lambda: arrays(kind)}
        options["rgba"] = {"dataset": lambda: folder(root / kind, (), RGBA), "channels": 4}
        options["tfds"] = {"dataset": lambda: tfds(root), "data_dir": str(root)}
        chosen = options.get(kind, {"dataset": lambda: kind})
        chosen = {**chosen, "dataset": chosen["dataset"]()}
        own = {"model": "mlp", "latent": 8, "batch_size": 8, "conditional": kind not in ("plain", "rgba")}
        image.main(image.Config(workdir=str(root / f"run-{kind}"), **own, **chosen, **QUIET))
        return root / f"run-{kind}", chosen

    return make


def made(run, out, **options):
    generate.main(generate.Config(run=str(run), out=str(out), **options))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_generated_is_measured_against_its_own_data(kind, run_of, tmp_path, capfd):
    run, chosen = run_of(kind)
    out, archive = made(run, tmp_path / "out", num=24), made(run, tmp_path / "out.npz", num=24)
    stored = np.load(archive)
    names = flags.read(run)["data"]["classes"] or ["0", "1", "2"]
    if "label" in stored:
        assert sorted(path.name for path in out.iterdir()) == sorted(names)
    source = data.load(f"folder:{out}", channels=chosen.get("channels", 0))
    for file, pixels in zip(source.files, source.read(np.arange(24))["image"], strict=True):
        home, _, name = file.rpartition("/")
        i = int(name.removesuffix(".png"))
        np.testing.assert_array_equal(pixels, stored["image"][i])
        assert home == (names[stored["label"][i]] if "label" in stored else "")
    wanted = "fid,accuracy" if "label" in stored else "fid"
    figures = wanted.replace("fid", "frechet").split(",")  # of the classifier's features
    argv = [f"--{name}={value}" for name, value in chosen.items()]
    argv += [f"--samples=folder:{out},npz:{archive}", f"--metrics={wanted}", f"--out={tmp_path / 'scores.json'}"]
    code, _, err = runs.here(capfd, *argv, script=evaluate)
    assert code == 0 and "left out" not in err, err
    found = [x["repeats"][0] for x in json.loads((tmp_path / "scores.json").read_text())["results"].values()]
    assert [list(row) for row in found] == [["samples", *figures]] * 2
    for name in figures:  # of the same images, whose classes folders and labels tell
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-3)
    if kind == "named":
        code, _, err = runs.here(capfd, f"--run={run}", f"--metrics={wanted}", "--num=24", script=evaluate)
        assert code == 0, err


def test_real_images_in_folders_of_their_names_are_of_the_right_class(tmp_path, capfd):
    """Whatever the order of the names: 20 steps of a classifier tell black from white."""
    sets = [folder(tmp_path / f"{i}", names) for i, names in enumerate((("b", "c", "a"), ("b", "c", "a")))]
    shutil.rmtree(tmp_path / "1" / "b")
    argv = (f"--samples={sets[1]}", f"--dataset={sets[0]}", "--metrics=accuracy", f"--out={tmp_path / 's.json'}")
    code, _, err = runs.here(capfd, *argv, script=evaluate)
    assert code == 0, err
    (found,) = json.loads((tmp_path / "s.json").read_text())["results"].values()
    assert found["repeats"][0]["accuracy"] > 0.9


def test_other_classes_leave_out_what_compares_classes(tmp_path, capfd):
    ours, theirs = folder(tmp_path / "ours", ("x", "y", "z")), folder(tmp_path / "theirs", ("ant", "bee", "cat"))
    argv = (f"--samples={ours}", f"--dataset={theirs}", "--features=classifier")
    code, out, err = runs.here(capfd, *argv, "--metrics=fid,kid,accuracy", script=evaluate)
    assert code == 0 and "frechet" in out and "kid" in out and "accuracy" not in out
    assert f"left out accuracy: {ours} has the classes x, y, z, {theirs} ant, bee, cat; expected the same" in err
    code, out, err = runs.here(capfd, *argv, "--metrics=accuracy", script=evaluate)
    assert code == 2 and not out and "has the classes x, y, z" in err


def test_classes_are_matched_by_name():
    def real(*names, k=0):
        arrays = np.zeros((k or len(names), 4, 4), np.uint8), np.arange(k or len(names))
        return sources.from_arrays("real", *arrays, class_names=names)

    fashion = real("T-shirt/top", "Trouser", "Bag")
    assert evaluate.class_table("x", ("Bag", "T-shirt%2Ftop", "Trouser"), fashion).tolist() == [2, 0, 1]
    assert evaluate.class_table("x", ("Trouser", "T-shirt/top"), fashion).tolist() == [1, 0]
    assert evaluate.class_table("x", 3, fashion).tolist() == [0, 1, 2]  # of an npz file, by number
    assert evaluate.class_table("x", ("02", "00"), real(k=3)).tolist() == [2, 0]
    assert evaluate.class_table("x", ("a", "b", "c"), real(k=3)).tolist() == [0, 1, 2]
    assert evaluate.class_table("x", 0, fashion) is None
    for ours, source in ((("Bag", "Hat"), fashion), (2, fashion), (("3",), real(k=3)), (("0", "1", "2"), fashion)):
        with pytest.raises(InputError, match=r"x has the classes .*; expected the same"):
            evaluate.class_table("x", ours, source)


def test_folders_of_classes_have_names_that_a_disk_takes():
    assert folders.class_folders(("a/b", ".c", "d e"), 3) == ["a%2Fb", "%2Ec", "d e"]
    assert folders.class_folders(("..", "\\", "x."), 3) == ["%2E%2E", "%5C", "x%2E"]
    for names in (("a", "A"), ("a",), (), ("", "b"), ("x" * 300, "b"), ("\ud800", "b")):
        assert folders.class_folders(names, 2) == ["0", "1"]
    assert folders.class_folders((), 11)[:2] == ["00", "01"]


def test_a_run_on_its_own_data_is_asked_for_classes_by_name(run_of, tmp_path, capfd):
    run, chosen = run_of("named")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["data"]["classes"] = config["data"]["classes"][::-1]
    (copy / "config.json").write_text(json.dumps(config))
    subject, _ = evaluate.of_run(evaluate.Config(run=(str(copy),), num=8), str(copy))
    source = data.load(chosen["dataset"])
    bees = source.subset(np.flatnonzero(data.labels(source) == 0))
    assert subject.draw(0, bees).labels.tolist() == [2] * 8
    config["data"]["classes"] = ["ant", "bee", "wasp"]
    (copy / "config.json").write_text(json.dumps(config))
    argv = (f"--run={copy}", "--metrics=fid", "--num=20", "--features=pixels")
    code, out, err = runs.here(capfd, *argv, script=evaluate)
    assert code == 2 and "ant, bee, wasp" in err and "ant, bee, no. 7" in err and not out


def test_folders_of_named_classes_are_replaced_and_data_are_not(run_of, tmp_path):
    run, chosen = run_of("named")
    out = made(run, tmp_path / "out", num=6)
    made(run, out, num=3, overwrite=True)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == [
        "ant/000000.png",
        "bee/000001.png",
        "no. 7/000002.png",
    ]
    (out / "cow").mkdir()
    with pytest.raises(InputError, match="holds 'cow/', which was not written by this"):
        made(run, out, num=3, overwrite=True)
    home = chosen["dataset"].removeprefix("folder:")
    for place in (f"{home}/more", f"{home}/ant/x.png"):
        with pytest.raises(InputError, match=r"lies in folder:.*, the data of the run"):
            made(run, place)


# --- transparency


def test_alpha_is_kept_in_every_format(run_of, tmp_path):
    run, _ = run_of("rgba")
    pixels = np.load(made(run, tmp_path / "a.npz", num=6))["image"]
    assert pixels.shape == (6, 8, 8, 4)
    grid = Image.open(made(run, tmp_path / "grid.png", num=6))
    assert grid.mode == "RGBA"
    np.testing.assert_array_equal(grid, report.grid(pixels))
    one = Image.open(made(run, tmp_path / "one.png", num=1))
    assert one.mode == "RGBA" and one.size == (8, 8)
    np.testing.assert_allclose(np.asarray(one).astype(int), pixels[0], atol=1)  # of another batch
    gif = Image.open(made(run, tmp_path / "walk.gif", num=4, frames=3))
    stills = [np.asarray(still.convert("RGBA")) for still in ImageSequence.Iterator(gif)]
    assert len(stills) == 3
    expected = np.asarray(Image.open(made(run, tmp_path / "first.png", num=4)))
    np.testing.assert_array_equal(stills[0][..., 3], np.where(expected[..., 3] < 128, 0, 255))
    seen = expected[..., 3] >= 128
    off = np.abs(stills[0][seen][:, :3].astype(int) - report.on_white(expected)[seen])
    assert off.mean() < 12  # noise in 255 colors
    few = np.zeros((6, 6, 4), np.uint8)
    few[:3], few[3, :3] = (10, 200, 30, 255), (0, 0, 0, 128)
    still = np.asarray(generate.frame(few))
    palette = np.array(generate.frame(few).getpalette()).reshape(-1, 3)
    assert (palette[still[:3]] == [10, 200, 30]).all() and (palette[still[3, :3]] == 127).all()
    assert (still[4:] == 255).all() and (still[3, 3:] == 255).all()


def test_one_image_is_written_at_its_own_size(run_of, tmp_path):
    run, _ = run_of("plain")
    (pixels,) = np.load(made(run, tmp_path / "a.npz", num=1))["image"]
    np.testing.assert_array_equal(Image.open(made(run, tmp_path / "one.png", num=1)), pixels[..., 0])
    assert Image.open(made(run, tmp_path / "one.gif", num=1, frames=2)).size == (8, 8)
    assert Image.open(made(run, tmp_path / "two.png", num=2)).size == (118, 60)


def test_a_picture_of_two_channels_is_refused(tmp_path):
    np.savez(tmp_path / "two.npz", image=np.zeros((20, 8, 8, 2), np.uint8))
    own = {"model": "mlp", "latent": 8, "batch_size": 8, "dataset": f"npz:{tmp_path / 'two.npz'}"}
    image.main(image.Config(workdir=str(tmp_path / "run"), **own, **QUIET))
    for name in ("x.png", "x.gif", "x"):
        with pytest.raises(InputError, match=rf"{name}: a picture has 1, 3 or 4 channels, these images 2; expected an"):
            made(tmp_path / "run", tmp_path / name)
    assert np.load(made(tmp_path / "run", tmp_path / "x.npz", num=3))["image"].shape == (3, 8, 8, 2)
