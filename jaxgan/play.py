"""Plays a game from a step to its end: compiled calls, log, samples, evaluation, checkpoints, and how it ends early."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxgan import checkpoint, contracts, files, hosts, lastwords, report, workdir
from jaxgan.config import Common
from jaxgan.data import Feed
from jaxgan.errors import Diverged, StorageFault
from jaxgan.game import Game, State
from jaxgan.preemption import Preemption

Sample = Callable[[State], np.ndarray]  # -> a picture, uint8 (H, W, c)
Evaluate = Callable[[State], Mapping[str, float]]
PROFILED = 2  # the number of the call that --profile records: the first compiles, the second warms caches


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled call of so many steps, which compiles in a thread; calls of fewer compile by themselves.

    traced: done, or with its error, once the step is traced.
    """

    call: Any
    traced: concurrent.futures.Future
    ahead: concurrent.futures.Future
    length: int

    def of(self, steps: int) -> Any:
        return self.ahead.result() if steps == self.length else self.call


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last."""

    game: Game
    feed: Feed
    config: Common
    directory: epath.Path
    checkpoints: checkpoint.Checkpoints
    preemption: Preemption
    beat: workdir.Beat
    sample: Sample | None
    evaluate: Evaluate | None


def play(
    run: Run, program: Program, resident: Any, step: int, state: State, rollbacks: int, owed: dict | None
) -> tuple[State, dict[str, float]]:
    """From `step` to the end: the last state, and its scores if it was evaluated.

    owed: what a signal left undone of the call that ended at `step`: {"first": its first step, "metrics"}.
    """
    config, checkpoints, preemption = run.config, run.checkpoints, run.preemption
    start = step
    scores: dict[str, float] = {}  # of the state at hand, where it was evaluated
    storage = functools.partial(storing, run.directory, checkpoints)
    kept = {"rollbacks": rollbacks} if rollbacks else {}
    with storage():
        log = record(config, run.directory, step, owed=bool(owed))
    with log, lastwords.Watch(config.call_timeout) as watch:
        if step:
            log.note(f"resuming {run.directory} at step {step}")
        if config.steps - step >= program.length:
            program.of(program.length)  # waits for the compiler, as long as a signal may end that
        preemption.begin()
        if owed:
            found = observed(run, log, owed["first"], step, state)
            if found is None:
                preemption.begin()  # ends it: the checkpoint still says what is owed
            scores = found or {}
            with storage():
                log.log(step, step * config.batch_size, owed["metrics"] | scores)
                log.flush()
                checkpoints.amend(step, scores, {"owed": None})
        # The short call at the end compiles: of fewer calls than that, the last whole one.
        chosen = min(PROFILED, max((config.steps - step) // program.length - 1, 0))
        for i, x in enumerate(run.feed.calls(step, config.steps, program.length)):
            recorded = config.profile and i == chosen and hosts.first()
            with profiled(run.directory, storage) if recorded else contextlib.nullcontext():
                steps = next(iter(x.values())).shape[1]  # the last call may be shorter
                call = program.of(steps)
                with watch.call(compiles=i == 0 or steps < program.length):
                    state, stacked = call(state, resident, x)
                    stacked = jax.device_get(stacked)
            first, step = step, step + steps
            stop_if_diverged(stacked, run.game, first)
            metrics = run.game.average(stacked, first) | kept
            # Before the first row the time is that of compilation, which has no rate to take a pause from.
            with log.paused() if first > start else contextlib.nullcontext():
                found = observed(run, log, first, step, state)
            scores = found or {}
            with storage():
                if found is not None:
                    log.log(step, step * config.batch_size, metrics | scores)
                run.beat.check()
            stop = hosts.anyone(preemption.asked) and (step < config.steps or found is None)
            if stop or due_between(first, step, config.steps)(config.checkpoint_every) or step == config.steps:
                left = {} if found is not None else {"owed": {"first": first, "metrics": metrics}}
                with log.paused(), storage():
                    log.flush()  # before the state that follows it: a run killed between the two draws no picture twice
                    save(checkpoints, step, state, scores, kept | left)
            if stop:
                with storage():
                    checkpoints.wait()
                own = f"{preemption.seconds:.1f} s after the signal"
                when = own if preemption.asked else "as a signal asked elsewhere"
                raise preemption.ending(
                    f"stopped by {preemption.name or 'another host'} at step {step}, saved {when}; "
                    "the same command goes on"
                )
        with storage():
            log.close()
            checkpoints.wait()
    return state, scores


def record(config: Common, directory: epath.Path, step: int, owed: bool) -> report.Report | report.Silent:
    """Where the run is reported: by the first host alone."""
    if not hosts.first():
        return report.Silent()
    return report.Report(
        directory,
        total_steps=config.steps,
        batch_size=config.batch_size,
        start_step=step,
        owed=owed,
        tensorboard=config.tensorboard,
    )


def observed(
    run: Run, log: report.Report | report.Silent, first: int, step: int, state: State
) -> dict[str, float] | None:
    """The figures that are due after a call, whose picture is drawn too; None where a signal came meanwhile."""
    due = due_between(first, step, run.config.steps)

    def by_the_first_host() -> dict[str, float] | None:
        found: Mapping[str, float] | None = {}
        if run.evaluate and due(run.config.eval_every):
            with lastwords.patience(f"evaluating step {step}; the first evaluation takes longest", log.note):
                found = run.preemption.unless_asked(run.evaluate, state)
        if found is not None and run.sample and due(run.config.sample_every):
            grid = run.preemption.unless_asked(run.sample, state)
            if grid is None:
                return None
            log.picture("", step, step * run.config.batch_size, grid)
        return None if found is None else figures(found)

    def figures(found: Mapping[str, Any]) -> dict[str, float]:
        return {f"eval/{n}": contracts.number(f"the figure {n!r} of evaluate", x) for n, x in found.items()}

    asked = (run.evaluate and due(run.config.eval_every)) or (run.sample and due(run.config.sample_every))
    return hosts.agree(by_the_first_host) if asked else {}


@contextlib.contextmanager
def storing(directory: epath.Path, checkpoints: checkpoint.Checkpoints) -> Iterator[None]:
    """What is written in here is written, or the run ends: it would train for nothing.

    Of many hosts that is the first, which does not ask the others what stands.
    """
    try:
        yield
    except OSError as error:
        reason = f"cannot write to {os.fspath(directory)!r}: {error.strerror or error}"
        left = checkpoints.standing if hosts.several() else last_good(checkpoints)
        raise StorageFault(f"{reason}; {left}; the same command goes on from there") from error


@contextlib.contextmanager
def profiled(workdir: epath.Path, storage: Callable[[], contextlib.AbstractContextManager]) -> Iterator[None]:
    """Records what the devices do. TensorBoard shows it with its profile plugin; ui.perfetto.dev reads the .gz file."""
    if not files.is_remote(workdir):
        with jax.profiler.trace(workdir / "profile", create_perfetto_trace=True):
            yield
        return
    with tempfile.TemporaryDirectory() as folder:  # the profiler writes to disks only
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            yield
        for path in filter(Path.is_file, Path(folder).rglob("*")):
            with storage():
                files.write(workdir / "profile" / path.relative_to(folder).as_posix(), path.read_bytes())


def due_between(first: int, last: int, total: int) -> Callable[[int], bool]:
    """Whether something that happens every so many steps, and at the end, falls in the steps (first, last]."""
    return lambda every: every > 0 and (last // every > first // every or last == total)


def stop_if_diverged(stacked: Mapping[str, np.ndarray], game: Game, first: int) -> None:
    """A non-finite loss ends the run before anything of it is saved."""
    for move in game.moves:
        bad = np.flatnonzero(~np.isfinite(stacked[f"{move.title}/loss"]))
        if len(bad):
            raise Diverged(
                f"the loss of move {move.title!r} is not finite in step {first + bad[0]} ({len(bad)} of the "
                f"{len(stacked[f'{move.title}/loss'])} steps of this call)"
            )


@jax.jit
def _finite(tree: Any) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


def last_good(checkpoints: checkpoint.Checkpoints) -> str:
    """What is left of a run that ends early."""
    with contextlib.suppress(StorageFault):  # of the save under way
        checkpoints.wait()
    return hosts.agree(lambda: checkpoints.standing)


def save(
    checkpoints: checkpoint.Checkpoints,
    step: int,
    state: State,
    scores: Mapping[str, float],
    kept: Mapping[str, Any],
) -> None:
    """Saves a state that is finite: the last update of a call may have broken what no loss has seen yet."""
    if not _finite(state.players):
        raise Diverged(f"the weights are not finite after step {step}")
    checkpoints.save(step, state, dict(scores), kept)
