"""The order of a run, the placement of its images, and every kind of source."""

import contextlib
import dataclasses
import gzip
import importlib.util
import io
import os
import pathlib
import threading
import time
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from PIL import Image

from jaxgan import data, images, prepared, sources
from jaxgan.datasets.digits import arrays
from jaxgan.errors import InputError

with contextlib.suppress(RuntimeError):  # another test file was first to ask for the devices
    jax.config.update("jax_num_cpu_devices", 2)

REAL = os.environ.get("JAXGAN_TEST_DATA", "")
real = pytest.mark.skipif(not REAL, reason="JAXGAN_TEST_DATA names no folder of original data")
tensorflow = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="prepares encoded images")
seeds = st.integers(-(2**40), 2**40)


# --- order


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 5000), seed=seeds, epoch=st.integers(0, 2**32 - 1))
def test_every_epoch_is_a_permutation(n, seed, epoch):
    order = data.permute(seed, np.full(n, epoch, np.uint32), np.arange(n, dtype=np.uint32), n)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@settings(max_examples=12, deadline=None)
@given(n=st.integers(1, 2**31 - 1), seed=seeds)
def test_numpy_and_jax_agree(n, seed):
    rng = np.random.default_rng(n)
    epoch = rng.integers(0, 2**32, 64, np.uint32)
    position = rng.integers(0, n, 64).astype(np.uint32)
    expected = data.permute(seed, epoch, position, n)
    assert expected.dtype == np.uint32 and (expected < n).all()
    with jax.disable_jit():
        np.testing.assert_array_equal(data.permute(seed, jnp.array(epoch), jnp.array(position), n, jnp), expected)
        flips = data.flips(seed, jnp.array(epoch), jnp.array(position), jnp)
    np.testing.assert_array_equal(flips, data.flips(seed, epoch, position))


