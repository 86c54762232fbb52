"""Every kind of source: digits, TFDS, folders, npz files, and original data."""

import dataclasses
import functools
import gzip
import importlib.util
import os
import pathlib
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from jaxgan import data, folders, images, sources
from jaxgan.errors import InputError

REAL = os.environ.get("JAXGAN_TEST_DATA", "")
real = pytest.mark.skipif(not REAL, reason="JAXGAN_TEST_DATA names no folder of original data")
tensorflow = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="prepares encoded images")


def content(image, label):
    """The examples in any order, for TFDS shuffles what it writes."""
    return sorted(i.tobytes() + bytes([l]) for i, l in zip(image, label, strict=True))


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    source, theirs = data.load("digits"), load_digits()
    got = source.read(np.arange(1797))
    assert (source.num_examples, source.shape, source.num_classes) == (1797, (8, 8, 1), 10)
    assert got["image"].dtype == np.uint8 and got["label"].dtype == np.int32
    np.testing.assert_array_equal(got["image"][..., 0], np.round(theirs.images * 255 / 16))
    np.testing.assert_array_equal(got["label"], theirs.target)
    assert data.load("digits", size="16x12", channels=3).read(np.arange(3))["image"].shape == (3, 16, 12, 3)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("mnits", {}, "did you mean mnist"),
        ("mnist_corrupted/fogg", {}, "did you mean 'fog'"),
        ("mnist/fog", {}, "unknown config of mnist 'fog'"),
        ("", {}, "no name of a data set"),
        ("fodler:x", {}, "did you mean 'folder'"),
        ("folder:nowhere", {}, "no folder 'nowhere'"),
        ("npz:nowhere", {}, "no file 'nowhere'"),
        ("digits", {"split": "test"}, "unknown split of digits 'test'; choices: train"),
        ("digits", {"size": "3y"}, "neither a number of pixels"),
        ("digits", {"size": "0"}, "neither a number of pixels"),
        ("digits", {"crop": "centre"}, "did you mean 'center'"),
        ("digits", {"crop": "8x"}, "--crop=8x: "),
        ("digits", {"crop": "9"}, "has only 8x8 pixels"),
        ("digits", {"channels": 2}, "channels 2 from the 1 of digits"),
        ("mnist", {"manual_dir": "nowhere"}, "manual_dir=nowhere is no folder"),
    ],
)
def test_wrong_names_are_answered_in_one_line(name, options, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        data.load(name, data_dir=tmp_path, **options)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is here")
def test_preparing_encoded_images_without_tensorflow(tmp_path):
    with pytest.raises(InputError, match=r'needs TensorFlow .*pip install "jaxgan\[tfds\]"'):
        data.load("mnist", data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


# --- files and pixels


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def test_a_folder_of_classes(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (90, 6, 5, 3), np.uint8)
    for i, image in enumerate(pixels):
        save(tmp_path / "cba"[i % 3] / f"{'deep/' if i % 2 else ''}{i:02}.{'PNG' if i % 5 else 'png'}", image)
    (tmp_path / "a" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image")
    source = data.load(f"folder:{tmp_path}")
    assert (source.num_examples, source.shape, source.num_classes) == (90, (6, 5, 3), 3)
    assert source.class_names == ("a", "b", "c")
    order = sorted(range(90), key=lambda i: ("cba"[i % 3], f"{'deep/' if i % 2 else ''}{i:02}"))
    for _ in range(2):  # decoded, then from memory
        got = source.read(np.array([4, 2, 4, *range(90)]))
        np.testing.assert_array_equal(got["image"][3:], pixels[order])
        np.testing.assert_array_equal(got["image"][:3], pixels[[order[4], order[2], order[4]]])
        np.testing.assert_array_equal(got["label"][3:], [2 - i % 3 for i in order])
    grey = data.load(f"folder:{tmp_path}", size="4", channels=1)
    assert grey.read(np.arange(2))["image"].shape == (2, 4, 4, 1)
    save(tmp_path / "loose.png", pixels[0])
    with pytest.raises(InputError, match=r"images beside them, such as loose\.png"):
        data.load(f"folder:{tmp_path}")


class Remote:
    """As much of a gs:// path as is used: no `os.walk`, no `rglob`."""

    def __init__(self, local):
        self.local, self.name = local, local.name

    def __fspath__(self):
        return f"gs://bucket{self.local}"

    def iterdir(self):
        return map(Remote, self.local.iterdir())

    def is_dir(self):
        return self.local.is_dir()

    def relative_to(self, other):
        return self.local.relative_to(other.local)


def test_a_subset_keeps_its_files(tmp_path):
    for name in "abc":
        Image.new("L", (4, 4), ord(name)).save(tmp_path / f"{name}.png")
    source = data.load(f"folder:{tmp_path}", size="4", channels=1)
    part = source.subset(np.array([2, 0, 2]))
    assert source.files == ("a.png", "b.png", "c.png") and part.files == ("c.png", "a.png", "c.png")
    again = part.subset(np.array([1]))
    assert again.files == ("a.png",) and again.read(np.array([0]))["image"][0, 0, 0, 0] == ord("a")


def test_a_remote_folder_is_walked_like_a_local_one(tmp_path):
    for name in ("a/1.png", "a/deep/2.JPG", "b/3.webp", "b/.hidden.png", ".cache/4.png"):
        save(tmp_path / name, np.zeros((2, 2), np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    expected = ["a/1.png", "a/deep/2.JPG", "b/3.webp"]
    assert folders.list_images(tmp_path) == folders.list_images(Remote(tmp_path)) == (expected, {}, {".txt": 1})


def test_a_folder_without_classes_and_one_with_splits(tmp_path):
    for i in range(3):
        save(tmp_path / "train" / f"{i}.png", np.full((2, 2), i, np.uint8))
    save(tmp_path / "test" / "x" / "9.png", np.full((2, 2), 9, np.uint8))
    train, test = (data.load(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert (train.num_examples, train.num_classes, train.shape) == (3, 0, (2, 2, 1))
    assert test.read(np.array([0]))["image"].max() == 9 and test.num_classes == 0  # one class says nothing
    with pytest.raises(InputError, match="unknown split 'val'"):
        data.load(f"folder:{tmp_path}", "val")


def test_held_out_images_are_others_of_the_same_classes(tmp_path):
    for split, names in {"train": "cat emu", "test": "bee cat", "val": "cat emu"}.items():
        for name in names.split():
            save(tmp_path / split / name / "0.png", np.zeros((2, 2), np.uint8))
    load = functools.partial(data.load, f"folder:{tmp_path}")
    source = load("train")
    assert sources.held_out(load, source, "train", "val").class_names == ("cat", "emu")
    with pytest.raises(InputError, match=r"images have the classes \('bee', 'cat'\), .* \('cat', 'emu'\)"):
        sources.held_out(load, source, "train", "test")
    assert sources.held_out(load, source, "train", "test", labelled=False).num_classes == 2
    plain = [dataclasses.replace(source, class_names=(), num_classes=k) for k in (10, 9, 0)]
    sources.check_classes(plain[1], plain[0])  # an npz file may lack the last
    sources.check_classes(plain[2], plain[2])
    for test, of in ((plain[0], plain[1]), (plain[2], plain[0]), (plain[0], plain[2])):
        with pytest.raises(InputError, match="expected the same"):
            sources.check_classes(test, of)
    with pytest.raises(InputError, match="--test_split=train is --split"):
        sources.held_out(load, source, "train", "train")


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no images in"):
        data.load(f"folder:{tmp_path}")
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    for i in range(4):
        save(tmp_path / f"{i}.png", noise if i else noise[:10])
    with pytest.raises(InputError, match=r"have 2 sizes; give one, for example --size=30x20, which 3 of them have"):
        data.load(f"folder:{tmp_path}")
    source = data.load(f"folder:{tmp_path}", size="16")
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"2\.png is not a readable image"):
        source.read(np.arange(4))
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"2\.png is not a readable image"):
        data.load(f"folder:{tmp_path}")


def test_npz_files(tmp_path):
    image, label = np.arange(24, dtype=np.uint8).reshape(6, 2, 2), np.arange(6)[:, None]
    np.savez(tmp_path / "plain.npz", image=image, y=label)
    source = data.load(f"npz:{tmp_path / 'plain.npz'}")
    assert (source.shape, source.num_classes) == ((2, 2, 1), 6)
    np.testing.assert_array_equal(source.read(np.array([5, 0]))["label"], [5, 0])
    np.savez(tmp_path / "med.npz", train_images=image, val_images=image[:2], x_test=image[:1, ..., None])
    for split, n in (("train", 6), ("val", 2), ("test", 1)):
        source = data.load(f"npz:{tmp_path / 'med.npz'}", split)
        assert (source.num_examples, source.num_classes, source.shape) == (n, 0, (2, 2, 1))
    with pytest.raises(InputError, match=r"expected one of image, .* it holds faces"):
        np.savez(tmp_path / "other.npz", faces=image)
        data.load(f"npz:{tmp_path / 'other.npz'}")
    for bad in (image.astype(np.float32), image[:, 0], np.array([{}, []], dtype=object)):
        np.savez(tmp_path / "bad.npz", image=bad)
        with pytest.raises(InputError):
            data.load(f"npz:{tmp_path / 'bad.npz'}")
    with pytest.raises(InputError, match="labels are integers"):
        np.savez(tmp_path / "bad.npz", image=image, label=np.arange(5))
        data.load(f"npz:{tmp_path / 'bad.npz'}")
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    with pytest.raises(InputError, match="no npz file"):
        data.load(f"npz:{tmp_path / 'bad.npz'}")


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(tmp_path, packed):
    def write(name, kind, array):
        content = bytes([0, 0, kind, array.ndim, *np.array(array.shape, ">u4").tobytes()]) + array.tobytes()
        (tmp_path / f"{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(content) if packed else content)

    image, label = np.arange(60, dtype=np.uint8).reshape(5, 3, 4), np.array([0, 1, 2, 1, 0], np.uint8)
    write("train-images-idx3-ubyte", 8, image)
    write("train-labels-idx1-ubyte", 8, label)
    write("t10k-images-idx3-ubyte", 8, image[:2])
    source = data.load(f"idx:{tmp_path}")
    assert (source.num_examples, source.shape, source.num_classes) == (5, (3, 4, 1), 3)
    got = source.read(np.array([4, 1]))
    np.testing.assert_array_equal(got["image"][..., 0], image[[4, 1]])
    assert got["label"].tolist() == [0, 1]
    test = data.load(f"idx:{tmp_path}", "test", size="6", channels=3)
    assert (test.num_examples, test.shape, test.num_classes) == (2, (6, 6, 3), 0)
    with pytest.raises(InputError, match="no idx file of images for split 'val': expected val-images-idx3-ubyte"):
        data.load(f"idx:{tmp_path}", "val")
    with pytest.raises(InputError, match=rf"no images in .*; idx files are read with --dataset=idx:{tmp_path}"):
        data.load(f"folder:{tmp_path}")
    write("emnist-train-images-idx3-ubyte", 8, image)
    with pytest.raises(InputError, match="has 2 files of train images"):
        data.load(f"idx:{tmp_path}")
    write("t10k-images-idx3-ubyte", 13, image.astype(np.float32))
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte.* is no idx file .*0000 0d 03; expected 0000 08 03"):
        data.load(f"idx:{tmp_path}", "test")
    path = next(tmp_path.glob("t10k*"))
    for content in (b"", b"\0\0\x08\x03\0\0\0\x05\0\0\0\x03\0\0\0\x04abc", b"\x1f\x8b", gzip.compress(b"\0\0\x08\x03")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{path.name} is no idx file"):
            data.load(f"idx:{tmp_path}", "test")


@real
def test_mnist_as_it_is_published():
    source = data.load(f"idx:{REAL}/mnist", "test")
    assert (source.num_examples, source.shape, source.num_classes) == (10_000, (28, 28, 1), 10)
    assert np.bincount(data.labels(source)).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# --- decoded images on disk


@pytest.fixture
def faces(tmp_path):
    """A folder of two classes of noise and its pixels, in order."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)
    for i, image in enumerate(pixels):
        save(tmp_path / "faces" / "ab"[i // 20] / f"{i:02}.png", image)
    return tmp_path / "faces", pixels


def load_all(folder, cache, **options):
    """Pixels and labels, and how many images were decoded for them."""
    decoded, decode = [], images.decode

    def counted(*args):
        decoded.append(1)
        return decode(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "decode", counted)
        got = data.read_all(data.load(f"folder:{folder}", cache=cache, **options))
    return got["image"], got["label"], len(decoded)


def test_what_was_decoded_once_is_read_from_the_cache(faces, tmp_path, monkeypatch):
    folder, pixels = faces
    for expected in (40, 0, 0):
        image, label, decoded = load_all(folder, tmp_path / "cache")
        np.testing.assert_array_equal(image, pixels)
        np.testing.assert_array_equal(label, np.repeat([0, 1], 20))
        assert decoded == expected and image.dtype == np.uint8 and label.dtype == np.int32
    (file,) = (tmp_path / "cache").iterdir()
    assert file.stat().st_size == 64 + 40 * 4 + pixels.size
    # Whatever decides about the pixels makes another file; what does not fit makes none.
    wishes = [{"size": "4"}, {"size": "4", "crop": "none"}, {"channels": 1}]
    made = {data.load(f"folder:{folder}", **options).identity() for options in [{}, *wishes]}
    monkeypatch.chdir(folder.parent)  # a relative path stands for the whole one
    assert len(made) == 4 and data.load(f"folder:{folder.name}").identity() in made
    for i, options in enumerate(wishes, 2):
        first, again = load_all(folder, tmp_path / "cache", **options), load_all(folder, tmp_path / "cache", **options)
        assert (first[2], again[2], len(list((tmp_path / "cache").iterdir()))) == (40, 0, i)
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[0], load_all(folder, None, **options)[0])
    assert load_all(folder, tmp_path / "none", cache_gb=1e-6)[2] == 40 and not (tmp_path / "none").exists()


def test_a_part_is_not_taken_for_the_whole(faces, tmp_path):
    folder, pixels = faces
    source = data.load(f"folder:{folder}", cache=tmp_path / "cache")
    source.read(np.arange(39))
    assert not (tmp_path / "cache").exists()
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(source.read, [np.arange(40)] * 8))
    assert all((g["image"] == pixels).all() for g in got)
    assert load_all(folder, tmp_path / "cache")[2] == 0


@pytest.mark.parametrize("change", ["pixels", "time", "more", "name"])
def test_changed_files_are_decoded_again(faces, tmp_path, change, capsys):
    folder, pixels = faces
    load_all(folder, tmp_path / "cache")
    file, expected = folder / "a" / "07.png", pixels.copy()
    before = file.stat()
    if change == "pixels":  # of the same number of bytes, half a second later
        expected[7] = pixels[7, ::-1, ::-1]
        save(file, expected[7], compress_level=0)
        size = file.stat().st_size
        file.write_bytes(file.read_bytes())
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 500_000_000))
        assert size == file.stat().st_size
    elif change == "time":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif change == "more":
        expected = np.insert(expected, 8, 9, axis=0)
        save(folder / "a" / "07b.png", expected[8])
    else:
        file.rename(folder / "a" / "00a.png")
        expected = expected[[0, 7, *range(1, 7), *range(8, 40)]]
    image, _, decoded = load_all(folder, tmp_path / "cache")
    np.testing.assert_array_equal(image, expected)
    assert decoded == len(expected) and load_all(folder, tmp_path / "cache")[2] == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["cut", "cut to nothing", "longer", "digest", "label", "pixel", "identity"])
def test_a_damaged_cache_is_noticed_and_written_again(faces, tmp_path, damage, capsys):
    folder, pixels = faces
    load_all(folder, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    broken = bytearray(whole)
    if damage == "longer":
        broken += b"x"
    elif damage.startswith("cut"):
        del broken[-1 if damage == "cut" else 0 :]
    else:
        broken[{"identity": 3, "digest": 40, "label": 70, "pixel": -1}[damage]] ^= 1
    file.write_bytes(broken)
    image, label, decoded = load_all(folder, tmp_path / "cache")
    np.testing.assert_array_equal(image, pixels)
    np.testing.assert_array_equal(label, np.repeat([0, 1], 20))
    said = capsys.readouterr().err
    # Another identity is no damage, but what a changed data set looks like.
    assert said == ("" if damage == "identity" else f"{file} is damaged; folder:{folder} is decoded again\n")
    assert decoded == 40 and file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_or_read_changes_nothing(faces, tmp_path, capsys):
    folder, pixels = faces
    (tmp_path / "file").write_text("no folder")
    for _ in range(2):
        image, _, decoded = load_all(folder, tmp_path / "file" / "cache")
        np.testing.assert_array_equal(image, pixels)
        assert decoded == 40
    load_all(folder, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.unlink()
    file.mkdir()
    capsys.readouterr()
    np.testing.assert_array_equal(load_all(folder, tmp_path / "cache")[0], pixels)
    assert f"{file} cannot be read" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [file.name]  # no half-written file beside it


# --- original files


@real
@pytest.mark.parametrize("split, n", [("train", 4708), ("val", 524), ("test", 624)])
def test_medmnist_as_it_is_published(split, n):
    source = data.load(f"npz:{REAL}/pneumonia_mnist/pneumoniamnist.npz", split)
    assert (source.num_examples, source.shape, source.num_classes) == (n, (28, 28, 1), 2)
    assert 0.5 < source.read(np.arange(n))["label"].mean() < 0.9


@real
def test_faces(tmp_path):
    with zipfile.ZipFile(next(pathlib.Path(REAL, "celeba_10k").glob("*.zip"))) as archive:
        archive.extractall(tmp_path, sorted(n for n in archive.namelist() if n.endswith(".jpg"))[:200])
    source = data.load(f"folder:{tmp_path}", size="64")
    image = data.read_all(source)["image"]
    assert image.shape == (200, 64, 64, 3) and source.num_classes == 0
    red, green, blue = image.mean((0, 1, 2))
    assert red > green > blue > 60  # skin


@pytest.fixture(scope="module")
def one_data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@real
@tensorflow
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])  # their files have the same names
def test_the_unmodified_builders_of_tfds_take_original_files(name, one_data_dir):
    source = data.load(name, "test", data_dir=one_data_dir, manual_dir=f"{REAL}/{name}")
    got = data.read_all(source)

    def raw(kind, header):
        packed = pathlib.Path(REAL, name, f"t10k-{kind}-ubyte.gz").read_bytes()
        return np.frombuffer(gzip.decompress(packed), np.uint8)[header:]

    expected = content(raw("images-idx3", 16).reshape(-1, 28, 28, 1), raw("labels-idx1", 8))
    assert content(got["image"], got["label"]) == expected


def test_a_window_of_each_image():
    whole, part = (data.read_all(data.load("digits", crop=crop))["image"] for crop in ("center", "6x4"))
    np.testing.assert_array_equal(part, whole[:, 1:7, 2:6])
    again = data.read_all(data.load("digits", size="8", crop="4"))["image"]  # of the size that they have
    assert again.shape == whole.shape and np.mean(again != whole) > 0.3


def test_a_window_of_a_file(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    Image.fromarray(pixels).save(tmp_path / "one.png")
    found = data.read_all(data.load(f"folder:{tmp_path}", crop="2x4", channels=1))["image"][0, :, :, 0]
    np.testing.assert_array_equal(found, pixels[2:4, 2:6])
    with pytest.raises(InputError, match=r"one.png: --crop=7: the image has only 6x8 pixels$"):
        data.read_all(data.load(f"folder:{tmp_path}", crop="7"))
