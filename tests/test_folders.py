"""Folders with more in them than good images: what is refused, what is passed over, what is left out on request."""

import contextlib
import os

import numpy as np
import pytest
from PIL import Image

from experiments import image
from jaxgan import data, folders, images, loop
from jaxgan.errors import InputError
from tests.malformed_data import encoded, png
from tests.runs import TINY, compile_quickly, here

__all__ = ["compile_quickly"]  # a fixture


@pytest.fixture
def faces(tmp_path):
    """Two classes of ten images, all different."""
    rng = np.random.default_rng(0)
    for i in range(20):
        path = tmp_path / "faces" / "ab"[i // 10] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).save(path)
    return tmp_path / "faces"


def spoil(faces):
    """Four ways to be no image, and the names in order."""
    (faces / "a" / "00.png").write_bytes(b"")
    whole = (faces / "a" / "03.png").read_bytes()
    (faces / "a" / "03.png").write_bytes(whole[:60])  # its header is whole
    os.mkfifo(faces / "b" / "99.png")
    (faces / "aa").mkdir()
    (faces / "aa" / "0.png").write_bytes(encoded(size=(5, 6)))
    (faces / "aa" / "1.png").write_bytes(png(60_000, 60_000))
    return ["a/00.png", "a/03.png", "aa/1.png", "b/99.png"]


def counted(monkeypatch):
    seen, decode = [], images.decode
    monkeypatch.setattr(images, "decode", lambda *args: seen.append(1) or decode(*args))
    return seen


def test_bad_images_are_left_out_on_request(faces, tmp_path, monkeypatch, capsys):
    whole = data.read_all(data.load(f"folder:{faces}"))
    bad = spoil(faces)
    with pytest.raises(InputError, match=r"is not a readable image .* leave it out with --skip_bad_images"):
        data.load(f"folder:{faces}")
    seen = counted(monkeypatch)
    options = {"skip_bad": True, "cache": tmp_path / "cache"}
    source = data.load(f"folder:{faces}", **options)
    assert len(seen) == 22  # all but the pipe: the empty one and the bomb in vain
    assert [line.partition(":")[0] for line in source.skipped] == bad
    said = capsys.readouterr().err
    assert said.startswith("left out 4 of the 23 images of folder:") and all(name in said for name in bad)
    assert source.class_names == ("a", "aa", "b") and source.num_examples == 19
    found, rest = data.read_all(source), np.delete(np.arange(20), [0, 3])
    np.testing.assert_array_equal(np.delete(found["image"], 8, 0), whole["image"][rest])
    np.testing.assert_array_equal(np.delete(found["label"], 8), 2 * whole["label"][rest])
    # Known the next time, until a file changes.
    del seen[:]
    assert data.load(f"folder:{faces}", **options).skipped == source.skipped and not seen
    capsys.readouterr()
    (faces / "a" / "00.png").write_bytes((faces / "a" / "01.png").read_bytes())
    assert len(data.load(f"folder:{faces}", **options).skipped) == 3 and len(seen) == 22
    # A list that is damaged is made again.
    (file,) = (tmp_path / "cache").glob("*.checked")
    for content in (b"", b"[]", b'{"identity": 1}', bytes(range(256))):
        del seen[:]
        file.write_bytes(content)
        assert len(data.load(f"folder:{faces}", **options).skipped) == 3 and len(seen) == 22


def test_a_good_folder_loses_nothing(faces, capsys):
    source = data.load(f"folder:{faces}", skip_bad=True)
    assert (source.num_examples, source.skipped, capsys.readouterr().err) == (20, (), "")


def test_most_cannot_be_left_out(faces):
    for i in range(11):
        (faces / "ab"[i // 10] / f"{i:02}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"11 of the 20 images .* a/00\.png: it is empty; .* half of them at most"):
        data.load(f"folder:{faces}", skip_bad=True)
    (faces / "a" / "00.png").write_bytes(encoded(size=(5, 6)))
    assert data.load(f"folder:{faces}", skip_bad=True).num_examples == 10


def test_a_class_does_not_lose_all_its_images(faces):
    for path in (faces / "b").iterdir():
        path.write_bytes(b"")
    for i in range(10):
        (faces / "a" / f"more{i}.png").write_bytes(encoded(size=(5, 6)))
    with pytest.raises(InputError, match=r"no image of class 'b' .* can be read, such as b/10\.png: it is empty; mend"):
        data.load(f"folder:{faces}", skip_bad=True)


def filled(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "0.png").write_bytes(encoded())
    return folder


@pytest.mark.parametrize(
    "names, read",
    {
        "train/a train/b val2017/a": "a b",
        "train/bus train/car val/bus": "bus car",
        "train/good test/good test/bad ground_truth/bad": "",  # as MVTec AD has them
        "train/a train/b": "a b",
        "train/a train/b .old/c": "a b",
    }.items(),
)
def test_train_is_a_split_or_a_class(names, read, tmp_path, capsys):
    filled(tmp_path, *names.split())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "of.txt").write_text("no image")
    assert data.load(f"folder:{tmp_path}").class_names == tuple(sorted(read.split()))
    assert not capsys.readouterr().err


def test_train_beside_other_images_may_be_either(tmp_path):
    filled(tmp_path, "train", "bus", "car")
    with pytest.raises(InputError, match="has images in train and in bus: two classes, or two splits"):
        data.load(f"folder:{tmp_path}")


def test_what_is_passed_over_is_counted(faces, capsys):
    for i in range(10):
        (faces / "a" / f"{i}.GIF").write_bytes(b"")
    (faces / "LICENSE").write_text("")
    assert data.load(f"folder:{faces}").num_examples == 20
    said = f"passed over 11 files of folder:{faces} that do not end in {', '.join(images.SUFFIXES)}"
    assert capsys.readouterr().err == f"{said} (most: 10 .gif, 1 without an ending)\n"


@pytest.mark.parametrize(
    "names, place, split, inside",
    [
        ("a b", "out", "train", True),
        ("a b", "", "train", True),
        ("a b", ".out", "train", False),
        ("a b", "../out", "train", False),
        ("train", "out", "train", True),
        ("train test", "out", "train", False),
        ("train test", "train/out", "train", True),
        ("x y", "out", "x", False),
    ],
)
def test_a_run_in_its_own_data_is_refused(names, place, split, inside, tmp_path, monkeypatch):
    filled(tmp_path / "own", *names.split())
    monkeypatch.chdir(tmp_path / "own")
    config = image.Config(workdir=place or ".", dataset="folder:.", split=split)
    with pytest.raises(InputError, match="lies in --dataset=folder:") if inside else contextlib.nullcontext():
        loop.check(config)


def test_a_run_names_in_a_file_what_it_left_out(faces, tmp_path, capfd):
    bad = spoil(faces)
    argv = (*TINY, "--steps=5", f"--dataset=folder:{faces}", f"--workdir={tmp_path / 'run'}", "--skip_bad_images")
    code, _, err = here(capfd, *argv, "--dry_run")
    assert code == 0 and "left out 4" in err and not (tmp_path / "run").exists()
    for placement in ("stream", "resident"):
        code, _, err = here(capfd, *argv, f"--placement={placement}")
        assert code == 0, err
        listed = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
        assert [line.partition(":")[0] for line in listed] == bad
    code, _, err = here(capfd, *argv, "--noskip_bad_images")
    assert code == 2 and "skip_bad_images is 'true' there" in err  # the data of a run do not change on the way


def test_links_lead_to_folders_once(faces, tmp_path):
    """Also out of the folder, which is how a selection is made of a large set."""
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "first").symlink_to(faces / "a")
    (tmp_path / "chosen" / "second").symlink_to(faces / "b")
    (tmp_path / "chosen" / "third").mkdir()
    (tmp_path / "chosen" / "third" / "x.JPG").symlink_to(faces / "a" / "04.png")  # a PNG, whatever it is called
    source = data.load(f"folder:{tmp_path / 'chosen'}")
    assert (source.num_examples, source.class_names) == (21, ("first", "second", "third"))
    found = data.read_all(source)["image"]
    np.testing.assert_array_equal(found[20], found[4])
    (tmp_path / "chosen" / "third" / "back").symlink_to(tmp_path / "chosen")
    with pytest.raises(InputError, match=r"third/back .*link to the folder \., which is read already"):
        data.load(f"folder:{tmp_path / 'chosen'}")
    assert data.load(f"folder:{tmp_path / 'chosen'}", skip_bad=True).num_examples == 21


def test_names_of_any_letters_are_read(tmp_path):
    names = ["-rf.png", "a b.PNG", "caf\u00e9.png", "cafe\u0301.JPEG", "\u4e2d.webp", "'\";$(x).png", "a\nb.png"]
    visible = sorted([*names, "back\\slash.png", os.fsdecode(b"\xff\xfe.png")])
    for i, name in enumerate([*visible, "..png"]):
        (tmp_path / name).write_bytes(png(1, 1, bytes([0, i])))
    assert folders.list_images(tmp_path) == (visible, {}, {})
    found = data.read_all(data.load(f"folder:{tmp_path}", cache=tmp_path / "cache", skip_bad=True))["image"]
    assert found.ravel().tolist() == list(range(len(visible)))


def test_a_thousand_classes_of_one_image(tmp_path):
    for i in range(1000):
        (tmp_path / f"{i:03}").mkdir()
        (tmp_path / f"{i:03}" / "x.png").write_bytes(png(1, 1, bytes([0, i % 256])))
    source = data.load(f"folder:{tmp_path}")
    assert (source.num_classes, source.num_examples) == (1000, 1000)
    np.testing.assert_array_equal(source.read(np.arange(1000))["label"], np.arange(1000))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everywhere")
def test_a_folder_that_may_not_be_listed_is_named(faces):
    (faces / "b").chmod(0)
    try:
        with pytest.raises(InputError, match=r"b is not a readable image .*Permission denied"):
            data.load(f"folder:{faces}")
    finally:
        (faces / "b").chmod(0o700)


def test_mixed_sizes_and_colors_name_the_flags_that_help(tmp_path):
    for i, (mode, size) in enumerate((("L", 8), ("RGB", 8), ("RGBA", 8), ("RGB", 9))):
        Image.new(mode, (8, size), 7).save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match=r"2 sizes; give one, for example --size=8x8, .*: give --channels=3 too"):
        data.load(f"folder:{tmp_path}")
    with pytest.raises(InputError, match=r"of the 4 images .*, 1 are grey and 3 colour; give --channels=3 to read all"):
        data.load(f"folder:{tmp_path}", size="8")
    for channels in (1, 3, 4):
        assert data.load(f"folder:{tmp_path}", size="8", channels=channels).shape == (8, 8, channels)


