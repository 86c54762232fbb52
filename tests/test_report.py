import io
import json
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxgan import report
from jaxgan.errors import Diverged, InputError
from jaxgan.report import Report, grid, save_png, truncate
from tests import small


def rows(workdir):
    def strict(word):
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=strict) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_rows_hold_the_same_bits(tmp_path):
    loss = np.float32(0.1)
    scalars = {"gen/loss": loss, "disc/loss": jnp.float32(1 / 3), "bad": np.nan, "worse": -np.inf, "count": np.int32(7)}
    with Report(tmp_path, total_steps=10, batch_size=4, tensorboard=False, bar=False) as run:
        run.log(1, 4, scalars)
    (row,) = rows(tmp_path)
    assert list(row) == ["step", "images", *sorted(scalars), "seconds", "images_per_second"]
    assert np.float32(row["gen/loss"]) == loss and row["gen/loss"] == float(loss)
    assert np.float32(row["disc/loss"]) == np.float32(1 / 3)
    assert row["bad"] is None and row["worse"] is None and row["count"] == 7
    assert row["step"] == 1 and row["images"] == 4 and row["images_per_second"] is None


def test_rate_leaves_out_compilation_and_pauses(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: clock[0])

    def later(seconds):
        clock[0] += seconds

    with Report(tmp_path, total_steps=40, batch_size=8, tensorboard=False, bar=False) as run:
        later(100)
        with run.paused():
            later(50)
        later(2)
        run.log(10, 80, {})
        later(3)
        with run.paused():
            later(1000)
        later(1)
        run.log(20, 160, {})
    assert [row["images_per_second"] for row in rows(tmp_path)] == [40.0, 20.0]
    assert [row["seconds"] for row in rows(tmp_path)] == [152.0, 1156.0]


def test_truncate(tmp_path, caplog):
    truncate(tmp_path, 3)  # nothing there: nothing to do
    with Report(tmp_path, total_steps=9, batch_size=1, tensorboard=False, bar=False) as run:
        for step in range(1, 6):
            run.log(step, step, {"loss": step / 3})
    before = rows(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "im')
    truncate(tmp_path, 3)
    assert rows(tmp_path) == before[:3]
    assert len(caplog.records) == 1 and "line 6" in caplog.text
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole.replace(b'"loss"', b'"l\xf3ss"', 1) + b'{"step": 3}\x85\n')
    truncate(tmp_path, 3)
    assert rows(tmp_path) == before[1:3] and "line 1 is" in caplog.text and "line 4" in caplog.text
    (tmp_path / "metrics.jsonl").write_bytes(whole)
    with Report(tmp_path, total_steps=9, batch_size=1, start_step=3, tensorboard=False, bar=False) as run:
        run.log(4, 4, {"loss": 4 / 3})
    assert [row["loss"] for row in rows(tmp_path)] == [row["loss"] for row in before[:4]]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_plain_lines(tmp_path, capsys):
    with Report(tmp_path, total_steps=3, batch_size=2, tensorboard=False) as run:
        for step in (1, 2, 3):
            run.log(step, 2 * step, {"disc/loss": 0.25, "disc/norm": 9.0})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # the first and the last; the second came too soon after the first
    assert lines[0] == "step 1/3, 0.0 kimg, disc/loss 0.25"
    assert lines[1].startswith("step 3/3, 0.0 kimg, ") and "img/s" in lines[1] and "left" in lines[1]


def test_bar(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Report(tmp_path, total_steps=8, batch_size=2, start_step=2, tensorboard=False) as run:
        with run.paused():
            pass
        time.sleep(0.01)
        run.log(4, 8, {"gen/loss": 0.5})
        run.note("a line of its own")
    shown = terminal.getvalue()
    assert "50%" in shown and "4/8" in shown and "img/s" in shown and "gen/loss 0.5" in shown
    assert "a line of its own\n" in shown


def test_pictures(tmp_path):
    picture = np.arange(60 * 60 * 3, dtype=np.uint8).reshape(60, 60, 3)
    with Report(tmp_path, total_steps=3, batch_size=2, tensorboard=False, bar=False) as run:
        run.picture("", 12, 24, picture)
        run.picture("cycle/there", 12, 24, picture[..., :1])
    assert (np.asarray(Image.open(tmp_path / "samples" / "0000012.png")) == picture).all()
    assert (np.asarray(Image.open(tmp_path / "samples" / "cycle_there_0000012.png")) == picture[..., 0]).all()
    assert len(list((tmp_path / "samples").iterdir())) == 2


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 20), h=st.integers(1, 70), w=st.integers(1, 70), c=st.integers(1, 5), columns=st.integers(0, 5))
def test_grid_holds_every_image(n, h, w, c, columns):
    images = np.random.default_rng(0).integers(0, 256, (n, h, w, c), dtype=np.uint8)
    picture = grid(images, columns, scale=1)
    th, tw = h + 2, w + 2
    across = (picture.shape[1] - 2) // tw
    assert picture.shape[2] == {1: 1, 4: 4}.get(c, 3) and picture.dtype == np.uint8
    assert across == min(n, columns) or not columns
    for i in range(n):
        top, left = divmod(i, across)
        tile = picture[2 + top * th : (top + 1) * th, 2 + left * tw : (left + 1) * tw]
        assert (tile[..., : min(c, picture.shape[2])] == images[i, ..., : picture.shape[2]]).all()
    assert (picture[:2] == 255).all() and (picture[-2:] == 255).all()