@pytest.mark.parametrize("n", [5, 7, 12, 23])
def test_pairs_of_places_get_every_pair_of_examples_equally_often(n):
    epoch = np.arange(100_000, dtype=np.uint32)
    first, second = (data.permute(1, epoch, np.full_like(epoch, i), n).astype(int) for i in (0, 1))
    counts = np.bincount(first * n + second, minlength=n * n).reshape(n, n)[~np.eye(n, dtype=bool)]
    expected = len(epoch) / len(counts)
    chi2, freedom = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_batches_are_mixed_and_epochs_and_seeds_differ():
    n = 60_000
    orders = [
        data.permute(s, np.full(n, e, np.uint32), np.arange(n, dtype=np.uint32), n) for s, e in ((0, 0), (0, 1), (1, 0))
    ]
    for i, order in enumerate(orders):
        counts = np.stack([np.bincount(batch * 10 // n, minlength=10) for batch in order.astype(int).reshape(100, 600)])
        assert 0.85 < ((counts - 60) ** 2 / 60).sum() / 900 < 1.15  # a class-sorted data set is mixed in every batch
        steps = np.bincount(np.diff(order.astype(int)) % n * 100 // n, minlength=100)
        assert abs(((steps - n / 100) ** 2 / (n / 100)).sum() - 99) < 5 * np.sqrt(2 * 99)
        for other in orders[:i]:
            assert (order == other).sum() < 10  # one is expected by chance


# --- placement


def numbered(n=50, shape=(3, 2, 1)):
    """Image i is filled with the number i."""
    image = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, *shape)).copy()
    image[..., 0, :] += 100  # left and right differ, so that a flip shows
    return sources.from_arrays("numbered", image, np.arange(n))


def collect(source, devices=1, first=0, last=13, per_call=4, **options):
    """Every batch of the steps in order: {name: (steps, draws, batch, ...)}."""
    devices = jax.devices()[:devices]
    feed = data.place(source, devices=devices, **options)
    traces = []

    def chunk(resident, x):
        traces.append(1)
        return lax.scan(lambda c, x: (c, feed.draw(resident, x)), None, x)[1]

    chunk = jax.pmap(chunk, axis_name="data", in_axes=(None, 0), devices=devices)
    calls = [
        jax.tree.map(np.asarray, jax.block_until_ready(chunk(feed.resident, x)))
        for x in feed.calls(first, last, per_call)
    ]
    assert len(traces) <= 2 * (1 + bool((last - first) % per_call))  # a call of another length is compiled once more
    return {k: np.concatenate([np.concatenate(list(c[k]), axis=2) for c in calls]) for k in calls[0]}


@pytest.mark.parametrize("mirror", [False, True])
def test_a_run_draws_its_examples_in_the_stated_order(mirror):
    n, batch, draws, seed = 50, 16, 3, 7
    got = collect(numbered(n), batch_size=batch, draws=draws, seed=seed, placement="resident", mirror=mirror)
    assert got["image"].shape == (13, draws, batch, 3, 2, 1) and got["image"].dtype == np.float32
    places = np.arange(13 * draws * batch)
    epoch, position = (
        a.astype(np.uint32) for a in np.divmod(places, n)
    )  # n divides nothing here: epochs wrap inside batches
    label = data.permute(seed, epoch, position, n).astype(int)
    np.testing.assert_array_equal(got["label"].ravel(), label)
    np.testing.assert_array_equal(got["row"], np.broadcast_to(np.arange(batch), got["row"].shape))
    pixels = np.rint((got["image"].reshape(-1, 3, 2) + 1) * 127.5).astype(int)
    flip = data.flips(seed, epoch, position) & mirror
    np.testing.assert_array_equal(pixels[:, 0, 0], label + 100 * ~flip)
    np.testing.assert_array_equal(pixels[:, 2, 1], label + 100 * flip)
    assert 0.4 < flip.mean() < 0.6 or not mirror


@pytest.mark.parametrize("devices, placement, per_call", [(1, "stream", 13), (2, "resident", 3), (2, "stream", 5)])
def test_placement_devices_and_calls_do_not_change_a_bit(devices, placement, per_call):
    if jax.device_count() < devices:
        pytest.skip("one device")
    options = {"batch_size": 64, "draws": 2, "seed": 3, "mirror": True}  # more than an epoch in one batch
    expected = collect(numbered(), placement="resident", **options)
    got = collect(numbered(), devices, per_call=per_call, placement=placement, **options)
    resumed = collect(numbered(), devices, first=6, per_call=per_call, placement=placement, **options)
    for key in expected:
        np.testing.assert_array_equal(got[key], expected[key])
        np.testing.assert_array_equal(resumed[key], expected[key][6:])


def test_a_mirrored_draw_inside_a_scan_is_cheap():
    image = np.random.default_rng(0).integers(0, 256, (1000, 28, 28, 1), np.uint8)
    source, steps = sources.from_arrays("noise", image), 20
    feed = data.place(source, batch_size=64, devices=jax.devices()[:1], placement="resident", mirror=True)

    @jax.jit
    def run(x):
        return lax.scan(
            lambda c, x: (c + feed.draw(feed.resident, x)["image"], None), jnp.zeros((1, 64, 28, 28, 1)), x
        )[0]

    x = jax.tree.map(lambda a: a[0], next(feed.calls(0, steps, steps)))
    run(x).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run(x).block_until_ready()
        times.append((time.perf_counter() - start) / steps)
    assert min(times) < 4e-3  # 0.1 ms; 24 ms where the permutation is fused into the mirror


def test_far_into_a_run_places_do_not_overflow():
    got = collect(numbered(), first=10**12, last=10**12 + 1, batch_size=8, draws=1, seed=0)
    epoch, position = np.divmod(10**12 * 8 + np.arange(8), 50)
    expected = data.permute(0, epoch.astype(np.uint32), position.astype(np.uint32), 50)
    np.testing.assert_array_equal(got["label"].ravel(), expected)


def test_range_of_floats():
    values = np.asarray(data.to_float(jnp.arange(256, dtype=jnp.uint8)))
    assert values[0] == -1 and values[255] == 1
    np.testing.assert_array_equal(values, -values[::-1])
    np.testing.assert_allclose(values, np.arange(256) / 127.5 - 1, atol=6e-8)


def test_auto_streams_what_is_too_large():
    source = numbered()
    assert data.place(source, batch_size=2, devices=jax.devices()[:1]).resident
    assert not data.place(source, batch_size=2, devices=jax.devices()[:1], resident_gb=299 / 2**30).resident
    assert data.place(source, batch_size=2, devices=jax.devices()[:1], resident_gb=300 / 2**30).resident


def test_a_stream_keeps_to_its_memory():
    step = 2 * 8 * 6  # draws, images, bytes
    options = {"batch_size": 8, "draws": 2, "placement": "stream", "devices": jax.devices()[:1], "prefetch": 2}
    feed = data.place(numbered(), stream_gb=4 * 5 * step / 2**30, **options)
    assert feed.max_steps == 5
    with pytest.raises(InputError, match="room for 5"):
        feed.calls(0, 10, 6)
    assert data.place(numbered(), stream_gb=0, **options).max_steps == 1


def test_a_stream_reads_ahead_within_bounds_raises_and_ends():
    source, reads = numbered(), []

    def read(indices):
        reads.append(len(indices))
        if len(reads) == 5:
            raise OSError("the disk is gone")
        return source.read(indices)

    broken = dataclasses.replace(source, read=read)
    feed = data.place(broken, batch_size=2, devices=jax.devices()[:1], placement="stream", prefetch=2)
    calls = feed.calls(0, 100, 1)
    for i in range(4):
        next(calls)
        assert len(reads) <= i + 3
    with pytest.raises(OSError, match="disk is gone"):
        next(calls)
    other = feed.calls(0, 100, 1)
    next(other)
    assert any(t.name.startswith("data") for t in threading.enumerate())
    other.close()
    assert not any(t.name.startswith("data") for t in threading.enumerate())


def test_what_place_refuses():
    devices = jax.devices()[:1] * 8
    with pytest.raises(InputError, match="batch_size 100 does not divide among 8 devices; nearest: 96 or 104"):
        data.place(numbered(), batch_size=100, devices=devices)
    with pytest.raises(InputError, match=r"nearest: 8$"):
        data.place(numbered(), batch_size=3, devices=devices)
    with pytest.raises(InputError, match="did you mean 'stream'"):
        data.place(numbered(), batch_size=2, devices=devices[:1], placement="steam")


# --- sources


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
