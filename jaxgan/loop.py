"""Runs a game to its end: calls, log, samples, evaluation, checkpoints, resume. Knows nothing of GANs.

Started on the directory of an unfinished run, it goes on from the newest checkpoint that is whole, and ends in the same
bits: metrics after the checkpoint are dropped, and everything random is a function of the step.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxgan import checkpoint, files, flags, hosts, lastwords, memory, parallel, report, rollback, workdir
from jaxgan.config import Common, check_numbers, kimg
from jaxgan.data import Feed
from jaxgan.errors import Diverged, InputError, Preempted, StorageFault, printable
from jaxgan.game import Game, State
from jaxgan.preemption import Preemption

Sample = Callable[[State], np.ndarray]  # -> a picture, uint8 (H, W, c)
Evaluate = Callable[[State], Mapping[str, float]]
PROFILED = 2  # the number of the call that --profile records: the first compiles, the second warms caches


def cache_dir() -> Path:
    """Where compiled programs and classifiers are kept between runs: $JAXGAN_CACHE, or ~/.cache/jaxgan."""
    return Path(os.environ.get("JAXGAN_CACHE") or Path("~/.cache/jaxgan").expanduser())


def setup(config: Common) -> None:
    """Process-wide settings, most of them of JAX, and the other hosts; before anything touches a device."""
    # Cameras write EXIF that is not quite right: a line for each, and nothing that pixels depend on.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    if config.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    if config.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    hosts.initialise(config)


def run(
    game: Game,
    feed: Feed,
    config: Common,
    *,
    example: Mapping[str, Any],
    devices: list[jax.Device],
    about: Mapping[str, Any],
    sample: Sample | None = None,
    evaluate: Evaluate | None = None,
    best: str | None = None,
    begin_from: Callable[[State], State] = lambda state: state,
) -> State:
    """Trains to `config.steps` and returns the last state.

    example: a batch (b, ...) for its shapes. about: what config.json holds beside the config (networks, data).
    best: an evaluated metric whose best checkpoint is kept too, the one with the least; of "max:name" with the most.
    begin_from: the first state -> the one to start from instead, of the same shapes: with the weights of another run.
    Raises `Preempted` when a signal ended it, `StorageFault` when nothing can be written any longer, and `Diverged`.
    """
    started = time.monotonic()
    length = min(config.steps_per_call, feed.max_steps, config.steps)
    check_memory(game, config, example, devices)
    shapes = parallel.like(shapes_of(game, config, example), devices)
    with hosts.together(), contextlib.ExitStack() as stack:
        preemption = stack.enter_context(Preemption())
        pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile")
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)

        def program(rollbacks: int) -> "Program":
            slowed = game.slowed(rollback.SLOWER**rollbacks) if rollbacks else game
            call = parallel.compile_steps(slowed, feed.draw, devices)
            return Program(call, pool.submit(lambda: parallel.ahead(call, shapes, *feed.like(length))), length)

        def first() -> State:
            # Optimising a program that runs once costs a CPU 6 s of start-up for the default networks, this way 1.5 s.
            quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
            init = jax.jit(game.init, compiler_options=quick)
            return parallel.replicate(begin_from(init(jax.random.key(config.seed), example)), devices)

        # Three things at once: the step compiles, the data are read, and the first state is made.
        compiling = program(0)
        state = first()
        resident = feed.resident  # raises for data that cannot be read, before anything is written
        directory, beat = workdir.of(config), workdir.Beat(None)

        def hold() -> bool:
            nonlocal beat
            beat = stack.enter_context(workdir.held(workdir.claim(config)))
            same = flags.check_same(config, directory)
            feed.check(flags.read(directory).get("examples") if same else None, "this run began with")
            return same

        resumed = hosts.agree(hold)
        feed.check(hosts.agree(lambda: feed.examples), "host 0 has")
        checkpoints = stack.enter_context(
            checkpoint.Checkpoints(directory / "checkpoints", keep=config.keep, best=best, metadata=about)
        )
        step, owed, rollbacks, went_back = 0, None, 0, hosts.agree(rollback.count, directory)
        if found := checkpoints.restore(shapes):
            step, state = found
            kept = hosts.agree(checkpoint.describe, directory / "checkpoints", step)["metadata"] or {}
            rollbacks, owed = kept.get("rollbacks", 0), kept.get("owed")
        if went_back > rollbacks:  # and was ended before it saved again
            rollbacks = went_back
            state = rollback.other_noise(state, rollbacks, devices)
        if step >= config.steps and not owed:
            hosts.tell(f"{directory} is already trained for {step} steps; --steps={config.steps} asks for no more")
            return state

        def begin() -> None:
            with storing(directory, checkpoints):
                flags.write(hosts.alone(config), directory, {**about, "examples": feed.examples})
                if feed.skipped:
                    files.write(directory / "skipped.txt", "".join(f"{printable(line)}\n" for line in feed.skipped))
                report.truncate(directory, step if resumed else -1)

        hosts.agree(begin)
        if rollbacks:
            compiling = program(rollbacks)
        run = Run(game, feed, config, directory, checkpoints, preemption, beat, sample, evaluate)
        for left in range(max(config.rollbacks - rollbacks, 0), -1, -1):
            try:
                state, scores = play(run, compiling, resident, step, state, rollbacks, owed)
                break
            except Diverged as error:
                if config.on_nonfinite == "stop" or not left:
                    raise
                rollbacks += 1
                compiling = program(rollbacks)
                # One that leads nowhere was saved too late: then the one before it, or from the start.
                with storing(directory, checkpoints):
                    before = step if step in hosts.agree(lambda: checkpoints.steps[-1:]) else None
                    step, state = checkpoints.restore(shapes, before=before) or (0, first())
                    hosts.agree(rollback.go_back, directory, step, rollbacks)
                state, owed = rollback.other_noise(state, rollbacks, devices), None
                rate = f"learning rates times {rollback.SLOWER**rollbacks}"
                hosts.tell(f"{error}; back to step {step}, {rate}, other noise; {left - 1} rollbacks left", sys.stderr)
    step, seconds = config.steps, time.monotonic() - started
    shown = best.rpartition(":")[2] if best else ""
    ending = f", {shown} {scores[shown]:.2f}" if shown in scores else ""
    pictures = "samples/, " if sample and config.sample_every else ""
    hosts.tell(
        f"trained {step} steps, {kimg(step * config.batch_size)}, in {seconds:.0f} s{ending}; "
        f"everything lies in {directory}: checkpoints/, {pictures}metrics.jsonl, config.json"
    )
    return state


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled call of so many steps, which compiles in a thread; calls of fewer compile by themselves."""

    call: Any
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
        log = record(config, run.directory, step)
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
            stop_if_diverged(stacked, run.game, first, checkpoints)
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
                raise Preempted(
                    f"stopped by {preemption.name or 'another host'} at step {step}, saved {when}; "
                    "the same command goes on"
                )
        with storage():
            log.close()
            checkpoints.wait()
    return state, scores


