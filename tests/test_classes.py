"""Classes by name and by number: order, selection, identity."""

import dataclasses
import functools
import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import anomaly, augment, evaluate, infogan, interpret, transfer
from jaxgan import classes, data, flags, folders, sources
from jaxgan.errors import InputError
from jaxgan.metrics import diagnose
from tests.runs import QUIET, here, same_run, snapshot


def test_numeric_names_are_in_numeric_order():
    assert classes.ordered(map(str, range(12))) == [str(i) for i in range(12)]
    assert classes.ordered(["cat", "10", "9", "ant", "02"]) == ["02", "9", "10", "ant", "cat"]


@pytest.mark.parametrize(
    ("wanted", "names", "count", "numbers"),
    [
        (("cat", "0"), ("ant", "bee", "cat"), 3, (2, 0)),
        (("10", "11"), tuple(map(str, range(12))), 12, (10, 11)),
        (("3", 4), (), 5, (3, 4)),
        (("#2", "#0"), tuple("1234"), 4, (2, 0)),
        (("7",), ("00", "07"), 2, (1,)),
        (("01",), ("01", "02", "03"), 3, (0,)),
        ((1,), ("2", "1"), 2, (1,)),  # an integer is a number
    ],
)
def test_classes_are_selected_by_name_or_number(wanted, names, count, numbers):
    assert classes.resolve(wanted, names, count, "photos") == numbers


@pytest.mark.parametrize(
    ("wanted", "names", "count", "message"),
    [
        ("3", tuple("123456789"), 9, r"'3' of photos has the number 2, and 3 is the number of '4'; write #2 .* 1 to 9"),
        (
            "cot",
            ("ant", "bee", "cat"),
            3,
            r"--classes=cot: no class cot of photos; did you mean 'cat'\? .* ant, bee, c",
        ),
        ("5", (), 5, "no class 5 of photos; .* 0 to 4"),
        ("-1", (), 5, "no class -1"),
        ("#9", ("a", "b"), 2, "no class .*9 of photos"),
        ("a", (), 0, "it has no labels"),
    ],
)
def test_a_class_that_is_not_there_or_ambiguous_is_refused(wanted, names, count, message):
    with pytest.raises(InputError, match=message):
        classes.resolve((wanted,), names, count, "photos")


def test_long_lists_are_shortened():
    assert classes.shown((), 10) == "0 to 9" and classes.shown((), 0) == "no labels"
    assert classes.shown(("ant", "bee")) == "ant, bee"
    assert classes.shown([f"n{i:03}" for i in range(1000)]).endswith("n011 and 988 more")


# --- folders and files


