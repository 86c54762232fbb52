"""Transfer: which images, what stands still and what moves, whole commands, and what they report."""

import dataclasses
import functools
import json
import types

import jax
import numpy as np
import pytest
from PIL import Image

import jaxgan
from experiments import image, transfer, transfer_images, transfer_methods, transfer_report
from jaxgan import chart, checkpoint, critic, data, flags, sources
from jaxgan.errors import InputError
from jaxgan.metrics import classify
from jaxgan.models import mined
from tests import runs
from tests.runs import bits, compile_quickly, narrow_dense

__all__ = ["compile_quickly", "narrow_dense"]  # fixtures


@pytest.fixture(scope="module", autouse=True)
def learn_quickly():
    before, classify.STEPS = classify.STEPS, 30
    yield
    classify.STEPS = before


# --- images


def test_some_classes_of_a_source():
    label = np.array([3, 0, 1, 3, 2, 1])
    source = data.load("digits")
    some = source.only((7, 2))
    assert some.num_classes == 2 and some.class_names == ("7", "2")
    whole, part = data.read_all(source), data.read_all(some)
    rows = np.flatnonzero(np.isin(whole["label"], (7, 2)))
    np.testing.assert_array_equal(part["image"], whole["image"][rows])
    np.testing.assert_array_equal(part["label"], np.where(whole["label"][rows] == 7, 0, 1))
    np.testing.assert_array_equal(some.subset([1, 0]).read(np.arange(2))["label"], part["label"][[1, 0]])
    plain = sources.from_arrays("plain", np.zeros((6, 2, 2), np.uint8), label)
    for wrong, words in (((4,), "class 4 .* 0 to 3"), ((1, 1), "class 1 .* each once"), ((-1,), "class -1")):
        with pytest.raises(InputError, match=words):
            plain.only(wrong)


def test_few_images_of_as_many_classes_as_there_are():
    source = data.load("digits")
    chosen = transfer_images.chosen
    few, more, others = (data.read_all(chosen(source, n, seed)) for n, seed in ((20, 0), (25, 0), (20, 1)))
    assert np.bincount(few["label"]).tolist() == [2] * 10
    assert sorted(np.bincount(more["label"]).tolist()) == [2] * 5 + [3] * 5
    np.testing.assert_array_equal(more["image"][:20], few["image"])
    assert len(np.unique(few["image"], axis=0)) == 20 and not np.array_equal(few["image"], others["image"])
    assert transfer_images.chosen(source, 0, 0) is source


def test_a_source_of_other_sizes_has_schedules_of_its_length():
    given = {"workdir": "runs/x", "source_preset": "rpgan_mnist"}
    preset = transfer.source_config(transfer.Config(**given))
    assert (preset.steps, preset.anneal_images, preset.size, preset.width) == (16_000, 1e6, "16", 32)
    other = {"source_size": "28", "source_width": 64, "source_steps": 10_000}
    changed = transfer.source_config(transfer.Config(**given, **other))
    assert (changed.steps, changed.anneal_images, changed.size, changed.width) == (10_000, 64 * 10_000, "28", 64)
    constant = transfer.source_config(transfer.Config(workdir="runs/x", source_preset="cdcgan_mnist", source_steps=10))
    assert constant.anneal_images == image.Config().anneal_images


def test_held_out_images_are_others():
    config = transfer.Config(classes=(3, 9))
    found = transfer_images.load(config, (8, 8, 1))
    nines = data.load("digits").only((3, 9))
    train, test = (data.read_all(part)["image"] for part in (found.train, found.test))
    together = {x.tobytes() for x in (*train, *test)}
    assert len(train) + len(test) == len(together) == nines.num_examples and found.everything.num_classes == 10
    assert transfer_images.load(config, (12, 10, 3)).test.shape == (12, 10, 3)


def test_held_out_images_are_equally_many_of_each_class():
    label = np.array([0, 0, 0, 2, 2, 0, 2])
    part = transfer_images.balanced(sources.from_arrays("plain", np.zeros((7, 2, 2), np.uint8), label))
    assert np.bincount(data.read_all(part)["label"]).tolist() == [3, 0, 3]