def test_small_images_are_enlarged_smoothly():
    ramp = np.arange(0, 80, 10, dtype=np.uint8)[None, None, :, None].repeat(8, axis=1)
    tile = grid(ramp)[2:-2, 2:-2, 0].astype(int)
    assert tile.shape == (56, 56)
    x = (np.arange(56) + 0.5) / 7 - 0.5  # where each pixel lies in the small image; bicubic is exact on a ramp
    inner = slice(14, 42)
    np.testing.assert_allclose(tile[28, inner], 10 * x[inner], atol=0.51)
    assert (grid(np.full((3, 8, 8, 2), 77, np.uint8))[2:58, 2:58] == [77, 77, 0]).all()


def test_a_grid_of_images_with_alpha_keeps_it(tmp_path):
    images = np.zeros((4, 8, 8, 4), np.uint8)
    images[..., :4, :] = 200, 10, 10, 255  # the other half is black below, and transparent
    picture = grid(images)
    assert picture.shape == (2 * 58 + 2, 2 * 58 + 2, 4) and (picture[:2] == 255).all()
    tile = picture[2:58, 2:58]
    assert (tile[:, :14] == [200, 10, 10, 255]).all() and (tile[:, 36:, 3] == 0).all()
    edge = tile[:, 14:36]  # cubic weights overshoot, but nothing black shines through
    assert (np.abs(edge[edge[..., 3] > 20][:, :3].astype(int) - [205, 10, 10]) < 12).all()
    save_png(tmp_path / "grid.png", picture)
    assert (np.asarray(Image.open(tmp_path / "grid.png")) == picture).all()
    seen = report.on_white(np.array([[[200, 10, 10, 255], [0, 0, 0, 0], [100, 0, 50, 51]]], np.uint8))
    assert seen.tolist() == [[[200, 10, 10], [255, 255, 255], [224, 204, 214]]]
    floats = report.on_white(np.array([[1.0, 0.0, -1.0, 0.0]], np.float32))
    assert floats.tolist() == [[1.0, 0.5, 0.0]]


def test_grid_of_floats():
    values = np.array([-1, 1, 0, -3, 3, np.nan], np.float32).reshape(6, 1, 1, 1)
    picture = grid(values, columns=6, scale=1)
    assert picture[2, 2::3, 0].tolist() == [0, 255, 128, 0, 255, 0]
    exact = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    again = grid(exact.astype(np.float32) / 127.5 - 1, scale=1)
    assert (again == grid(exact, scale=1)).all()
    assert grid(np.zeros((64, 8, 8, 1))).shape == (8 * 58 + 2, 8 * 58 + 2, 1)
    with pytest.raises(InputError, match=r"\(0, 8, 8, 1\)"):
        grid(np.zeros((0, 8, 8, 1)))
    with pytest.raises(InputError, match="float64"):
        save_png("x.png", np.zeros((8, 8, 3)))


def test_tensorboard_reads_it(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    picture = np.random.default_rng(0).integers(0, 256, (62, 62, 3), dtype=np.uint8)
    with Report(tmp_path, total_steps=9, batch_size=2, bar=False) as run:
        for step in (1, 2, 3):
            run.log(step, 2 * step, {"disc/loss": step / 4})
        run.picture("", 2, 4, picture)
        run.picture("grey", 2, 4, picture[..., :1])
    with Report(tmp_path, total_steps=9, batch_size=2, start_step=2, bar=False) as run:
        run.log(3, 6, {"disc/loss": 9.0})
    events = accumulator.EventAccumulator(str(tmp_path), size_guidance={accumulator.IMAGES: 0})
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("disc/loss")]
    assert scalars == [(1, 0.25), (2, 0.5), (3, 9.0)]  # what came after the step of the resumed run is superseded
    (image,) = events.Images("samples")
    assert image.step == 2
    assert (np.asarray(Image.open(io.BytesIO(image.encoded_image_string))) == picture).all()
    (grey,) = events.Images("grey")
    shown = np.asarray(Image.open(io.BytesIO(grey.encoded_image_string)).convert("L"))
    assert (shown == picture[..., 0]).all()


def loss_events(workdir):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(workdir), size_guidance={accumulator.SCALARS: 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


@pytest.mark.parametrize(
    ("start", "owed", "kept"),
    [(0, False, []), (2, False, [1, 2]), (2, True, [1])],
    ids=["killed before its first checkpoint", "resumed", "resumed with a row that is owed"],
)
def test_tensorboard_drops_what_a_run_that_was_killed_logged_later(tmp_path, start, owed, kept):
    """And the second file, made within the same second, does not overwrite the first."""
    with Report(tmp_path, total_steps=9, batch_size=2, bar=False) as run:
        for step in range(1, 6):
            run.log(step, 2 * step, {"loss": 1.0})
    with Report(tmp_path, total_steps=9, batch_size=2, start_step=start, owed=owed, bar=False) as run:
        run.log(7, 14, {"loss": 2.0})
    assert loss_events(tmp_path) == [*((step, 1.0) for step in kept), (7, 2.0)]


def test_tensorboard_drops_what_a_rollback_to_the_start_undid(tmp_path):
    with pytest.raises(Diverged):
        small.run(
            tmp_path,
            rate=1e4,
            steps=60,
            checkpoint_every=0,
            on_nonfinite="rollback",
            rollbacks=1,
            tensorboard=True,
        )
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path), size_guidance={accumulator.SCALARS: 0})
    events.Reload()
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["rollbacks"] for row in logged] == [1] * len(logged)
    shown = [(event.step, event.value) for event in events.Scalars("one/loss")]
    assert shown == [(row["step"], np.float32(row["one/loss"])) for row in logged]


def test_tensorboard_is_imported_only_when_asked_for(tmp_path):
    script = (
        "import sys; from jaxgan.report import Report\n"
        f"Report({str(tmp_path)!r}, total_steps=1, batch_size=1, tensorboard=False).close()\n"
        "print([name for name in ('jax', 'PIL', 'tensorboardX') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