def record(config: Common, directory: epath.Path, step: int) -> report.Report | report.Silent:
    """Where the run is reported: by the first host alone."""
    if not hosts.first():
        return report.Silent()
    return report.Report(
        directory,
        total_steps=config.steps,
        batch_size=config.batch_size,
        start_step=step,
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
            found = run.preemption.unless_asked(run.evaluate, state)
        if found is not None and run.sample and due(run.config.sample_every):
            grid = run.preemption.unless_asked(run.sample, state)
            if grid is None:
                return None
            log.picture("", step, step * run.config.batch_size, grid)
        return None if found is None else {f"eval/{name}": float(value) for name, value in found.items()}

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


def check(config: Common) -> None:
    """What can be wrong with a run before any data is read; writes nothing."""
    check_numbers(config)
    with hosts.together():
        hosts.agree(workdir.check, config)


def shapes_of(game: Game, config: Common, example: Mapping[str, Any]) -> State:
    """Those of the first state. Raises InputError for networks of more numbers than there are addresses."""
    try:
        state = jax.eval_shape(game.init, jax.random.key(config.seed), example)
    except (OverflowError, MemoryError):
        state = None
    if state is None or sum(leaf.size for leaf in jax.tree.leaves(state)) > 2**40:
        raise InputError("the networks are too large for any memory; expected less of --width or --latent") from None
    return state


def check_memory(game: Game, config: Common, example: Mapping[str, Any], devices: list[jax.Device]) -> None:
    """Refuses what cannot fit: the state and one batch, without what computing with them takes."""
    state = shapes_of(game, config, example)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    own = [device for device in devices if device.process_index == jax.process_index()]
    batch = game.draws * config.batch_size // len(devices) * len(own) * 4 * math.prod(example["image"].shape[1:])
    room = memory.of(own)
    memory.check(weights * len(own), "the networks and their optimizers", "expected less of --width", room)
    what = f"a step of {game.draws:,} batches of {config.batch_size:,} images"
    memory.check(batch, what, "expected a smaller --batch_size", room)


def stop_if_diverged(
    stacked: Mapping[str, np.ndarray], game: Game, first: int, checkpoints: checkpoint.Checkpoints
) -> None:
    """A non-finite loss ends the run before anything of it is saved."""
    for move in game.moves:
        bad = np.flatnonzero(~np.isfinite(stacked[f"{move.title}/loss"]))
        if len(bad):
            raise Diverged(
                f"the loss of move {move.title!r} is not finite in step {first + bad[0]} ({len(bad)} of the "
                f"{len(stacked[f'{move.title}/loss'])} steps of this call); {last_good(checkpoints)}. "
                "A lower learning rate or a gradient penalty may help"
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
        raise Diverged(f"the weights are not finite after step {step}; {last_good(checkpoints)}")
    checkpoints.save(step, state, dict(scores), kept)