def save(path, level, n=4):
    """n images of 8x8 pixels about this grey level, no two alike."""
    path.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = np.full((8, 8), level, np.uint8)
        pixels[i % 8, i // 8] ^= 1
        Image.fromarray(pixels).save(path / f"{i}.png")


@pytest.fixture
def numbered(tmp_path):
    """Folders 0 to 11, of the grey level 20 times their number."""
    for k in range(12):
        save(tmp_path / "numbered" / str(k), 20 * k)
    return tmp_path / "numbered"


@pytest.fixture
def animals(tmp_path):
    for k, name in enumerate(("ant", "bee", "cat")):
        save(tmp_path / "animals" / name, 80 * k)
    return tmp_path / "animals"


def levels(source):
    """{label: the most frequent grey level of its images}."""
    found = data.read_all(source)
    return {int(k): int(np.median(found["image"][found["label"] == k])) for k in np.unique(found["label"])}


def test_numeric_folder_names_are_classes_in_numeric_order(numbered):
    source = data.load(f"folder:{numbered}")
    assert source.class_names == tuple(map(str, range(12)))
    assert levels(source) == {k: 20 * k for k in range(12)}
    some = source.only(("11", "10"))
    assert some.class_names == ("11", "10") and levels(some) == {0: 220, 1: 200}
    (numbered / "0").rename(numbered / "12")
    with pytest.raises(InputError, match=r"--classes=3: the class '3' of .* has the number 2"):
        data.load(f"folder:{numbered}").only(("3",))


def test_a_class_without_images_is_refused(tmp_path):
    image = np.zeros((6, 8, 8), np.uint8)
    for label, others, filled in (([1, 2] * 3, "", "1,2"), ([0, 5, 9] * 2, ", nor have 2, 3, 4, 6, 7, 8", "0,5,9")):
        np.savez(tmp_path / "x.npz", image=image, label=label)
        source = data.load(f"npz:{tmp_path}/x.npz")
        with pytest.raises(InputError, match=f"class . of npz:.* has no images{others}; --classes={filled} trains"):
            sources.check_filled(source)
        some = source.only(filled.split(","))
        sources.check_filled(some)
        assert some.class_names == tuple(filled.split(",")) and np.bincount(some.label).min() > 0
    named = sources.from_arrays("named", image, np.zeros(6, int), class_names=("ant", "bee"))
    with pytest.raises(InputError, match="class bee of named has no images; --classes=ant"):
        sources.check_filled(named)
    # Labels that are not in memory, as those of TFDS, are looked at when all images are read.
    hidden = dataclasses.replace(named, label=None)
    feed = data.place(hidden, batch_size=2, devices=jax.devices()[:1], filled=True)
    with pytest.raises(InputError, match="class bee of named has no images"):
        feed.resident  # noqa: B018
    with pytest.raises(InputError, match="class bee of named has no images"):
        sources.check_filled(named.subset(np.arange(3)))


def test_a_test_split_may_lack_a_class_and_has_the_numbers_of_training(tmp_path):
    for split, names in {"train": "ant bee cat", "test": "bee cat", "val": "bee dog"}.items():
        for name in names.split():
            save(tmp_path / split / name, {"ant": 0, "bee": 80, "cat": 160, "dog": 240}[name])
    load = functools.partial(data.load, f"folder:{tmp_path}")
    source = load("train")
    test = sources.held_out(load, source, "train", "test")
    assert test.class_names == source.class_names and levels(test) == {1: 80, 2: 160}
    cats = source.only(("cat", "ant"))
    assert levels(sources.held_out(load, cats, "train", "test")) == {0: 160}
    with pytest.raises(sources.OtherClasses, match=r"\('bee', 'dog'\).*\('ant', 'bee', 'cat'\)"):
        sources.held_out(load, source, "train", "val")
    # A diagnosis takes no images of other classes for held-out ones.
    for name in ("bee", "cat"):
        (tmp_path / "test" / name).rename(tmp_path / "test" / f"other-{name}")
    kept, held = diagnose.held_out(data.load(f"folder:{tmp_path}").subset(np.arange(12).repeat(5)), "train", load)
    assert (kept.num_examples, held.num_examples) == (54, 6)


# --- runs


TINY = ("--model=mlp", "--batch_size=4", "--latent=4", "--steps_per_call=2", "--checkpoint_every=2", *QUIET)


def run(capfd, workdir, dataset, *argv, steps=2):
    return here(
        capfd, *TINY, "--conditional", f"--dataset={dataset}", f"--steps={steps}", *argv, f"--workdir={workdir}"
    )


def test_classes_are_named_and_a_class_by_name_is_trained_on(animals, tmp_path, capfd):
    code, out, err = run(capfd, tmp_path / "run", f"folder:{animals}", "--classes=cat,0", "--dry_run")
    assert code == 0 and "8 images of 8x8x1, 2 classes: cat, ant" in out, (out, err)
    code, out, err = run(capfd, tmp_path / "run", f"folder:{animals}", "--classes=cat,0")
    assert code == 0 and "training on 8 examples of 2 classes: cat, ant\n" in err, err
    assert flags.read(tmp_path / "run")["data"]["classes"] == ["cat", "ant"]
    code, out, err = run(capfd, tmp_path / "other", f"folder:{animals}", "--classes=cot,ant")
    assert code == 2 and "did you mean 'cat'?" in err and not (tmp_path / "other").exists()


def test_a_renamed_class_is_refused_wherever_the_run_meets_its_data(animals, tmp_path, capfd):
    workdir = tmp_path / "run"
    assert run(capfd, workdir, f"folder:{animals}")[0] == 0
    before = snapshot(workdir)
    (animals / "ant").rename(animals / "dog")
    both = ("bee, cat, dog", "ant, bee, cat")
    for dry in ((), ("--dry_run",)):
        code, _, err = run(capfd, workdir, f"folder:{animals}", *dry, steps=4)
        assert code == 2 and all(words in err for words in both) and err.count("\n") == 1, err
    augmented = ("--per_class=2", f"--run={workdir}", f"--dataset=folder:{animals}", f"--workdir={tmp_path / 'worth'}")
    shown = (f"--run={workdir}", f"--out={tmp_path / 'page'}", "--num=16")
    for script, argv in ((evaluate, (f"--run={workdir}",)), (interpret, shown), (augment, augmented)):
        code, _, err = here(capfd, *argv, script=script)
        assert code == 2 and all(words in err for words in both) and err.count("\n") == 1, err
    assert snapshot(workdir) == before
    (animals / "dog").rename(animals / "ant")
    assert run(capfd, workdir, f"folder:{animals}", steps=4)[0] == 0


def test_a_run_in_the_order_of_texts_resumes_bit_exactly(numbered, tmp_path, capfd, monkeypatch):
    """As older versions had the classes: 0, 1, 10, 11, 2, ..."""
    with monkeypatch.context() as patch:
        patch.setattr(folders, "ordered", sorted)
        for name in ("whole", "old"):
            assert run(capfd, tmp_path / name, f"folder:{numbered}", steps=4 if name == "whole" else 2)[0] == 0
    stored = json.loads((tmp_path / "old/config.json").read_text())
    assert stored["data"]["classes"][2] == "10"
    del stored["data"]["digest"]
    (tmp_path / "old/config.json").write_text(json.dumps(stored))
    code, _, err = run(capfd, tmp_path / "old", f"folder:{numbered}", steps=4)
    assert code == 0, err
    same_run(tmp_path / "whole", tmp_path / "old")
    config = evaluate.Config(run=(str(tmp_path / "old"),))
    _, known = evaluate.of_run(config, str(tmp_path / "old"))
    real = evaluate.load(config, known, known["dataset"], "train")
    assert levels(real)[2] == 200 and real.class_names[2] == "10"


def test_numbers_that_an_older_run_stored_for_classes_still_fit(animals, tmp_path, capfd):
    workdir = tmp_path / "run"
    assert run(capfd, workdir, f"folder:{animals}", "--classes=2,0")[0] == 0
    stored = json.loads((workdir / "config.json").read_text())
    stored["config"]["classes"] = [2, 0]
    del stored["data"]["digest"]
    (workdir / "config.json").write_text(json.dumps(stored))
    _, known = evaluate.of_run(evaluate.Config(run=(str(workdir),)), str(workdir))
    assert evaluate.load(evaluate.Config(), known, known["dataset"], "train").class_names == ("cat", "ant")
    code, _, err = run(capfd, workdir, f"folder:{animals}", "--classes=2,0", steps=4)
    assert code == 0, err
    code, _, err = run(capfd, workdir, f"folder:{animals}", "--classes=2,1", steps=6)
    assert code == 2 and "the classes cat, bee" in err and "trained on cat, ant" in err and "--classes=cat,ant" in err


def test_other_images_of_the_same_number_are_refused_and_a_moved_folder_is_not(animals, tmp_path, capfd):
    workdir, moved = tmp_path / "run", tmp_path / "elsewhere"
    assert run(capfd, workdir, f"folder:{animals}")[0] == 0
    animals.rename(moved)
    code, _, err = run(capfd, workdir, f"folder:{moved}", steps=4)
    assert code == 0 and flags.read(workdir)["config"]["dataset"] == f"folder:{moved}", err
    (moved / "cat" / "0.png").rename(moved / "cat" / "00.png")
    before = snapshot(workdir)
    code, _, err = run(capfd, workdir, f"folder:{moved}", steps=6)
    assert code == 2 and "other images than this run began with" in err and "another --workdir" in err
    code, _, err = run(capfd, workdir, f"folder:{moved}", "--dry_run", steps=6)
    assert code == 2 and "other images than this run began with" in err
    shutil.copytree(moved, tmp_path / "third")
    code, _, err = run(capfd, workdir, f"folder:{tmp_path / 'third'}", steps=6)
    assert code == 2 and "dataset is" in err and snapshot(workdir) == before
    stored = json.loads((workdir / "config.json").read_text())
    del stored["data"]["digest"]  # of an older version
    (workdir / "config.json").write_text(json.dumps(stored))
    assert run(capfd, workdir, f"folder:{moved}", steps=6)[0] == 0


def test_the_digest_of_a_file_is_that_of_its_arrays(tmp_path):
    image, label = np.arange(6 * 64, dtype=np.int64).astype(np.uint8).reshape(6, 8, 8), np.arange(6) % 2
    np.savez(tmp_path / "a.npz", image=image, label=label)
    np.savez_compressed(tmp_path / "b.npz", label=label, image=image)
    np.savez(tmp_path / "c.npz", image=image[::-1], label=label)
    np.savez(tmp_path / "d.npz", image=image, label=1 - label)
    a, b, c, d = (data.load(f"npz:{tmp_path}/{name}.npz", size="4").digest(None) for name in "abcd")
    assert a == b and len({a, c, d}) == 3
    source = data.load("digits")
    rows = np.array([3, 1])
    assert source.subset(rows).digest(None) == source.subset(np.arange(9)).subset(rows).digest(None)
    assert source.subset(rows).digest(None) != source.subset(rows[::-1]).digest(None) != source.digest(None)


def test_a_file_in_another_ones_place_is_decoded_again(animals, tmp_path):
    """Of the same size, with the same time: `cp -p`, `rsync -t`."""
    cache = tmp_path / "cache"
    data.read_all(data.load(f"folder:{animals}", cache=cache))
    file = animals / "ant" / "0.png"
    status = file.stat()
    for swap in (True, False):
        pixels = np.full((8, 8), 7 if swap else 9, np.uint8)
        pixels[0, 0] ^= 1
        new = tmp_path / "new.png"
        Image.fromarray(pixels).save(new)
        if new.stat().st_size != status.st_size:
            new.write_bytes(new.read_bytes().ljust(status.st_size, b"\0"))
        if swap:
            os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
            new.replace(file)
        else:
            file.write_bytes(new.read_bytes())
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        found = data.read_all(data.load(f"folder:{animals}", cache=cache))
        assert found["image"][0, 1, 1, 0] == pixels[1, 1] and file.stat().st_mtime_ns == status.st_mtime_ns


# --- what a demonstration is set to


def test_a_demonstration_s_classes_are_not_asked_of_other_data(animals, tmp_path, capfd):
    assert run(capfd, tmp_path / "source", f"folder:{animals}")[0] == 0
    photos = tmp_path / "photos"
    shutil.copytree(animals, photos)
    argv = (f"--dataset=folder:{photos}", "--num_images=0", "--dry_run", f"--workdir={tmp_path / 'to'}")
    argv += ("--method=finetune",)
    code, out, err = here(capfd, f"--source_run={tmp_path / 'source'}", *argv, script=transfer)
    assert code == 0 and "6 images of 8x8x1 to choose from, 3 classes: ant, bee, cat" in out, err
    code, out, err = here(capfd, *argv, script=transfer)
    assert code == 2 and "expected --source_run=RUN, or --source_preset=NAME" in err
    code, out, err = here(capfd, "--dry_run", f"--workdir={tmp_path / 'to'}", script=transfer)
    assert code == 0 and "1 class: 9" in out
    own = transfer.completed(transfer.Config(source_preset="dcgan_mnist", dataset="mnist"))
    assert (own.source_classes, own.classes) == ((), ())


def test_flags_of_a_preset_for_its_own_data_are_not_asked_of_other_data(tmp_path):
    argv = ("--preset=pneumonia", "--workdir=x")
    theirs = flags.parse(anomaly.Config, anomaly.PRESETS, [*argv, "--dataset=npz:/data/pneumoniamnist.npz"])
    assert (theirs.normal, theirs.test_split, theirs.steps) == ("0", "test", 2000)
    own = flags.parse(anomaly.Config, anomaly.PRESETS, [*argv, "--dataset=folder:mine"])
    assert (own.normal, own.test_split, own.steps) == (None, "", 2000)
    given = flags.parse(anomaly.Config, anomaly.PRESETS, [*argv, "--dataset=folder:mine", "--normal=good"])
    assert given.normal == "good"


def test_a_normal_class_of_one_s_own_data_is_asked_for(animals, tmp_path, capfd):
    argv = (f"--dataset=folder:{animals}", f"--workdir={tmp_path / 'run'}", "--dry_run")
    code, _, err = here(capfd, *argv, script=anomaly)
    assert code == 2 and "has the classes ant, bee, cat; expected --normal=NAME" in err and err.count("\n") == 1


def test_categories_are_as_many_as_the_classes_of_one_s_own_data(animals, tmp_path, capfd):
    argv = (f"--workdir={tmp_path / 'run'}", "--dry_run", "--seeds=1")
    code, out, err = here(capfd, *argv, f"--dataset=folder:{animals}", script=infogan)
    assert code == 0 and "3 classes: ant, bee, cat" in out and "codes: 3 categories, 2 numbers" in out, err
    code, out, err = here(capfd, *argv, script=infogan)
    assert code == 0 and "codes: 10 categories" in out, err
