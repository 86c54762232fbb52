"""Checkpoints of a state. The only module that imports Orbax, and it does so at the first save or restore (0.5 s).

    with Checkpoints("runs/digits/checkpoints", keep=2, best="fid") as checkpoints:
        found = checkpoints.restore(state)            # None: start afresh
        step, state = found or (0, state)
        checkpoints.save(step, state, {"fid": 12.5})  # returns once the state is copied to the host
    params = read("runs/digits/checkpoints")["players"]["gen"]["params"]

A checkpoint is an Orbax directory named by its step, renamed into place when it is whole; in a bucket it has that name
from the start, and a marker is its last file. Its leaves are stored by name, as a nested dict of host arrays, so a
checkpoint knows of no classes and no devices. Orbax does not notice a flipped bit in an array; each leaf therefore has
a CRC-32 in the checkpoint's metadata (2 GB/s), and so has that table.

Of many hosts, the first writes and reads, and sends the others what it read: a state is the same on all of them, so the
directory need not be shared, nor seen alike. All learn what became of it.
"""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxgan import files, hosts, lastwords, leaves, memory, quiet, shelf
from jaxgan.errors import Ending, InputError, StorageFault

RENAMED = {"eval/frechet": "eval/fid"}  # metrics by the names under which older runs stored them
LARGEST = 2**26  # bytes of a table, which is read as a whole

Added = Mapping[str, Callable[[tuple[int, ...]], np.ndarray]]  # prefix of leaves' names -> (shape -> array)


