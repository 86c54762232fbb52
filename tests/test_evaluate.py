"""From images to a table: any division of the work gives the same figures, which fall and rise as they should."""

import dataclasses
import functools
import gzip
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from experiments import evaluate, image, image_evaluation
from jaxgan import checkpoint, data, sources, trained
from jaxgan.errors import InputError
from jaxgan.images import to_uint8
from jaxgan.metrics import classify, embed, judge, measure, parzen, reference
from jaxgan.models import mlp
from tests import runs
from tests.runs import compile_quickly, narrow_dense, optimised_classifier

__all__ = ["compile_quickly", "narrow_dense", "optimised_classifier"]  # fixtures


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module", autouse=True)
def learn_quickly():
    before, classify.STEPS, measure.SUBSETS = (classify.STEPS, measure.SUBSETS), 300, 3
    yield
    classify.STEPS, measure.SUBSETS = before


@pytest.fixture(scope="module")
def network(digits, tmp_path_factory):
    return embed.classifier(judge.train(digits, 500, tmp_path_factory.mktemp("cache")))


def parts(images, *sizes):
    starts = np.cumsum([0, *sizes])
    return [images[a:b] for a, b in itertools.pairwise(starts)]


def test_no_division_of_the_work_changes_features(digits, network):
    images = digits.read(np.arange(300))["image"]
    whole = embed.embed(network, [images])
    for pieces, devices in ((parts(images, 1, 256, 0, 43), 1), (parts(images, 150, 150), 2), ([images], 2)):
        found = embed.embed(network, pieces, jax.devices()[:devices])
        for a, b in zip(found, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    floats = images.astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(to_uint8(floats), images)
    np.testing.assert_allclose(embed.embed(network, [floats]).features, whole.features, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="no images"):
        embed.embed(network, [])


def test_a_reference_is_kept_under_all_that_it_depends_on(digits, network, tmp_path, monkeypatch):
    first = reference.reference(network, digits, 400, tmp_path)
    assert first.total == 400 and first.features.shape == (400, 64)
    direct = embed.embed(network, [digits.read(first.rows)["image"]])
    np.testing.assert_allclose(first.features, direct.features, rtol=1e-5, atol=1e-5)
    (file,) = (tmp_path / "reference").iterdir()

    other = sources.from_arrays("digits", 255 - data.read_all(digits)["image"], data.read_all(digits)["label"])
    for source, net, count in ((other, network, 400), (digits, embed.pixels(digits.shape), 400), (digits, network, 0)):
        reference.reference(net, source, count, tmp_path)
    assert len(list((tmp_path / "reference").iterdir())) == 4

    make = embed.embed

    def refuse(*_):
        raise AssertionError("made anew")

    monkeypatch.setattr(embed, "embed", refuse)
    again = reference.reference(network, digits, 400, tmp_path)
    np.testing.assert_array_equal(again.features, first.features)
    np.testing.assert_array_equal(again.moments.covariance, first.moments.covariance)
    monkeypatch.setattr(embed, "embed", make)
    file.write_bytes(file.read_bytes()[:-100])
    mended = reference.reference(network, digits, 400, tmp_path)
    np.testing.assert_allclose(mended.features, first.features, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="2000 reference images: digits has 1,797"):
        reference.reference(network, digits, 2000)


def scores(network, real, images, names=("fid", "kid", "is", "precision_recall", "density_coverage", "memorisation")):
    return measure.measure(names, real, embed.embed(network, [images]), network)


def test_a_set_against_itself_and_halves(digits, network):
    everything = data.read_all(digits)["image"]
    real = reference.reference(network, digits)
    same = scores(network, real, everything[real.rows])
    few = scores(network, real, everything[:200], ("memorisation",))
    assert few["authenticity"] == 0  # copies, though of other images than as many of the real ones
    assert abs(same["frechet"]) < 1e-3
    assert same["precision"] == same["recall"] == same["coverage"] == 1 and same["authenticity"] == 0
    assert 4 < same["is"] < 10  # ten classes, of which a classifier so soon is sure or not
    halves = [reference.reference(network, part) for part in split(everything)]
    bias = [scores(network, half, everything, ("fid",))["frechet"] for half in halves]
    assert max(bias) < 1.0 and min(bias) > 1e-3


def split(images):
    order = np.random.default_rng(1).permutation(len(images))
    return [sources.from_arrays("half", images[rows]) for rows in np.array_split(order, 2)]


def test_metrics_say_what_they_lack(digits, network):
    real = reference.reference(network, digits, 100)
    pixels = embed.pixels(digits.shape)
    flat = reference.reference(pixels, digits, 100)
    images = digits.read(np.arange(100))["image"]
    seen = embed.embed(network, [images])
    for wanted, error in (("accuracy", "conditional generator"),):
        with pytest.raises(InputError, match=error):
            measure.measure((wanted,), real, seen, network)
    flat_seen = embed.embed(pixels, [images])
    for wanted, error in (("is", "needs classes"), ("accuracy", "classes of the data set")):
        with pytest.raises(InputError, match=error):
            measure.measure((wanted,), flat, flat_seen, pixels, np.zeros(100, int))
    right = digits.read(np.arange(100))["label"]
    assert measure.measure(("accuracy",), real, seen, network, right)["accuracy"] > 0.9
    assert measure.measure(("accuracy",), real, seen, network, (right + 1) % 10)["accuracy"] < 0.1
    with pytest.raises(InputError, match="2 samples"):
        measure.measure(("precision_recall",), real, embed.embed(network, [images[:2]]), network)


# --- real images, on which the right order is known

WORSE = {
    "noise": lambda images, s: np.clip(images + np.random.default_rng(0).normal(0, 60 * s, images.shape), 0, 255),
    "blur": lambda images, s: ndimage.gaussian_filter(images.astype(float), (0, 0.7 * s, 0.7 * s, 0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_figures_on_real_images_move_as_they_should(name, test_data, tmp_path):
    """1,000 images against 1,000 others: spoilt in degrees, of fewer classes, or repeated."""
    images, labels = (
        np.frombuffer(gzip.decompress(pathlib.Path(test_data, name, f"t10k-{kind}-ubyte.gz").read_bytes()), np.uint8)
        for kind in ("images-idx3", "labels-idx1")
    )
    images, labels = images[16:].reshape(-1, 28, 28, 1)[:4000], labels[8:4008]
    source = sources.from_arrays(name, images[:1000], labels[:1000])
    network = embed.classifier(judge.train(sources.from_arrays(name, images, labels), 1000, tmp_path))
    real = reference.reference(network, source)
    fresh, classes = images[1000:2000], labels[1000:]

    def figures(changed):
        return scores(network, real, np.round(changed).astype(np.uint8))

    clean = figures(fresh)
    for how in WORSE.values():
        spoilt = [clean, *(figures(how(fresh, s)) for s in (1.0, 2.0))]
        for a, b in itertools.pairwise(spoilt):
            assert b["frechet"] > a["frechet"] and b["kid"] > a["kid"]
    noisy = figures(WORSE["noise"](fresh, 2.0))
    assert noisy["precision"] < clean["precision"] - 0.1 and noisy["density"] < clean["density"] - 0.1

    pool = images[1000:]
    fewer = [figures(pool[classes < k][:1000]) for k in (10, 6, 3)]
    for a, b in itertools.pairwise(fewer):
        assert b["frechet"] > a["frechet"] and b["kid"] > a["kid"]
        assert b["recall"] < a["recall"] and b["coverage"] < a["coverage"] - 0.1
        assert b["precision"] > a["precision"] - 0.05
    repeated = [figures(np.resize(fresh[:n], fresh.shape)) for n in (1000, 200, 50)]
    for a, b in itertools.pairwise(repeated):
        assert b["frechet"] > a["frechet"] and b["coverage"] < a["coverage"]


# --- the script


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "short"
    options = {"steps_per_call": 5, "eval_every": 0, "tensorboard": False, "batch_size": 32, "sample_every": 0}
    image.main(image.Config(workdir=str(workdir), model="mlp", conditional=True, steps=5, **options))
    return workdir


def test_a_path_is_as_long_for_the_same_weights_in_bfloat16(digits, monkeypatch):
    monkeypatch.setattr(evaluate, "PATHS", 64)
    real = evaluate.Real(digits, embed.pixels(digits.shape), None, None)
    found = []
    for dtype in (jnp.float32, jnp.bfloat16):
        module = mlp.Generator(digits.shape, latent=4, batch_norm=False, dtype=dtype)
        gan = trained.Trained(module, module.init(jax.random.key(0), jnp.zeros((1, 4)))["params"], {})
        assert gan.precise.generator.dtype == jnp.float32 and (gan.precise is gan) == (dtype == jnp.float32)
        found.append(evaluate.path_length(real, None, evaluate.Subject("one", digits.shape, 0, None, gan), 0))
    assert found[0] == found[1] and found[0]["ppl"] > 0


called = functools.partial(runs.here, script=evaluate)


def test_a_run_is_measured_with_intervals_and_a_picture(run, tmp_path, capfd):
    out = tmp_path / "scores.json"
    names = "fid,kid,is,precision_recall,accuracy,ppl"
    code, text, err = called(
        capfd,
        f"--run={run}",
        f"--metrics={names}",
        "--num=200",
        "--reference_images=300",
        "--repeats=2",
        f"--out={out}",
    )
    assert code == 0, err
    found = json.loads(out.read_text())["results"][str(run)]
    assert len(found["repeats"]) == 2 and found["repeats"][0] != found["repeats"][1]
    assert {"frechet", "kid", "is", "precision", "recall", "accuracy", "ppl"} <= found["repeats"][0].keys()
    assert found["real_images"] == 300 and found["features"] == "classifier"
    assert "±" in text and "recall" in text
    assert found["repeats"][0]["samples"] == 200
    (beside,) = tmp_path.glob("scores-*-short.png")
    assert Image.open(beside).width > 100


def test_classes_are_asked_for_as_often_as_they_are_there(run):
    subject, _ = evaluate.of_run(evaluate.Config(run=(str(run),), num=50), str(run))
    digits = data.load("digits")
    labels = data.labels(digits)
    few = digits.subset(np.concatenate([np.flatnonzero(labels == 3)[:40], np.flatnonzero(labels == 9)[:10]]))
    drawn = subject.draw(0, few)
    assert np.bincount(drawn.labels, minlength=10).tolist() == [0, 0, 0, 40, 0, 0, 0, 0, 0, 10]
    unlabelled = dataclasses.replace(digits, num_classes=0)
    assert np.bincount(subject.draw(0, unlabelled).labels).tolist() == [5] * 10


def test_figures_are_kept_where_one_of_the_two_ways_fails(run, tmp_path, capfd, monkeypatch):
    argv = (f"--run={run}", "--features=pixels", "--metrics=fid", "--num=20", "--reference_images=20")
    monkeypatch.setitem(measure.METRICS, "fid", measure.METRICS["fid"]._replace(function=lambda _: {"fid": np.nan}))
    out = tmp_path / "scores.json"
    code, text, _ = called(capfd, *argv, f"--out={out}")
    assert code == 0 and "nan" in text
    out.unlink()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(evaluate, "table", lambda rows: 1 / 0)
        called(capfd, *argv, f"--out={out}")
    assert np.isnan(json.loads(out.read_text())["results"][str(run)]["repeats"][0]["fid"])

    def full(path, text):
        raise OSError("no space left")

    monkeypatch.setattr(evaluate.files, "write", full)
    monkeypatch.setattr(evaluate, "picture", lambda *_: None)
    code, text, err = called(capfd, *argv, f"--out={out}")
    assert code == 2 and "no space left" in err and "fid" in text


def test_folders_against_folders(tmp_path, capfd, digits):
    for name, rows in (("ours", np.arange(60)), ("theirs", np.arange(60, 120)), ("real", np.arange(120, 240))):
        for i, pixels in zip(rows, digits.read(rows)["image"], strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels[..., 0]).save(tmp_path / name / f"{i}.png")
    out = tmp_path / "scores.json"
    sets = f"folder:{tmp_path / 'ours'},folder:{tmp_path / 'theirs'},folder:{tmp_path / 'real'}"
    argv = ("--features=pixels", "--metrics=fid,precision_recall", f"--out={out}")
    code, text, err = called(capfd, f"--samples={sets}", f"--dataset=folder:{tmp_path / 'real'}", *argv)
    assert code == 0, err
    fids = [row["repeats"][0]["frechet"] for row in json.loads(out.read_text())["results"].values()]
    assert fids[2] < 1e-3 < min(fids[:2]) and len(text.splitlines()) == 5


def test_wrong_calls_are_one_line(run, tmp_path, capfd):
    (tmp_path / "folder.json").mkdir()
    np.savez(tmp_path / "wide.npz", image=np.zeros((20, 5, 8, 1), np.uint8))
    np.savez(tmp_path / "three.npz", image=np.zeros((20, 8, 8, 1), np.uint8), label=np.arange(20) % 3)
    np.savez(tmp_path / "one.npz", image=np.zeros((1, 8, 8, 1), np.uint8))
    for argv, error in (
        ((), "expected either --run="),
        ((f"--run={run}", "--samples=mnist"), "expected either --run="),
        ((f"--run={run},{tmp_path}",), "is not a run"),
        ((f"--run={run}", "--metrics=fad"), "fad"),
        ((f"--run={run}", "--features=inceptoin"), "inception"),
        ((f"--run={run}", "--features=inception"), "pt_inception-2015-12-05-6726825d.pth"),
        ((f"--run={run}", "--num=1"), "--num=1: expected at least 2"),
        ((f"--run={run}", "--reference_images=9999"), "1,797"),
        ((f"--run={run}", "--reference_images=1", "--metrics=fid"), "--reference_images=1: expected 0 (all), or"),
        ((f"--run={run}", "--reference_images=5"), "at least 6"),
        ((f"--run={run}", "--num=5"), "--num=5: expected at least 6"),
        ((f"--run={run}", f"--out={tmp_path / 'folder.json'}"), "is a folder"),
        ((f"--run={run}", "--metrics=cas", "--num=50"), "unknown split"),
        ((f"--samples=npz:{tmp_path / 'wide.npz'}", "--dataset=digits"), "--size"),
        ((f"--samples=npz:{tmp_path / 'one.npz'}", "--dataset=digits", "--features=pixels"), "1 samples"),
        (("--samples=digits", f"--dataset=npz:{tmp_path / 'one.npz'}", "--metrics=fid"), "one.npz has 1 images"),
        (("--samples=digits",), "--samples need --dataset"),
        (("--samples=digits,digits", "--dataset=digits"), "given twice"),
        (("--samples=digits", "--dataset=digits", "--step=3"), "--step=3 is for --run"),
        ((f"--run={run}", "--seed=4294967296"), "--seed=4294967296"),
        ((f"--run={run}", "--out=/proc/x/scores.json"), "cannot write"),
        ((f"--run={run}", "--features=./mine.py:NET"), "no module path"),
        (
            (f"--samples=npz:{tmp_path / 'three.npz'}", "--dataset=digits", "--metrics=accuracy"),
            "classes 0 to 2, digits",
        ),
        ((f"--run={run}", "--out=scores.txt"), "ends in .json"),
    ):
        code, out, err = called(capfd, *argv)
        (line,) = [text for text in err.splitlines() if text.startswith("error: ")]
        assert code == 2 and error in line and "Traceback" not in err and not out, (argv, err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.json", "one.npz", "three.npz", "wide.npz"]


def test_evaluation_in_training(tmp_path, capfd):
    from tests.runs import here, lines

    argv = ["--width=4", "--latent=8", "--batch_size=8", "--steps=4", "--steps_per_call=2", "--eval_every=2"]
    argv += [
        "--notensorboard",
        "--sample_every=0",
        "--checkpoint_every=2",
        "--eval_samples=64",
        "--conditional",
        "--features=pixels",
    ]
    code, _, err = here(capfd, *argv, f"--workdir={tmp_path / 'run'}", "--metrics=kid,precision_recall,fid")
    assert code == 0, err
    rows = [json.loads(line) for line in lines(tmp_path / "run")]
    assert {"eval/frechet", "eval/kid", "eval/precision", "eval/recall"} <= rows[-1].keys()
    best = min(range(2), key=lambda i: rows[i]["eval/kid"])
    assert checkpoint.Checkpoints(tmp_path / "run" / "checkpoints", best="eval/kid").best() == 2 * best + 2
    assert image_evaluation.best(image.Config(metrics=("precision_recall",))) == "max:eval/recall"


MEAN = embed.Network("mean", "of pixels", lambda params, images: (images.mean((1, 2)), None))


def test_features_of_a_fork(run, capfd):
    code, _, err = called(capfd, f"--run={run}", "--features=tests.test_evaluate:MEAN", "--metrics=fid", "--num=50")
    assert code == 0, err
    code, _, err = called(capfd, f"--run={run}", "--features=tests.test_evaluate:mean", "--metrics=fid", "--num=50")
    assert code == 2 and "MEAN" in err


def test_sigma_is_not_chosen_by_images_that_were_learnt(digits):
    """Samples that are copies have no other image near them: σ is that of images which are new to them."""
    everything = data.read_all(digits)["image"]
    learnt, unseen = everything[:300], everything[300:700]

    def figure(count):
        test = sources.from_arrays("unseen", unseen[:count])
        real = evaluate.Real(sources.from_arrays("learnt", learnt), None, None, lambda: test)
        return evaluate.likelihood(real, evaluate.Samples(learnt, None), None, 0), real.tested["image"]

    found, tested = figure(400)
    assert figure(400)[0] == found
    samples, one, other = (x.astype(np.float32) / 255 for x in (learnt, tested[:200], tested[200:]))
    expected = parzen.evaluate(samples, one, other)
    assert found == {"parzen": expected.mean, "parzen_error": expected.error}
    assert expected.mean > parzen.evaluate(samples, samples, other).mean + 100
    with pytest.raises(InputError, match="2 images of --test_split: expected at least 3"):
        figure(2)


def test_what_no_evaluation_could_measure_is_said_before_training(tmp_path, capfd):
    from tests.runs import here

    def of(n):
        np.savez(tmp_path / f"one{n}.npz", image=np.arange(64 * n, dtype=np.uint8).reshape(n, 8, 8, 1))
        return f"--dataset=npz:{tmp_path / f'one{n}.npz'}"

    plain = of(20)
    for argv, error in (
        (("--metrics=fid", "--features=inceptoin"), "inception"),
        (("--metrics=fid", "--features=inception"), "pt_inception-2015-12-05-6726825d.pth"),
        (("--metrics=accuracy",), "needs --conditional"),
        (("--metrics=is", "--features=pixels"), "needs classes"),
        (("--metrics=density_coverage", "--eval_samples=5"), "--eval_samples=5: expected at least 6"),
        (("--metrics=memorisation",), "does not tell a best checkpoint"),
        (("--metrics=is", plain), "--metrics=is needs labels of two classes"),
        (("--metrics=modes", plain), "--metrics=modes: modes of npz:"),
        (("--metrics=is", "--features=tests.test_evaluate:MEAN"), "tests.test_evaluate:MEAN do not tell"),
        ((of(1),), "--metrics=distance needs at least 4 real images"),
        ((of(3),), "one3.npz has 3"),
        (("--metrics=fid", of(3)), "--metrics=fid needs at least 4"),
        (("--metrics=precision_recall", of(3)), "--metrics=precision_recall needs at least 4"),
        (("--metrics=fid", "--features=pixels", of(1)), "--metrics=fid needs at least 2"),
    ):
        for also in ((), ("--dry_run",)):
            code, out, err = here(capfd, *argv, *also, f"--workdir={tmp_path / 'run'}")
            assert (code, out) == (2, "") and err.count("\n") == 1 and error in err, (argv, err)
    assert not (tmp_path / "run").exists()
