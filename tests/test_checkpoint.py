import contextlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgan import checkpoint, shelf
from jaxgan.checkpoint import Checkpoints, read
from jaxgan.errors import InputError, StorageFault


@flax.struct.dataclass
class State:
    step: Any
    key: Any
    players: Any
    extras: Any


def make(seed: int = 0, width: int = 64) -> State:
    rng = np.random.default_rng(seed)
    params = {"Dense_0": {"kernel": rng.normal(size=(width, 48)), "b.ias": rng.normal(size=48)}, "scale": rng.normal()}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    params["odd"] = jnp.array([np.nan, -0.0, np.inf, 1e-42], jnp.float32)
    params["half"] = jnp.asarray(rng.normal(size=(5, 7)), jnp.bfloat16)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    gen = {"params": params, "opt": optimizer.init(params), "ema": None, "stats": {}}
    extras = {"table": jnp.asarray(rng.integers(0, 256, (9, 8), dtype=np.uint8)), "none": jnp.zeros((0, 3), jnp.int8)}
    keys = {"root": jax.random.key(seed), "many": jax.random.split(jax.random.key(seed, impl="rbg"), 3)}
    return State(jnp.int32(seed), keys, {"gen": gen}, extras)


def bits(tree):
    def one(leaf):
        array = np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        return str(leaf.dtype), leaf.shape, array.tobytes()

    return jax.tree.structure(tree), [one(leaf) for leaf in jax.tree.leaves(tree)]


def test_bits_are_restored(tmp_path):
    with Checkpoints(tmp_path / "c") as saved:
        assert saved.restore(make()) is None and saved.steps == []
        saved.save(3, make(3))
        saved.wait()
        assert saved.steps == [3]
    with Checkpoints(tmp_path / "c") as again:
        template = make(0)
        step, state = again.restore(template)
        assert step == 3 and bits(state) == bits(make(3))
        like, restored = template.players["gen"]["params"]["half"], state.players["gen"]["params"]["half"]
        assert restored.sharding == like.sharding and restored.committed
    tree = read(tmp_path / "c")
    assert tree["players"]["gen"]["params"]["Dense_0"]["b.ias"].tobytes() == bits_of(make(3), "b.ias")
    assert isinstance(tree["step"], np.ndarray) and tree["step"] == 3
    assert (tree["key"]["root"] == np.asarray(jax.random.key_data(jax.random.key(3)))).all()
    assert tree["extras"]["none"].shape == (0, 3) and tree["extras"]["none"].dtype == np.int8


def bits_of(state, name):
    return np.asarray(state.players["gen"]["params"]["Dense_0"][name]).tobytes()


@pytest.mark.parametrize(("best", "kept"), [(None, [4, 5]), ("fid", [2, 4, 5]), ("max:fid", [3, 4, 5])])
def test_latest_and_best_are_kept(tmp_path, best, kept):
    def state(seed):
        return make(seed, width=2)

    with Checkpoints(tmp_path, best=best, metadata={"of": "a test"}) as saved:
        for step, score in {1: 5.0, 2: 3.0, 3: 9.0, 4: np.nan, 5: 4.0}.items():
            saved.save(step, state(step), {"fid": score})
        saved.wait()
        assert saved.steps == kept
        assert saved.best() == (kept[0] if best else None)
        assert checkpoint.describe(tmp_path, 5) == {"metrics": {"fid": 4.0}, "metadata": {"of": "a test"}}
        assert saved.restore(state(0), kept[0])[0] == kept[0]
        saved.save(5, state(99))  # there already: left alone
        assert read(tmp_path, 5)["step"] == 5
        with pytest.raises(InputError, match="already holds step 5"):
            saved.save(1, state(1))
    with Checkpoints(tmp_path, best=best) as saved:
        saved.save(6, state(6), {"fid": 6.0})
        saved.wait()
        assert saved.steps == sorted({*kept[:-2], 5, 6})