def test_the_real_images_of_a_conditional_run_are_of_its_classes_as_often():
    """Whose samples are as many of each class. The two classes are black and white, 40 to 360 of them."""
    rows = np.random.default_rng(0).permutation(np.repeat([0, 1], (40, 360)))
    pixels = np.random.default_rng(1).integers(0, 40, (400, 8, 8, 1)) + 215 * rows[:, None, None, None]
    source = sources.from_arrays("uneven", pixels.astype(np.uint8), rows)
    half = [source.subset(np.arange(i, 400, 2)) for i in (0, 1)]
    images = transfer_images.Images(half[0], half[1], source)
    every = transfer.Config(num_images=(0,), eval_samples=40)
    even = classify.scaled(data.read_all(transfer_images.balanced(half[0]))["image"])
    conditional, other = (transfer_images.measurer(every, images, given) for given in (True, False))
    assert conditional[0](even) < 0.1 * other[0](even)
    assert conditional[1]["held_out"] < other[1]["held_out"] == 200


def test_classes_start_from_the_nearest_of_the_source(monkeypatch):
    """A source of three classes, all black, grey and white; colour images in which the last class does not occur."""
    level = np.array([-1, 0.1, 1], np.float32)

    def sample(key, n):
        return np.broadcast_to(level[np.arange(n) % 3, None, None, None], (n, 2, 2, 1))

    def features(images, label):
        assert label == 0 and images.shape[1:] == (2, 2, 1)
        return images.reshape(len(images), -1)

    gan = types.SimpleNamespace(generator=types.SimpleNamespace(num_classes=3, shape=(2, 2, 1)), sample=sample)
    judge = types.SimpleNamespace(sees_class=True, features=features)
    monkeypatch.setattr(transfer_methods, "load_generator", lambda *_, **__: gan)
    monkeypatch.setattr(transfer_methods.critic, "load", lambda *_, **__: judge)
    pixels = np.array([250, 10, 120, 240], np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    found = sources.from_arrays("plain", pixels, np.array([0, 1, 2, 0]), class_names=tuple("abcd"))
    assert transfer_methods.nearest("run", None, False, found) == (2, 0, 1, 1)


def test_which_classes_may_be_named():
    def told(known, classes, given=()):
        origin = types.SimpleNamespace(generator=types.SimpleNamespace(num_classes=known))
        target = transfer_methods.Target((8, 8, 1), classes)
        return transfer.classes_differ(transfer.Config(from_classes=given), origin, target)

    assert told(9, 1) and told(9, 2, (8, 8)) and not told(9, 9) and not told(0, 9) and not told(9, 0)
    for wrong, words in (((9, 9, (0,)), "source has 9 classes, the target 9"), ((0, 2, (0, 0)), "source has 0")):
        with pytest.raises(InputError, match=words):
            told(*wrong)
    for given in ((1,), (0, 9)):
        with pytest.raises(InputError, match="expected 2 numbers from 0 to 8"):
            told(9, 2, given)


# --- whole commands

here = functools.partial(runs.here, script=transfer)
SMALL = {"model": "mlp", "steps": 4, "latent": 8, "batch_size": 8}  # dense networks compile in a fifth of the time
TINY = ("--eval_samples=20", "--steps=4", "--evaluations=4", "--mining_steps=2", "--num_images=6", "--seed=1")
TINY += ("--tuned_learning_rate=1e-3", "--method=scratch,finetune,freezed,minegan")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The default preset, shortened: two steps of each method but CDC, and, continued, four."""
    workdir = tmp_path_factory.mktemp("transfer") / "run"
    kept = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(image.PRESETS, "dcgan_digits", SMALL)
        for steps in (2, 4):
            argv = [*TINY, f"--tuned_steps={steps}", f"--workdir={workdir}"]
            transfer.main(flags.parse(transfer.Config, transfer.PRESETS, argv))
            kept[steps] = {path.name: bits(path) for path in workdir.iterdir() if path.is_dir()}
    return workdir, kept


def moved(before, after, prefix, of=""):
    """Leaves below `prefix` that are not bit for bit those of the other run below `of`, by their first names."""
    own = {name.removeprefix(prefix): x for name, x in after.items() if name.startswith(prefix)}
    assert own
    return {name.partition("/")[0] for name, x in own.items() if before.get((of or prefix) + name) != x}


def test_what_stands_still_and_what_moves(finished):
    _, kept = finished
    source, disc, gen = kept[2]["source"], "players/disc/params/", "players/gen/params/"
    layers = {f"Dense_{i}" for i in range(4)}
    for steps in (2, 4):
        assert moved(source, kept[steps]["finetune-6-1"], disc) == layers
        assert moved(source, kept[steps]["freezed-6-1"], disc) == layers - {"Dense_0"}
    generator = moved(source, kept[2]["finetune-6-1"], gen)
    assert generator == {name.split("/")[3] for name in source if gen in name}
    # While it mines, the miner alone; then all of it.
    assert moved(source, kept[2]["minegan-6-1"], gen) == {"miner"}
    assert moved(source, kept[4]["minegan-6-1"], gen) == generator | {"miner"}
    assert moved(kept[2]["minegan-6-1"], kept[4]["minegan-6-1"], gen + "miner/") == {"Dense_0", "Dense_1", "Dense_2"}
    started = kept[2]["scratch-6-1"][gen + "Dense_0/kernel"], source[gen + "Dense_0/kernel"]
    assert abs(np.corrcoef(*(np.frombuffer(x[2], np.float32) for x in started))[0, 1]) < 0.2


def test_correspondence_pulls_towards_the_source():
    """Two steps of CDC: at the first the generators are the same, and so are their distances."""
    base = image.Config(width=2, latent=4, batch_size=4, workdir="nowhere")
    target, key = transfer_methods.Target((8, 8, 1), 0), jax.random.key(0)
    example = transfer_methods.example_of(target)
    pair = image.networks(base, target.shape, 0)
    quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    state = jax.device_get(quick(image.make_game(base, pair).init)(key, example).players)
    players = {name: {part: getattr(p, part) for part in ("params", "variables", "ema")} for name, p in state.items()}
    origin = transfer_methods.Origin(base, pair.generator, pair.discriminator, players)
    options = {"method": "cdc", "num_images": 3, "cdc_batch": 4, "cdc_weight": 10.0, "learning_rate": (0.01,)}
    config = transfer_methods.Config(**{**dataclasses.asdict(base), **options})
    made = transfer_methods.method(origin, config, target)
    assert {name.rpartition("/")[0] for name in made.told} == {"disc/patch_head"}
    first = made.begin_from(quick(made.game.init)(jax.random.key(1), example))
    jax.tree.map(np.testing.assert_array_equal, first.players["gen"].params, players["gen"]["params"])
    rows = np.arange(4, dtype=np.int32)[None]
    images = jax.random.uniform(key, (1, 4, 8, 8, 1), minval=-1)
    step, batch = quick(made.game.step), {"image": images, "label": 0 * rows, "row": rows}
    second, metrics = step(first, batch)
    assert metrics["gen/distances"] == pytest.approx(0, abs=1e-6)
    third, later = step(second, batch)
    assert later["gen/distances"] > 1e-6
    assert later["gen/loss"] > 10 * later["gen/distances"] > 0
    jax.tree.map(np.testing.assert_array_equal, third.players["source"].params, players["gen"]["ema"])
    for name in ("disc", "gen"):
        pairs = jax.tree.map(np.array_equal, third.players[name].params, first.players[name].params)
        assert not any(jax.tree.leaves(pairs)), "all of them moved, the head of patches too"


def test_a_run_that_went_on_is_one_that_did_not_stop(finished, tmp_path, capfd):
    workdir, kept = finished
    tiny = [flag for flag in TINY if not flag.startswith("--method=")]
    argv = (
        *tiny,
        "--tuned_steps=4",
        f"--source_run={workdir / 'source'}",
        f"--workdir={tmp_path}",
        "--method=finetune",
    )
    code, out, err = here(capfd, *argv)
    assert code == 0, err
    ours, theirs = bits(tmp_path / "finetune-6-1"), kept[4]["finetune-6-1"]
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    assert "weights  all are those of" in out
    code, _, err = here(capfd, *argv, "--tuned_learning_rate=0.1")
    assert code == 2 and "learning_rate" in err


def test_from_nine_classes_to_one(tmp_path, monkeypatch, capfd):
    """The source's class that is nearest gives the only one its weights; schedules have the run's own length."""
    monkeypatch.setitem(image.PRESETS, "dcgan_digits", SMALL | {"conditional": True, "learning_rate": (1e-3, 1e-4)})
    argv = ("--eval_samples=20", "--tuned_steps=1", "--evaluations=1", "--num_images=6", "--method=finetune")
    code, out, err = here(capfd, *argv, "--tuned_learning_rate=0.0,0.0", f"--workdir={tmp_path}")
    assert code == 0, err
    (k,) = [int(line.split(": ")[1]) for line in out.splitlines() if line.startswith("classes")]
    assert flags.read(tmp_path / "finetune-6-0")["started_from"] == [k] != [0]
    source, run = (checkpoint.read(tmp_path / name / "checkpoints") for name in ("source", "finetune-6-0"))
    kernels = [p["players"]["gen"]["params"]["Dense_0"]["kernel"] for p in (source, run)]  # latent and class
    np.testing.assert_array_equal(kernels[1][:8], kernels[0][:8])
    np.testing.assert_array_equal(kernels[1][8:], kernels[0][8 + k : 9 + k])
    config = flags.read(tmp_path / "finetune-6-0")["config"]
    code, _, err = here(capfd, *argv, "--tuned_learning_rate=0.0,0.0", f"--workdir={tmp_path}", f"--from_classes={k}")
    assert code == 2 and "from_classes" in err, "another start is another run"
    assert config["conditional"] and config["anneal_images"] == 8 and config["learning_rate"] == [0, 0]
    assert jaxgan.load(tmp_path / "finetune-6-0").sample(jax.random.key(0), 3).shape == (3, 8, 8, 1)


def test_what_is_reported(finished, capfd):
    workdir, _ = finished
    report = json.loads((workdir / "report.json").read_text())
    assert [(row["method"], row["steps"][0], row["steps"][-1]) for row in report["runs"]] == [
        ("scratch", 1, 4),
        *((name, 0, 4) for name in ("finetune", "freezed", "minegan")),
    ]
    tuned = report["runs"][1]
    assert tuned["distances"][0] == report["measured"]["source"] and tuned["scratch_best"] == report["runs"][0]["best"]
    gan = jaxgan.load(workdir / "minegan-6-1")
    assert isinstance(gan.generator, mined.Generator) and gan.sample(jax.random.key(0), 2).shape == (2, 8, 8, 1)
    # The last figure of the miner's run, from its directory alone: its samples before held-out images.
    images = transfer_images.load(transfer.Config(), (8, 8, 1))
    distance, _ = transfer_images.measurer(transfer.Config(eval_samples=20), images, False)
    last = next(row for row in report["runs"] if row["method"] == "minegan")["distances"][-1]
    assert distance(gan.sample(jax.random.key(2), 20)) == pytest.approx(last, rel=1e-4)
    assert critic.load(workdir / "freezed-6-1").logits(gan.sample(jax.random.key(0), 2)).shape == (2,)
    picture = Image.open(workdir / "samples.png")
    assert picture.size[1] == 6 * 58 + 2, "source, real images, four methods"
    with pytest.raises(InputError, match="behind a miner"):
        transfer_methods.origin(workdir / "minegan-6-1", None, False)


def test_shares_of_the_steps_from_scratch():
    run = transfer_methods.Config(num_images=10, steps=40)
    tuned = dataclasses.replace(run, method="finetune")
    never = dataclasses.replace(run, method="cdc")
    rows = transfer_report.compared(
        [
            transfer_report.Curve(run, [10, 20, 30, 40], [9.0, 5.0, 5.0, 7.0]),
            transfer_report.Curve(tuned, [0, 2, 4, 6], [8.0, 6.0, 4.5, 4.0]),
            transfer_report.Curve(never, [0, 2], [8.0, 6.0]),
        ]
    )
    assert [row["best_step"] for row in rows] == [20, 6, 2]
    assert [row["ratio"] for row in rows] == [1.0, 0.2, None]
    assert [row["reached_step"] for row in rows] == [20, 4, None]
    table = transfer_report.table(rows).splitlines()
    assert table[2].split() == ["10", "finetune", "4.00", "6", "4", "0.200"] and "never" in table[3]
    alone = transfer_report.compared([transfer_report.Curve(tuned, [0, 2], [8.0, 6.0])])
    assert "ratio" not in alone[0] and transfer_report.table(alone).splitlines()[1].endswith("-")


def test_a_curve_is_drawn_where_its_numbers_are():
    panel = chart.Panel("title", {"a": [[(1, 1), (10, 10), (100, 10)]]}, {"b": 2.0})
    found = chart.draw([panel, panel], "x", "y")
    width = chart.LEFT + chart.SIDE + chart.RIGHT
    assert found.shape == (chart.TOP + chart.SIDE + chart.BOTTOM, 2 * width, 3)
    dark = (found[:, width:].max(axis=2) < 80).nonzero()  # of the second panel, which has no legend
    inside = (dark[1] > chart.LEFT + 2) & (dark[1] < chart.LEFT + chart.SIDE - 2) & (dark[0] > chart.TOP + 5)
    y, x = dark[0][inside & (dark[0] < chart.TOP + chart.SIDE)], dark[1][inside & (dark[0] < chart.TOP + chart.SIDE)]
    flat = y[x > chart.LEFT + 0.6 * chart.SIDE]  # y = 10, 4 parts in 108 below the top
    assert np.ptp(flat) <= 3 and flat.mean() == pytest.approx(chart.TOP + chart.SIDE * 4 / 108, abs=2)
    rising = x[np.abs(y - (chart.TOP + chart.SIDE / 2)) < 2]  # half-way up at the root of 10, a quarter to the right
    assert rising.mean() == pytest.approx(chart.LEFT + chart.SIDE / 4, abs=3)
    blue = np.all(found[:, :width] == (0x00, 0x72, 0xB2), axis=2)
    blue[chart.TOP + round(chart.SIDE * (104 - 100 * np.log10(2)) / 108)] = False  # the level itself
    rows, columns = blue.nonzero()  # its line in the legend: below the curve, on the right, no text on the curve
    assert len(rows) and min(rows) > chart.TOP + 0.8 * chart.SIDE and min(columns) > chart.LEFT + 0.9 * chart.SIDE
    assert chart.ticks(-0.1, 1.0) == [1, 2, 5, 10] and chart.short(2500) == "2.5k"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--source_run=nowhere",), "no config.json"),
        (("--source_run={gmmn}",), "names no discriminator"),
        (("--source_run={short}",), "does not fit the network"),
        (("--source_run={other}",), "is not that of a run of experiments.image: it lacks --conditional"),
        (("--num_images=90",), "--num_images=90: digits has 89"),
        (("--num_images=5,5",), "each once"),
        (("--classes=10",), "class 10 of digits"),
        (("--classes=1", "--dataset=npz:{plain}"), "no labels"),
        (("--dataset=folder:{empty}",), "no images"),
        (("--method=finetun",), "did you mean 'finetune'?"),
        (("--frozen_layers=4",), "expected 1 to 3 of them"),
        (("--augment=diffaugmen",), "did you mean 'diffaugment'?"),
        (("--method=cdc",), "knows none; leave it out"),
        (("--source_step=7",), "no checkpoint of step 7"),
        (("--test_split=test",), "split of digits"),
        (("--batch_size=-1",), "at least 0"),
        (("--tuned_learning_rate=-1",), "--tuned_learning_rate=-1.0: expected at least 0"),
        (("--learning_rate=-1",), "--learning_rate=-1.0: expected at least 0"),
        (("--source_run=", "--source_preset=dcgan_digit"), "did you mean 'dcgan_digits'?"),
        (("--source_run=", "--source_crop=0x9"), "the source: --source_crop=0x9"),
    ],
)
def test_wrong_inputs(flags, words, finished, tmp_path, capfd):
    source = finished[0] / "source"
    places = {name: tmp_path / name for name in ("gmmn", "short", "empty", "other")}
    for place in places.values():
        place.mkdir()
    stored = json.loads((source / "config.json").read_text())
    alone = stored | {"networks": {"generator": stored["networks"]["generator"]}}
    (places["gmmn"] / "config.json").write_text(json.dumps(alone))
    stored["networks"]["generator"]["arguments"]["latent"] = 6
    (places["short"] / "config.json").write_text(json.dumps(stored))
    (places["other"] / "config.json").write_bytes((source / "config.json").read_bytes())
    lines = (source / "flags.txt").read_text().splitlines()
    kept = [line for line in lines if "conditional" not in line]
    (places["other"] / "flags.txt").write_text("\n".join(kept) + "\n")  # as of a script that has no such flag
    for name in ("short", "gmmn", "other"):
        (places[name] / "checkpoints").symlink_to(source / "checkpoints")
    np.savez(tmp_path / "plain.npz", image=np.zeros((8, 8, 8), np.uint8))
    places |= {"plain": tmp_path / "plain.npz"}
    argv = [f"--source_run={source}", *(flag.format(**places) for flag in flags), f"--workdir={tmp_path / 'run'}"]
    code, out, err = here(capfd, *argv)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert words in err and not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(finished, tmp_path, capfd):
    code, out, err = here(capfd, f"--workdir={tmp_path / 'run'}", "--dry_run", "--num_images=10,0")
    assert (code, err, list(tmp_path.iterdir())) == (0, "", [])
    for words in ("4,000 steps of 64 images", "89 images of 8x8x1", "91 images", "cdc, all images, 200 steps"):
        assert words in out, out