def test_a_run_on_mixed_colors_of_before_goes_on_with_the_channels_it_has(tmp_path, capfd):
    (tmp_path / "x").mkdir()
    for i, mode in enumerate(("L", "RGB", "RGB", "RGB")):
        Image.new(mode, (8, 8), 50 * i).save(tmp_path / "x" / f"{i}.png")
    argv = [*TINY, f"--workdir={tmp_path / 'run'}", f"--dataset=folder:{tmp_path / 'x'}", "--batch_size=4"]
    assert here(capfd, *argv, "--channels=3", "--steps=10")[0] == 0
    file = tmp_path / "run" / "config.json"
    file.write_text(file.read_text().replace('"channels": 3', '"channels": 0'))
    code, _, err = here(capfd, *argv, "--steps=20")
    assert code == 2 and "give --channels=3" in err
    code, _, err = here(capfd, *argv, "--channels=1", "--steps=20")
    assert code == 2 and "channels is '0' there, '1' here" in err
    assert here(capfd, *argv, "--channels=3", "--steps=20")[0] == 0


def test_folders_of_folders_are_named(tmp_path, capsys):
    for name in ("cat", "dog"):
        path = tmp_path / "photos" / name / "0.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(encoded())
    assert data.load(f"folder:{tmp_path}").num_classes == 0
    assert f"--dataset=folder:{tmp_path / 'photos'} has 2: cat, dog" in capsys.readouterr().err
    assert data.load(f"folder:{tmp_path / 'photos'}").class_names == ("cat", "dog")
    assert not capsys.readouterr().err
    (tmp_path / "loose.png").write_bytes(encoded())
    with pytest.raises(InputError, match=r"beside them, such as loose\.png; move these into a sub-folder, or name one"):
        data.load(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    "name, way",
    {
        "a.npz": "--dataset=npz:FILE",
        "a.zip": "are to be unpacked",
        "a.heic": "are to be converted",
        "a.txt": "",
    }.items(),
)
def test_a_folder_without_images_says_what_it_holds(name, way, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=rf"no images in .*it holds: 1 .*{way}"):
        data.load(f"folder:{tmp_path}")