def test_wrong_use_is_one_line(tmp_path):
    with Checkpoints(tmp_path / "c") as saved:
        saved.save(1, make())
        other = make()
        other.players["gen"]["params"]["Dense_0"]["kernel"] = jnp.zeros((3, 4))
        with pytest.raises(InputError) as error:
            saved.restore(other)
        message = str(error.value)
        assert "players/gen/params/Dense_0/kernel is float32[64, 48] there, float32[3, 4] here" in message
        more = make()
        more.players["gen"]["ema"] = jnp.zeros(2)
        with pytest.raises(InputError, match="players/gen/ema is no such leaf there"):
            saved.restore(more)
        fill = {"players/gen/em": lambda shape: np.arange(*shape)}
        assert [float(x) for x in saved.restore(more, added=fill)[1].players["gen"]["ema"]] == [0, 1]
        with pytest.raises(InputError, match="players/gen/ema is no such leaf there"):
            saved.restore(more, added={"players/disc": np.zeros})
        with pytest.raises(InputError, match=r"no checkpoint of step 7 .* \[1\]"):
            saved.restore(make(), 7)
    with pytest.raises(InputError, match="no checkpoint in"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)
    for best in ("least:fid", "max:"):
        with pytest.raises(InputError, match=best):
            Checkpoints(tmp_path, best=best)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFault, match="cannot write the checkpoint of step 1"):
        Checkpoints(tmp_path / "file" / "c").save(1, make())


def test_a_checkpoint_without_its_table_does_not_stand(tmp_path):
    """As Orbax leaves it, with no word, where the path matches no file when it is taken for a pattern."""
    with Checkpoints(tmp_path / "plain", keep=2) as saved:
        saved.save(1, make())
    shutil.copytree(tmp_path / "plain", tmp_path / "r1=[0.3]")
    with Checkpoints(tmp_path / "r1=[0.3]") as saved:
        assert saved.restore(make())[0] == 1
        saved.save(2, make())
        with pytest.raises(StorageFault, match=r"step 2 .*without state/manifest.*of step 1 stands"):
            saved.wait()
        assert saved.steps == [1]


def test_state_may_be_donated_at_once(tmp_path):
    step = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 1, x), donate_argnums=0)
    state = {"a": jnp.zeros(3_000_000), "b": jnp.zeros(3_000_000, jnp.int32)}
    jax.block_until_ready(state)
    with Checkpoints(tmp_path / "c", keep=10) as saved:
        for number in range(1, 6):
            state = step(state)
            before = state
            saved.save(number, state)
            pending = saved._pending
            for _ in range(4):
                state = step(state)
            assert before["a"].is_deleted()
            assert pending
        saved.wait()
        for number in range(1, 6):
            _, found = saved.restore(state, number)
            expected = 5 * (number - 1) + 1
            assert (np.asarray(found["a"]) == expected).all() and (np.asarray(found["b"]) == expected).all()


def test_saving_is_asynchronous(tmp_path):
    state = {"a": jnp.asarray(np.random.default_rng(0).normal(size=8_000_000), jnp.float32)}
    returned_early = []
    with Checkpoints(tmp_path / "c", keep=5) as saved:
        for step in (1, 2, 3):
            saved.save(step, state)
            returned_early.append(step not in saved.steps)
            saved.wait()
            assert step in saved.steps
    assert any(returned_early)  # not all: the first of a busy machine may be late to look


def truncate(path: Path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax closes a loop that is in use
def test_every_damage_is_found_or_harmless(tmp_path, caplog):
    """Each file of the newest checkpoint is cut, flipped and deleted: never wrong bits, never an exception."""
    whole = tmp_path / "whole"
    with Checkpoints(whole) as saved:
        saved.save(1, make(1))
        saved.save(2, make(2))
    template, good = make(0), {1: bits(make(1)), 2: bits(make(2))}
    files = sorted(path.relative_to(whole) for path in (whole / "2").rglob("*") if path.is_file())
    arrays = max(files, key=lambda path: (whole / path).stat().st_size)
    for file in files:
        for damage in (truncate, flip, Path.unlink):
            folder = tmp_path / "damaged"
            shutil.copytree(whole, folder)
            damage(folder / file)
            caplog.clear()
            step, state = Checkpoints(folder).restore(template)
            assert bits(state) == good[step], (file, damage)
            warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
            assert len(warnings) == (step == 1), (file, damage, warnings)  # one line, and none of Orbax's
            assert all(str(folder / "2") in message and "is damaged" in message for message in warnings)
            if file == arrays or (file.name == "_CHECKPOINT_METADATA" and damage is not flip):
                assert step == 1, (file, damage)
            shutil.rmtree(folder)


def test_a_run_goes_on_from_before_the_damage(tmp_path):
    with Checkpoints(tmp_path, keep=3) as saved:
        for step in (1, 2, 3):
            saved.save(step, make(step))
    for step in ("2", "3"):
        shutil.rmtree(tmp_path / step / "state")
    with Checkpoints(tmp_path, keep=2) as saved:
        step, _ = saved.restore(make())
        assert step == 1
        saved.save(2, make(22))
        saved.wait()
        assert saved.steps == [1, 2]
        assert bits(saved.restore(make())[1]) == bits(make(22))
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "damaged-2", "damaged-3"}
    for step in ("1", "2"):
        shutil.rmtree(tmp_path / step / "state")
    with pytest.raises(InputError, match="no older one"):
        Checkpoints(tmp_path).restore(make())
    with pytest.raises(InputError, match="is damaged"):
        Checkpoints(tmp_path).restore(make(), 2)