class Checkpoints:
    """The checkpoints of one run. Every process of a run makes one, and calls the same methods in the same order.

    Args:
      directory: where they are kept; made by the first save. May be `gs://`.
      keep: how many of the latest to keep.
      best: a metric, as given to `save`; the checkpoint with the least is kept too. `"max:name"`: with the most.
      metadata: what else to store with each checkpoint, as JSON (see `describe`).
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep: int = 2,
        best: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ):
        if keep < 1:
            raise InputError(f"keep={keep} checkpoints: expected at least 1")
        self._directory = shelf.absolute(directory)
        self._keep = keep
        sign, _, name = best.rpartition(":") if best else ("", "", "")
        if sign not in ("", "min", "max") or (best and not name):
            raise InputError(f"best={best!r}: expected a metric's name, 'min:name' or 'max:name'")
        self._best, self._sign = name, -1.0 if sign == "max" else 1.0
        self._metadata = dict(metadata or {})
        self._damaged: set[int] = set()
        self._tidied = False
        self._writer: Any = None  # an Orbax AsyncCheckpointer
        self._pending: contextlib.ExitStack | None = None  # keeps Orbax quiet during a save
        self._saving: int | None = None  # the step of that save, on every host

    @property
    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, ascending."""
        return shelf.steps(self._directory)

    def save(
        self,
        step: int,
        state: Any,
        metrics: Mapping[str, float] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts to write `state`, and waits for the save before it. A step that is there already is left alone.

        more: metadata of this checkpoint beside that of the run.
        Every leaf has been copied when this returns, so the state may be donated at once. Raises `StorageFault` if
        nothing can be written or the save before this one failed, `InputError` if the directory holds a later step.
        """
        self.wait()
        if hosts.agree(self._start, step, state, metrics, more):
            self._saving = step

    def _start(
        self, step: int, state: Any, metrics: Mapping[str, float] | None, more: Mapping[str, Any] | None
    ) -> bool:
        """Whether there is anything to wait for."""
        try:
            with files.faults(self._directory):
                self._tidy()
                steps = self.steps
            if step in steps:
                return False
            if steps and steps[-1] > step:
                where = os.fspath(self._directory)
                raise InputError(f"cannot save step {step}: {where!r} already holds step {steps[-1]}")
            arrays, manifest = leaves.to_host(state)
            # Orbax takes 200 bytes a leaf for their table, 400 for the places, and rounds every file up.
            files.check_room(self._directory, sum(x.nbytes for x in arrays.values()) + 1024 * len(arrays) + 2**16)
            metadata = self._metadata | dict(more or {})
            custom = {"leaves": manifest, "crc": leaves.crc(manifest), "metadata": metadata}
            custom["metrics"] = _finite(metrics or {})
            stored = leaves.nest({name: array for name, array in arrays.items() if array.size})
            if not files.is_remote(self._directory):
                self._directory.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                stack.enter_context(quiet.quietly())
                from orbax.checkpoint import args

                self._writer = self._writer or _writer()
                items = args.Composite(state=args.PyTreeSave(stored))
                with files.faults(self._directory):
                    self._writer.save(self._directory / str(step), items, custom_metadata=custom)
                self._pending = stack.pop_all()
        except OSError as error:
            raise self._unwritten(step, error) from None
        return True

    def amend(self, step: int, metrics: Mapping[str, float], more: Mapping[str, Any]) -> None:
        """Adds to the metrics and the metadata of a checkpoint, which may be the best from then on."""
        self.wait()
        hosts.agree(self._amend, step, metrics, more)

    def _amend(self, step: int, metrics: Mapping[str, float], more: Mapping[str, Any]) -> None:
        try:
            with files.faults(self._directory):
                self._tidy()
                shelf.amend(self._directory / str(step), _finite(metrics), more)
                self._prune()
        except OSError as error:
            raise StorageFault(f"cannot amend the checkpoint of step {step}: {error.strerror or error}") from None

    def restore(
        self,
        template: Any,
        step: int | None = None,
        before: int | None = None,
        added: Added | None = None,
    ) -> tuple[int, Any] | None:
        """The newest state that is whole, with its step; None if there are no checkpoints.

        Args:
          template: a state of the same structure, or its shapes; leaves tell dtypes, shapes and shardings, not values.
          step: take this one and no other.
          before: take none of this step or later, and move those aside.
          added: leaves of `template` that a checkpoint of an older version may lack, {prefix of their names: shape ->
            the array to use in their place}.

        A damaged checkpoint is reported by a warning and the one before it is used; the next `save` moves it aside.
        Raises `InputError` if all are damaged, or if one holds other leaves than `template`, naming the first.
        """
        self.wait()
        expected = leaves.manifest_of(template)
        arrays: dict[str, np.ndarray] = {}

        def newest() -> int | None:
            self._damaged |= {step for step in self.steps if before is not None and step >= before}
            found = _newest(self._directory, step, expected, self._damaged, added)
            if before is not None:
                with files.faults(self._directory):
                    self._tidy()  # at once: a process that starts anew is not to go on from them
            arrays.update(found[1] if found else {})
            return found[0] if found else None

        found = hosts.agree(newest)
        lastwords.stands(found)
        if found is None:
            return None
        arrays = hosts.share(arrays)
        wanted, structure = jax.tree.flatten(template)
        placed = [leaves.place(arrays[name], leaf) for name, leaf in zip(expected, wanted, strict=True)]
        return found, jax.tree.unflatten(structure, placed)

    def best(self) -> int | None:
        """The step whose stored metric is best, of those that are kept; None if no step has that metric."""
        self.wait()
        return self._best_of([step for step in self.steps if step not in self._damaged])

    def wait(self) -> None:
        """Returns when the last save is whole. Raises `StorageFault` if it failed, say for want of space."""
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        hosts.agree(self._finish, step)
        lastwords.stands(step)

    def _finish(self, step: int) -> None:
        pending, self._pending = self._pending, None
        assert pending is not None
        with pending:
            try:
                self._writer.wait_until_finished()
                path = self._directory / str(step)
                if not (path / shelf.TABLE).exists():  # Orbax has said nothing of it
                    path.rmtree()
                    raise OSError(f"Orbax left it without {shelf.TABLE}, which tells where its arrays are")
                self._prune()
            except Exception as error:  # whatever the file system or the network had to say
                raise self._unwritten(step, error) from None

    def close(self) -> None:
        """Waits, and lets Orbax end its threads."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def _unwritten(self, step: int, error: Exception) -> StorageFault:
        """The save of `step` failed: nothing of it stays behind, and the writer, which would say so again, goes."""
        reason = quiet.line(quiet.root(error))
        fault = f"cannot write the checkpoint of step {step} to {os.fspath(self._directory)!r}: {reason}"
        writer, self._writer = self._writer, None
        with quiet.quietly(), contextlib.suppress(Exception):
            writer.close()
        with contextlib.suppress(OSError), files.faults(self._directory):
            for part in shelf.leftovers(self._directory):
                if part.name.partition(".")[0] == str(step):
                    with contextlib.suppress(OSError), files.faults(part):
                        part.rmtree()
        return StorageFault(f"{fault}; {self.standing}; the same command goes on from there")

    @property
    def standing(self) -> str:
        """What a run that ends early has left to go on from."""
        try:
            with files.faults(self._directory):
                steps = self.steps
        except OSError:  # of a bucket that is out of reach
            return "the checkpoints that had been saved stand"
        return f"the checkpoint of step {steps[-1]} stands" if steps else "no checkpoint had been saved yet"

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and hosts.several():
            step, self._saving = self._saving, None
            if self._pending and step is not None:  # the others may be gone: without them
                self._finish(step)
                lastwords.stands(step)
        self.close()

    def _tidy(self) -> None:
        """Moves damaged checkpoints aside, which would push out good ones, and removes what killed saves left."""
        for step in self._damaged:
            shelf.set_aside(self._directory, step)
        self._damaged.clear()
        for path in () if self._tidied else shelf.leftovers(self._directory):
            path.rmtree()
        self._tidied = True

    def _prune(self) -> None:
        """Removes all but the latest and the best; none while one cannot be read, which may be the best."""
        metrics = {step: describe(self._directory, step) for step in self.steps} if self._best else {}
        if all(found["metadata"] is not None for found in metrics.values()):
            for step in {*self.steps[: -self._keep]} - {self._best_of(self.steps)}:
                (self._directory / str(step)).rmtree()

    def _best_of(self, steps: list[int]) -> int | None:
        metrics = {step: describe(self._directory, step)["metrics"] for step in steps} if self._best else {}
        values = {
            step: found.get(self._best, found.get(RENAMED.get(self._best, ""))) for step, found in metrics.items()
        }
        ranked = [(self._sign * value, -step) for step, value in values.items() if value is not None]
        return -min(ranked)[1] if ranked else None


def read(directory: epath.PathLike, step: int | None = None) -> dict[str, Any]:
    """The newest state that is whole, or that of `step`, as a nested dict of NumPy arrays; typed keys as their data.

    Needs no template and imports none of the code that wrote it. Raises `InputError` if there is none.
    """
    found = _newest(shelf.absolute(directory), step, None, set())
    if found is None:
        raise InputError(f"no checkpoint in {os.fspath(directory)!r}")
    return leaves.nest(found[1])


def describe(directory: epath.PathLike, step: int) -> dict[str, Any]:
    """{"metrics", "metadata"} as stored with `step` and amended; {} and None where they cannot be read."""
    path = shelf.absolute(directory) / str(step)
    try:
        with quiet.quietly(), _by_itself():
            custom = _orbax().checkpointables_metadata(path).custom_metadata
        later = shelf.amended(path)
        return {kind: custom[kind] | later[kind] for kind in ("metrics", "metadata")}
    except Exception:  # damage shows as any error at all
        return {"metrics": {}, "metadata": None}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


class _Damaged(Exception):
    """A checkpoint that is not what was written."""


def _orbax() -> Any:
    from orbax.checkpoint import v1

    return v1


def _writer() -> Any:
    """An Orbax AsyncCheckpointer. Orbax's v1 has no writer that waits for no other process."""
    import orbax.checkpoint as ocp

    own = {jax.process_index()} if hosts.several() else None
    options = ocp.options.MultiprocessingOptions(jax.process_index(), own, "jaxgan" if own else None)
    items = ocp.CompositeOptions(multiprocessing_options=options)
    state = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    handler = ocp.CompositeCheckpointHandler(state=state, composite_options=items)
    return ocp.AsyncCheckpointer(handler, multiprocessing_options=options)


def _by_itself() -> Any:
    """An Orbax context in which this process waits for no other."""
    context = _orbax().Context()
    if hosts.several():
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
    return context


def _newest(
    directory: epath.Path,
    step: int | None,
    expected: leaves.Manifest | None,
    damaged: set[int],
    added: Added | None = None,
) -> tuple[int, dict[str, np.ndarray]] | None:
    """The newest that is whole, or `step`. Adds those that are not to `damaged`."""
    steps = shelf.steps(directory)
    if step is not None and step not in steps:
        raise InputError(f"no checkpoint of step {step} in {os.fspath(directory)!r}; there are {steps or 'none'}")
    candidates = [step for step in steps[::-1] if step not in damaged] if step is None else [step]
    for candidate in candidates:
        try:
            return candidate, _load(directory / str(candidate), expected, added or {})
        except _Damaged as error:
            if (now := shelf.steps(directory)) != steps:  # a run beside this replaced it, and it was half gone
                if step is None:
                    return _newest(directory, step, expected, damaged)
                if step not in now:
                    raise InputError(
                        f"the checkpoint of step {step} in {os.fspath(directory)!r} was removed while it was read, by "
                        f"the run itself (--keep); there are {now or 'none'}"
                    ) from None
            reason = f"checkpoint {os.fspath(directory / str(candidate))!r} is damaged ({error})"
            if candidate == candidates[-1]:
                hint = "" if step is not None else "; there is no older one that is whole"
                raise InputError(reason + hint) from None
            logging.getLogger(__name__).warning("%s; trying the one before it", reason)
            damaged.add(candidate)
    return None


def _load(
    path: epath.Path,
    expected: leaves.Manifest | None,
    added: Added,
) -> dict[str, np.ndarray]:
    """The leaves of one checkpoint by name. Raises `_Damaged`, or `InputError` if they are not those `expected`."""
    quiet.hush()
    with quiet.quietly(), _by_itself():
        try:
            return _verified(path, expected, added)
        except (Ending, _Damaged):
            raise
        except Exception as error:  # damage shows as any error at all: of files, of JSON, of TensorStore
            reason = quiet.line(quiet.root(error))
    raise _Damaged(reason)


def _verified(
    path: epath.Path,
    expected: leaves.Manifest | None,
    added: Added,
) -> dict[str, np.ndarray]:
    ocp = _orbax()
    if odd := files.odd(path, "*_METADATA", LARGEST):
        raise _Damaged(odd)
    metadata = ocp.checkpointables_metadata(path)
    custom = metadata.custom_metadata or {}
    manifest = custom.get("leaves")
    if not manifest or leaves.crc(manifest) != custom.get("crc"):
        raise _Damaged("the table of its leaves is gone or changed")
    fills = {
        name: fill
        for name in expected or {}
        for prefix, fill in added.items()
        if name.startswith(prefix) and name not in manifest
    }
    if expected is not None:
        _compare(path, manifest, {name: entry for name, entry in expected.items() if name not in fills})
    _check_shapes(path, manifest, dict(leaves.names(metadata.metadata["state"])))
    stored = ocp.load_checkpointables(path, {"state": None})["state"]
    arrays = {name: np.asarray(array) for name, array in leaves.names(stored)}
    for name, (dtype, shape, crc) in manifest.items():
        if 0 in shape:  # Orbax stores no empty arrays
            arrays[name] = np.zeros(shape, dtype)
        array = arrays[name]
        same = dtype.startswith("key<") or [str(array.dtype), list(array.shape)] == [dtype, shape]
        if not same or leaves.crc(array) != crc:
            raise _Damaged(f"{name} is not what was written")
    for name, fill in fills.items():
        dtype, shape = (expected or {})[name]
        arrays[name] = np.asarray(fill(tuple(shape)), dtype).reshape(shape)
    return arrays


def _check_shapes(path: epath.Path, manifest: leaves.Manifest, stored: Mapping[str, Any]) -> None:
    """Before any array is read: a file of a few bytes can declare one of any shape."""
    for name, (dtype, shape, _) in manifest.items():
        leaf = stored.get(name)
        same = leaf is not None and (dtype.startswith("key<") or [str(leaf.dtype), list(leaf.shape)] == [dtype, shape])
        if not same and 0 not in shape:
            raise _Damaged(f"{name} is not what was written")
    memory.check(sum(math.prod(x.shape) * x.dtype.itemsize for x in stored.values()), f"checkpoint {os.fspath(path)!r}")


def _compare(path: epath.Path, manifest: leaves.Manifest, expected: leaves.Manifest) -> None:
    for name in [*expected, *manifest]:
        stored, wanted = manifest.get(name, [])[:2], expected.get(name, [])
        if stored != wanted:
            here, there = (f"{entry[0]}{entry[1]}" if entry else "no such leaf" for entry in (wanted, stored))
            what = f"{name} is {there} there, {here} here"
            raise InputError(f"checkpoint {os.fspath(path)!r} is of another state: {what}")
