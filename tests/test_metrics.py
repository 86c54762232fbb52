"""Fréchet distances against closed forms and SciPy; the judge on the digits, where the right answers are known."""

import dataclasses
import io

import jax
import numpy as np
import pytest
import scipy.linalg

from jaxgan import data
from jaxgan.metrics import classify, judge
from jaxgan.metrics.frechet import Moments, distance, moments
from tests.runs import optimised_classifier

__all__ = ["optimised_classifier"]  # a fixture

SAMPLES = 500


def rotation(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def gaussian(rng, d, scale=1.0):
    """Random moments whose covariance has a condition number of about a thousand."""
    axes = rotation(rng, d)
    return Moments(rng.normal(size=d), scale * (axes * np.geomspace(1e-3, 1, d)) @ axes.T)


def by_sqrtm(a, b):
    """The formula as it is printed, with the square root of a matrix that is not symmetric."""
    cross = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    assert np.abs(np.imag(cross)).max() < 1e-6
    return np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * np.real(cross))


@pytest.mark.parametrize("d", [1, 2, 7, 64])
def test_distance_is_the_formula(d):
    rng = np.random.default_rng(d)
    for scale in (0.01, 1.0, 300.0):
        a, b = gaussian(rng, d), gaussian(rng, d, scale)
        assert distance(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-6, abs=1e-9)
        assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9)
        assert isinstance(distance(a, b), float)


@pytest.mark.parametrize("d", [1, 5, 64])
def test_distance_has_closed_forms(d):
    rng = np.random.default_rng(d)
    a = gaussian(rng, d)
    trace = np.trace(a.covariance)
    assert distance(a, a) == pytest.approx(0, abs=1e-6 * trace)
    shift = rng.normal(size=d)
    assert distance(a, Moments(a.mean + shift, a.covariance)) == pytest.approx(shift @ shift, rel=1e-6)
    for factor in (0.0, 0.25, 9.0):  # tr(A) (1 - √factor)²
        scaled = Moments(a.mean, factor * a.covariance)
        assert distance(a, scaled) == pytest.approx(trace * (1 - np.sqrt(factor)) ** 2, rel=1e-6)
    # Gaussians with the same axes: Σ (√aᵢ - √bᵢ)².
    axes, x, y = rotation(rng, d), rng.uniform(size=d), rng.uniform(size=d)
    one, other = (Moments(np.zeros(d), (axes * v) @ axes.T) for v in (x, y))
    assert distance(one, other) == pytest.approx(np.sum((np.sqrt(x) - np.sqrt(y)) ** 2), rel=1e-6)


@pytest.mark.parametrize("least", [1e-8, 1e-16, 0.0])
def test_distance_of_gaussians_that_are_nearly_flat(least):
    """Features of a layer with dead units, or of fewer images than features: eigenvalues near or at zero."""
    rng, d = np.random.default_rng(0), 48
    axes = rotation(rng, d)
    x = np.where(np.arange(d) < 24, least, np.geomspace(1e-4, 1, d))
    y = np.where(np.arange(d) < 12, least, 2 * x)
    one, other = (Moments(np.zeros(d), (axes * v) @ axes.T) for v in (x, y))
    expected = np.sum((np.sqrt(x) - np.sqrt(y)) ** 2)
    assert distance(one, other) == pytest.approx(expected, abs=1e-6 * x.sum())
    assert distance(one, one) == pytest.approx(0, abs=1e-6 * x.sum())


def test_moments_are_those_of_numpy_in_float64():
    x = (np.random.default_rng(0).normal(size=(300, 5)) + 1e4).astype(np.float32)
    found = moments(x)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    centred = x.astype(np.float64) - x.astype(np.float64).mean(0)
    np.testing.assert_allclose(found.covariance, centred.T @ centred / 299, rtol=1e-9)
    one = moments(x[:, :1])
    assert one.covariance.shape == (1, 1)
    assert one.covariance[0, 0] == pytest.approx(x[:, 0].astype(np.float64).var(ddof=1))
    # One dimension: (μa - μb)² + (σa - σb)².
    other = moments(2 * x[:, :1])
    gap, spread = one.mean[0], np.sqrt(one.covariance[0, 0])
    assert distance(one, other) == pytest.approx(gap**2 + spread**2, rel=1e-9)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(digits, cache):
    return judge.train(digits, SAMPLES, cache)


