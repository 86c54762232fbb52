"""Stacked digits: the builder, and modes counted by a classifier of single channels."""

import gzip
import importlib.util
import os
import pathlib

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgan import data
from jaxgan.datasets.digits import arrays
from jaxgan.errors import InputError
from jaxgan.metrics import coverage
from jaxgan.metrics.coverage import Coverage
from jaxgan.metrics.modes import reverse_kl

REAL = os.environ.get("JAXGAN_TEST_DATA", "")
real = pytest.mark.skipif(not REAL, reason="JAXGAN_TEST_DATA names no folder of original data")
tensorflow = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="prepares encoded images")


@pytest.fixture
def few(monkeypatch):
    """The builder's module, which makes few images and does not look for MNIST."""
    from jaxgan.datasets.stacked_mnist import stacked_mnist

    monkeypatch.setattr(stacked_mnist.StackedMnist, "EXAMPLES", {"train": 400, "test": 60})
    return stacked_mnist


def stack_of(rng, n):
    return rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n)


def content(source):
    found = data.read_all(source)
    return sorted((image.tobytes(), int(label)) for image, label in zip(found["image"], found["label"], strict=True))


def check_stacks(source, digits, labels):
    """Each channel is one of the digits, and the label is theirs; each channel draws on its own, from all of them."""
    class_of = dict(zip((x.tobytes() for x in digits), labels.tolist(), strict=True))
    found = data.read_all(source)
    channels = [[x[..., c].tobytes() for x in found["image"]] for c in range(3)]
    r, g, b = (np.array([class_of[x] for x in channel]) for channel in channels)
    np.testing.assert_array_equal(found["label"], 100 * r + 10 * g + b)
    assert channels[0] != channels[1] != channels[2]
    return [len(set(channel)) for channel in channels]


def test_the_builder_stacks_digits(few, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    digits = {"train": stack_of(rng, 50), "test": stack_of(rng, 20)}
    monkeypatch.setattr(few, "prepared", lambda data_dir: digits)
    sources = {split: data.load("stacked_mnist", split, data_dir=tmp_path / "one") for split in digits}
    for split, n in (("train", 400), ("test", 60)):
        source = sources[split]
        assert (source.num_examples, source.shape, source.num_classes) == (n, (28, 28, 3), 1000)
        assert source.class_names[7] == "007" and source.class_names[-1] == "999"
        distinct = check_stacks(source, *digits[split])  # of train from those of train, of test from those of test
        assert min(distinct) >= len(digits[split][0]) - 4
    assert data.load("stacked_mnist", data_dir=tmp_path / "one", size="32").shape == (32, 32, 3)
    # The same digits in another order, as TFDS has them, make the same stacks.
    turned = {split: (x[::-1].copy(), y[::-1].copy()) for split, (x, y) in digits.items()}
    monkeypatch.setattr(few, "prepared", lambda data_dir: turned)
    assert content(data.load("stacked_mnist", data_dir=tmp_path / "two")) == content(sources["train"])


def original(split):
    packed = [pathlib.Path(REAL, "mnist", f"{split}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")]
    x, y = (np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8) for path in packed)
    return x[16:].reshape(-1, 28, 28), y[8:]


@real
def test_the_builder_takes_original_files(few, tmp_path):
    source = data.load("stacked_mnist", data_dir=tmp_path, manual_dir=f"{REAL}/mnist")
    check_stacks(source, *original("train"))
    check_stacks(data.load("stacked_mnist", "test", data_dir=tmp_path), *original("t10k"))


@real
@tensorflow
def test_the_builder_takes_the_mnist_of_tfds(few, tmp_path):
    data.load("mnist", data_dir=tmp_path / "one", manual_dir=f"{REAL}/mnist")
    ours = data.load("stacked_mnist", data_dir=tmp_path / "one")
    assert content(ours) == content(data.load("stacked_mnist", data_dir=tmp_path / "two", manual_dir=f"{REAL}/mnist"))


# --- modes


