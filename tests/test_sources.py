"""Every kind of source: digits, TFDS, folders, npz files, and original data."""

import gzip
import importlib.util
import io
import os
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxgan import data, images, prepared, sources
from jaxgan.datasets.digits import arrays
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


@pytest.fixture(scope="module")
def prepared_digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    prepared.prepare("digits", folder, None)
    return folder


def test_the_builder_holds_the_same_digits_and_needs_no_tensorflow(prepared_digits):
    source = prepared.load("digits", "train", prepared_digits, None, None, "center", 0)
    got = source.read(np.arange(source.num_examples))
    expected = arrays.arrays()
    assert content(got["image"], got["label"]) == content(expected["image"], expected["label"])
    assert (source.shape, source.num_classes, source.class_names) == ((8, 8, 1), 10, arrays.CLASSES)
    part = prepared.load("digits", "train[:10%]", prepared_digits, None, (4, 6), "center", 3)
    assert part.num_examples == 180 and part.read(np.arange(5))["image"].shape == (5, 4, 6, 3)
    with pytest.raises(InputError, match="unknown split of digits 'tran'; did you mean 'train'"):
        prepared.load("digits", "tran", prepared_digits, None, None, "center", 0)


def test_a_format_without_random_access_is_answered_with_the_command_that_converts_it(prepared_digits, tmp_path):
    there = tmp_path / "digits" / "1.0.0"
    there.mkdir(parents=True)
    for file in (prepared_digits / "digits" / "1.0.0").iterdir():
        (there / file.name.replace("array_record", "tfrecord")).write_bytes(
            file.read_bytes().replace(b"array_record", b"tfrecord")
        )
    with pytest.raises(
        InputError, match=rf"tfds convert_format --dataset_version_dir={there} --out_file_format=array_rec"
    ):
        prepared.prepare("digits", tmp_path, None)


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


def test_a_remote_folder_is_walked_like_a_local_one(tmp_path):
    for name in ("a/1.png", "a/deep/2.JPG", "b/3.webp", "b/.hidden.png", ".cache/4.png"):
        save(tmp_path / name, np.zeros((2, 2), np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    expected = ["a/1.png", "a/deep/2.JPG", "b/3.webp"]
    assert sources.list_images(tmp_path) == sources.list_images(Remote(tmp_path)) == expected


def test_a_folder_without_classes_and_one_with_splits(tmp_path):
    for i in range(3):
        save(tmp_path / "train" / f"{i}.png", np.full((2, 2), i, np.uint8))
    save(tmp_path / "test" / "x" / "9.png", np.full((2, 2), 9, np.uint8))
    train, test = (data.load(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert (train.num_examples, train.num_classes, train.shape) == (3, 0, (2, 2, 1))
    assert test.read(np.array([0]))["image"].max() == 9 and test.num_classes == 0  # one class says nothing
    with pytest.raises(InputError, match="unknown split 'val'"):
        data.load(f"folder:{tmp_path}", "val")


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


def test_crops_are_centred_and_resizing_is_antialiased():
    ramp = np.tile(np.arange(12, dtype=np.uint8)[None, :, None] * 20, (4, 1, 1))  # (4, 12, 1)
    np.testing.assert_array_equal(images.fit_array(ramp, (4, 4), 1)[..., 0], ramp[:, 4:8, 0])
    np.testing.assert_array_equal(images.fit_array(ramp.transpose(1, 0, 2), (4, 4), 1)[..., 0], ramp[:, 4:8, 0].T)
    assert images.fit_array(ramp, (4, 6), 1, "none")[0, 0] < 20  # the left edge is still there
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    small = images.fit_array(checks, (16, 16), 1)
    assert abs(int(small[8, 8, 0]) - 127) <= 2  # the nearest pixel would be 0 or 255
    many = np.random.default_rng(0).integers(0, 256, (8, 8, 5), np.uint8)
    assert images.fit_array(many, (4, 4), 5).shape == (4, 4, 5)


def encode(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_pixels_of_unusual_files():
    def see(image, channels):
        return images.decode(encode(image), None, channels)[0, 0].tolist()

    rgba = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert see(rgba, 3) == [255, 255, 255] and see(rgba, 1) == [255]  # transparent is white, whatever lies below
    assert see(Image.new("RGBA", (2, 2), (255, 0, 0, 255)), 3) == [255, 0, 0]
    assert see(Image.fromarray(np.full((2, 2), 0x80FF, np.uint16)), 1) == [0x80]
    assert see(Image.new("1", (2, 2), 1), 3) == [255, 255, 255]
    assert see(Image.new("RGB", (2, 2), (0, 255, 0)).convert("P"), 3) == [0, 255, 0]
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6  # as a telephone writes it when held upright
    turned = encode(Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)), exif=exif)
    assert images.measure(io.BytesIO(turned)) == (3, 2, 1)
    np.testing.assert_array_equal(images.decode(turned, None, 1)[..., 0], [[3, 0], [4, 1], [5, 2]])


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