@pytest.fixture(scope="module")
def real(digits):
    """All digits as floats, with their labels, in an order of the test's own."""
    rows = np.random.default_rng(7).permutation(digits.num_examples)
    found = digits.read(rows)
    return found["image"].astype(np.float32) / 127.5 - 1, found["label"]


def test_judge_knows_the_digits(trained, digits, real):
    assert trained.accuracy > 0.95
    images, labels = real
    assert trained(images).keys() == {"distance", "halves", *(f"share_{i}" for i in range(10))}
    shares = np.array([trained(images)[f"share_{i}"] for i in range(10)])
    assert shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(shares, np.bincount(labels) / len(labels), atol=0.01)
    # `labels` are those of real images, in random order, and all of them.
    np.testing.assert_array_equal(np.bincount(trained.labels), np.bincount(labels))
    assert len(set(trained.labels[:50])) == 10


def test_distances_are_in_order(trained, real):
    images, labels = real
    rng = np.random.default_rng(0)
    scores = {
        "real": trained(images),
        "part": trained(images[:SAMPLES]),
        "blurred": trained(np.clip(images + rng.normal(0, 0.4, images.shape), -1, 1).astype(np.float32)),
        "three classes": trained(images[labels < 3]),
        "one class": trained(images[labels == 3]),
        "noise": trained(rng.uniform(-1, 1, images.shape).astype(np.float32)),
    }
    distances = {name: score["distance"] for name, score in scores.items()}
    assert distances["real"] == pytest.approx(0, abs=1e-3)  # features in float32, batches of another order
    assert distances["real"] < distances["part"] < distances["blurred"] < distances["three classes"]
    assert distances["three classes"] < distances["one class"]
    assert distances["noise"] > 10 * distances["part"]
    assert scores["one class"]["share_3"] > 0.95
    for score in scores.values():
        assert sum(score[f"share_{i}"] for i in range(10)) == pytest.approx(1)
        assert score["halves"] == trained.halves


def test_halves_are_the_yardstick(trained, real):
    """Other halves of the same size are as far from each other; a half is nearer to the whole."""
    images, _ = real
    first, second = images[:SAMPLES], images[SAMPLES : 2 * SAMPLES]
    other = dataclasses.replace(trained, reference=judge_moments(trained, first))
    assert trained.halves / 2 < other(second)["distance"] < 2 * trained.halves
    assert 0 < trained(first)["distance"] < trained.halves
    assert trained(images)["distance"] < trained.halves / 20


def judge_moments(trained, images):
    """The moments of images in the eyes of a judge, one image at a time rather than in batches."""
    variables = trained.params
    return moments(np.concatenate([trained.classifier.apply(variables, x)[1] for x in np.array_split(images, 9)]))


def no_training(*_):
    raise AssertionError("the classifier was trained again")


def test_the_cache_gives_the_same_numbers(trained, digits, real, cache, monkeypatch):
    images, _ = real
    (file,) = cache.iterdir()
    assert file.name.startswith("classifier-")
    monkeypatch.setattr(classify, "train", no_training)
    again = judge.train(digits, SAMPLES, cache)
    assert (again.accuracy, again.halves) == (trained.accuracy, trained.halves)
    assert again(images[:100]) == trained(images[:100])
    # The yardstick follows the number of samples; the classifier does not depend on it.
    assert judge.train(digits, 100, cache).halves > trained.halves
    # Other data, be it one pixel, is another judge's business.
    image = digits.read(np.arange(digits.num_examples))["image"].copy()
    image[5, 3, 3] ^= 1
    other = dataclasses.replace(digits, read=lambda i: digits.read(i) | {"image": image[i]})
    with pytest.raises(AssertionError, match="trained again"):
        judge.train(other, SAMPLES, cache)