KILLED = """
import os, signal, sys, time
import jax.numpy as jnp, numpy as np
from jaxgan.checkpoint import Checkpoints
noise = np.random.default_rng(0).normal(size=4_000_000).astype(np.float32)
saved = Checkpoints(sys.argv[1], keep=1)
saved.save(1, {"a": jnp.asarray(noise + 1)})
saved.wait()
saved.save(2, {"a": jnp.asarray(noise + 2)})
time.sleep(float(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_in_the_middle_of_a_save(tmp_path):
    delays = [0.0, 0.02, 0.1]
    children = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / str(delay)), str(delay)]) for delay in delays
    ]
    codes = [child.wait(timeout=60) for child in children]
    assert codes == [-9] * len(delays)
    noise = np.random.default_rng(0).normal(size=4_000_000).astype(np.float32)
    interrupted = 0
    for delay in delays:
        folder = tmp_path / str(delay)
        interrupted += any("tmp" in path.name for path in folder.iterdir())
        with Checkpoints(folder) as saved:
            step, state = saved.restore({"a": jnp.zeros(4_000_000)})
            assert (np.asarray(state["a"]) == noise + step).all()
            saved.save(3, {"a": jnp.zeros(3)})
        left = {path.name for path in folder.iterdir()}
        assert left == {str(step), "3"}  # what the killed save left is gone
    assert interrupted  # at least one was in the middle of it


TWO_DEVICES = """
import sys
import jax, numpy as np
from jaxgan.checkpoint import Checkpoints
mesh = jax.make_mesh((2,), ("data",))
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
def put(seed):
    return jax.device_put({"a": np.arange(6.0, dtype=np.float32) + seed, "key": jax.random.key(seed)}, everywhere)

with Checkpoints(sys.argv[1]) as saved:
    step, state = saved.restore(put(0))
    assert len(state["a"].sharding.device_set) == len(state["key"].sharding.device_set) == 2
    assert state["a"].sharding == everywhere and (np.asarray(state["a"]) == np.arange(6.0) + 5).all()
    assert (jax.random.key_data(state["key"]) == jax.random.key_data(jax.random.key(5))).all()
    grow = jax.jit(lambda x: x + 1, donate_argnums=0, out_shardings=everywhere)
    array = state["a"]
    for _ in range(3):
        array = grow(array)
    assert all((np.asarray(shard.data) == np.arange(6.0) + 8).all() for shard in array.addressable_shards)
    saved.save(step + 1, put(6))
"""


def test_one_device_and_two_read_each_other(tmp_path):
    one = {"a": jnp.arange(6.0) + 5, "key": jax.random.key(5)}
    with Checkpoints(tmp_path) as saved:
        saved.save(1, one)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", TWO_DEVICES, str(tmp_path)], env=environment, check=True)
    step, state = Checkpoints(tmp_path).restore(one)
    assert step == 2 and bits(state) == bits({"a": jnp.arange(6.0) + 6, "key": jax.random.key(6)})


def test_orbax_is_imported_when_it_is_needed(tmp_path):
    script = (
        "import sys, time, jax; from jaxgan.checkpoint import Checkpoints\n"
        f"saved = Checkpoints({str(tmp_path / 'c')!r}); assert saved.restore({{'a': jax.numpy.ones(2)}}) is None\n"
        "saved.close(); print('orbax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_run_that_began_below_a_pattern_that_matches_itself_goes_on(tmp_path):
    for name, refused in {"what?": False, "a*b": False, "r1=[0.3]": True, "a\\b": True}.items():
        run = tmp_path / name
        run.mkdir()
        with pytest.raises(InputError, match="expected a path without"):
            shelf.check(run, "a new run")
        (run / "config.json").write_text("{}")
        with pytest.raises(InputError) if refused else contextlib.nullcontext():
            shelf.check(run, "a run that began")


def test_a_full_disk_where_a_checkpoint_is_amended_is_a_fault_of_storage(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path) as saved:
        saved.save(1, {"w": np.ones(2)})
        saved.wait()
        monkeypatch.setattr(shelf, "amend", full)
        with pytest.raises(StorageFault, match="cannot amend the checkpoint of step 1: No space left"):
            saved.amend(1, {"fid": 1.0}, {"owed": None})