class Level(nn.Module):
    """Tells ten grey levels apart: those of an image are -1, -7/9 ... 1."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x):
        return -jnp.square(x.mean((1, 2, 3))[:, None] - jnp.linspace(-1, 1, 10)), None


def painted(modes):
    """(n,) -> images (n, 2, 2, 3) whose channels have the level of the mode's hundreds, tens and ones."""
    digits = np.stack([modes // 100, modes // 10 % 10, modes % 10], axis=-1)
    levels = np.linspace(-1, 1, 10)[digits].astype(np.float32)
    return np.broadcast_to(levels[:, None, None], (len(modes), 2, 2, 3))


def test_modes_are_counted():
    count = Coverage(Level(), {}, 3, 0.99)
    every = np.arange(1000)
    np.testing.assert_array_equal(count.mode(painted(every)), every)
    assert count(painted(every)) == {"modes": 1000, "reverse_kl": 0, "accuracy": 0.99}
    # Two modes, three to one: 3/4 ln 750 + 1/4 ln 250.
    found = count(painted(np.array([123, 123, 123, 987])))
    assert found["modes"] == 2 and found["reverse_kl"] == pytest.approx(0.75 * np.log(750) + 0.25 * np.log(250))
    with pytest.raises(InputError, match="images of 1 channels: this classifier counts modes of 3"):
        count(np.zeros((5, 2, 2, 1), np.float32))


def test_a_perfect_sampler_is_not_at_zero():
    """26,000 uniform draws of k = 1,000 modes: (k - 1) / 2n + (k² - 1) / 12n² = 0.01934; and all modes are there."""
    rng = np.random.default_rng(0)
    draws = rng.multinomial(26_000, np.full(1000, 1e-3), 200)
    assert np.mean([reverse_kl(counts) for counts in draws]) == pytest.approx(0.01934, abs=2e-4)
    assert np.count_nonzero(draws) == draws.size
    one = Coverage(Level(), {}, 3, 1.0)(painted(rng.integers(1000, size=26_000)))
    assert one["modes"] == 1000 and 0.0165 < one["reverse_kl"] < 0.0225  # ± 3.5 standard deviations


@pytest.fixture(scope="module")
def stacked():
    """4,000 stacks of the 8x8 digits, as a source."""
    small = arrays.arrays()
    drawn = np.random.default_rng(0).integers(1797, size=(4000, 3))
    image = small["image"][drawn][..., 0].transpose(0, 2, 3, 1)
    label = (small["label"][drawn] @ [100, 10, 1]).astype(np.int32)
    return data.Source("stacked", 4000, (8, 8, 3), 1000, lambda i: {"image": image[i], "label": label[i]})


@pytest.mark.slow
def test_a_classifier_of_channels(stacked, tmp_path, monkeypatch):
    learn, seen = coverage._fit, []
    monkeypatch.setattr(coverage, "STEPS", 150)
    monkeypatch.setattr(coverage, "_fit", lambda *given: seen.append(given) or learn(*given))
    found = coverage.train(stacked, tmp_path)
    assert (found.channels, found.modes) == (3, 1000) and found.accuracy > 0.95
    # Stacks share digits. Each is learnt or held out, once; 1,797 of them were drawn 12,000 times.
    ((_, images, labels),) = seen
    small = arrays.arrays()
    class_of = dict(zip((x.tobytes() for x in small["image"]), small["label"].tolist(), strict=True))
    assert [class_of[x.tobytes()] for x in images] == labels.tolist()
    drawn = len({x.tobytes() for x in small["image"]}) - 5
    assert len({x.tobytes() for x in images}) == len(images) and drawn * 6 / 7 - 1 < len(images) <= 1797 * 6 / 7
    # Three digits are read in their order.
    given = stacked.read(np.arange(1000))
    floats = given["image"].astype(np.float32) / 127.5 - 1
    assert np.mean(found.mode(floats) == given["label"]) > 0.9
    few = floats[given["label"] // 100 == 3]
    assert found(few)["modes"] < 130 and found(few)["reverse_kl"] > np.log(8)
    # Kept, and learnt again where the file is damaged.
    assert coverage.train(stacked, tmp_path)(few) == found(few) and len(seen) == 1
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-30])
    assert coverage.train(stacked, tmp_path)(few) == found(few) and len(seen) == 2


def test_classes_that_are_not_those_of_channels(stacked):
    source = data.Source("photos", 9, (8, 8, 3), 10, stacked.read)
    with pytest.raises(InputError, match="modes of photos cannot be counted channel by channel: 10 classes of 3"):
        coverage.train(source)


def test_modes_of_one_picture_cannot_be_learnt():
    source = data.Source(
        "flat", 40, (8, 8, 1), 4, lambda i: {"image": np.zeros((len(i), 8, 8, 1), np.uint8), "label": i % 4}
    )
    with pytest.raises(InputError, match="modes of flat: all its channels are one picture; expected at least 2"):
        coverage.train(source)