def damages(whole):
    arrays = dict(np.load(io.BytesIO(whole)))
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array[:1] for name, array in arrays.items()})
    one_less = io.BytesIO()
    np.savez(one_less, **dict(list(arrays.items())[1:]))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    return {
        "empty": b"",
        "no archive": b"classifier",
        "cut short": whole[: len(whole) // 2],
        "without its end": whole[:-30],
        "one bit": bytes(flipped),
        "other shapes": buffer.getvalue(),
        "one array less": one_less.getvalue(),
    }


def test_a_damaged_cache_is_ignored_and_mended(trained, digits, cache, tmp_path, monkeypatch):
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    calls = []
    monkeypatch.setattr(classify, "train", lambda *_: calls.append(1) or trained.params)
    for count, (kind, broken) in enumerate(damages(whole).items(), 1):
        (tmp_path / file.name).write_bytes(broken)
        again = judge.train(digits, SAMPLES, tmp_path)
        assert len(calls) == count, kind
        assert (again.accuracy, again.halves) == (trained.accuracy, trained.halves)
        assert judge.train(digits, SAMPLES, tmp_path).halves == trained.halves and len(calls) == count, kind
        assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_a_cache_that_cannot_be_written_is_no_error(trained, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(classify, "train", lambda *_: trained.params)
    (tmp_path / "file").write_text("in the way")
    assert judge.train(digits, SAMPLES, tmp_path / "file" / "cache").halves == trained.halves
    assert judge.train(digits, SAMPLES).halves == trained.halves


def unlabelled(image):
    label = np.zeros(len(image), np.int32)
    return data.Source("bare", len(image), image.shape[1:], 0, lambda i: {"image": image[i], "label": label[i]})


def held_out(n):
    return -(-n // judge.HELD_OUT)


def turned(images, labels, originals):
    """Whether each image is one of the originals, turned as often as its label says."""
    whole = {x.tobytes() for x in originals}
    return all(np.rot90(x, -k).tobytes() in whole for x, k in zip(images, labels, strict=True))


def test_unlabelled_images_are_judged_by_rotations(digits, tmp_path, monkeypatch):
    image = digits.read(np.arange(1000))["image"]
    learn, seen = classify.train, []
    monkeypatch.setattr(classify, "STEPS", 150)
    monkeypatch.setattr(classify, "train", lambda *given: seen.append(given) or learn(*given))
    found = judge.train(unlabelled(image), 300, tmp_path)
    ((_, images, labels),) = seen
    assert images.shape == (1000 - held_out(1000), 8, 8, 1) and set(labels.tolist()) == {0, 1, 2, 3}
    assert turned(images, labels, image)
    assert found.labels is None and found.classifier.num_classes == 4
    assert found.accuracy > 0.45  # by chance 0.25
    floats = image.astype(np.float32) / 127.5 - 1
    score = found(floats)
    assert score.keys() == {"distance", "halves"} and score["distance"] == pytest.approx(0, abs=1e-3)
    noise = np.random.default_rng(0).uniform(-1, 1, floats.shape).astype(np.float32)
    assert found(noise)["distance"] > 10 * found.halves > 0
    monkeypatch.setattr(classify, "train", no_training)
    assert judge.train(unlabelled(image), 300, tmp_path)(floats) == score


@pytest.mark.parametrize(("width", "turns"), [(8, [0, 1, 2, 3]), (6, [0, 2])])
def test_every_turn_is_learnt_and_held_out_alike(digits, width, turns, monkeypatch):
    """Four turns of a square image, two of another. Were one never held out, the accuracy would say nothing of it."""
    image = np.ascontiguousarray(digits.read(np.arange(420))["image"][:, :, :width])
    seen = []

    def learn(classifier, images, labels):
        seen.append((images, labels))
        return classifier.init(jax.random.key(0), images[:1].astype(np.float32))

    monkeypatch.setattr(classify, "train", learn)
    judge.train(unlabelled(image), 20)
    ((images, labels),) = seen
    assert images.shape == (420 - held_out(420), 8, width, 1) and turned(images, labels, image)
    found, counts = np.unique(labels, return_counts=True)
    assert found.tolist() == turns
    held = 420 / len(turns) - counts  # each turn is given to as many of the images
    assert held.min() > 0.8 * held.mean(), f"held out of the turns {turns}: {held}"
