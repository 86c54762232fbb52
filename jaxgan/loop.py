"""Runs a game to its end: calls, log, samples, evaluation, checkpoints, resume. Knows nothing of GANs.

Started on the directory of an unfinished run, it goes on from the newest checkpoint that is whole, and ends in the same
bits: metrics after the checkpoint are dropped, and everything random is a function of the step.
"""

import concurrent.futures
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxgan import checkpoint, flags, hosts, lastwords, parallel, report
from jaxgan.config import Common
from jaxgan.data import Feed
from jaxgan.errors import Diverged, InputError
from jaxgan.game import Game, State

Sample = Callable[[State], np.ndarray]  # -> a picture, uint8 (H, W, c)
Evaluate = Callable[[State], Mapping[str, float]]
PROFILED = 2  # the number of the call that --profile records: the first compiles, the second warms caches


def cache_dir() -> Path:
    """Where compiled programs and classifiers are kept between runs: $JAXGAN_CACHE, or ~/.cache/jaxgan."""
    return Path(os.environ.get("JAXGAN_CACHE") or Path("~/.cache/jaxgan").expanduser())


def setup(config: Common) -> None:
    """Process-wide settings of JAX, and the other hosts; before anything touches a device."""
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
) -> State:
    """Trains to `config.steps` and returns the last state.

    example: a batch (b, ...) for its shapes. about: what config.json holds beside the config (networks, data).
    best: an evaluated metric whose best checkpoint is kept too, the one with the least; of "max:name" with the most.
    """
    started = time.monotonic()
    length = min(config.steps_per_call, feed.max_steps, config.steps)
    call = parallel.compile_steps(game, feed.draw, devices)
    shapes = parallel.like(jax.eval_shape(game.init, jax.random.key(config.seed), example), devices)
    with hosts.together(), contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        # Three things at once: the step compiles, the data are read, and the first state is made.
        ahead = pool.submit(lambda: parallel.ahead(call, shapes, *feed.like(length)))
        # Optimising a program that runs once costs a CPU 6 s of start-up for the default networks, this way 1.5 s.
        quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        init = jax.jit(game.init, compiler_options=quick)
        state = parallel.replicate(init(jax.random.key(config.seed), example), devices)
        resident = feed.resident  # raises for data that cannot be read, before anything is written
        workdir = epath.Path(hosts.agree(lambda: os.fspath(claim(config))))
        resumed = hosts.agree(flags.check_same, config, workdir)
        checkpoints = stack.enter_context(
            checkpoint.Checkpoints(workdir / "checkpoints", keep=config.keep, best=best, metadata=about)
        )
        step = 0
        if found := checkpoints.restore(state):
            step, state = found
        if step >= config.steps:
            if hosts.first():
                print(f"{workdir} is already trained for {step} steps; --steps={config.steps} asks for no more")
            return state
        hosts.agree(begin, config, workdir, about, step if resumed else -1)
        start = step
        log = record(config, workdir, step)
        stack.enter_context(log)
        watch = stack.enter_context(lastwords.Watch(config.call_timeout))
        if step:
            log.note(f"resuming {workdir} at step {step}")
        scores: dict[str, float] = {}  # of the state at hand, where it was evaluated
        for i, x in enumerate(feed.calls(step, config.steps, length)):
            with profiled(workdir) if config.profile and i == PROFILED and hosts.first() else contextlib.nullcontext():
                whole = next(iter(x.values())).shape[1] == length  # the last may be shorter, and compiles by itself
                program = ahead.result() if whole else call
                with watch.call(compiles=not whole or i == 0):
                    state, stacked = program(state, resident, x)
                    stacked = jax.device_get(stacked)
            first, step = step, step + len(next(iter(stacked.values())))
            stop_if_diverged(stacked, game, first, checkpoints)
            metrics = game.average(stacked, first)
            due = due_between(first, step, config.steps)
            scores = {}
            if evaluate and due(config.eval_every):
                # Before the first row the time is that of compilation, which has no rate to take a pause from.
                with log.paused() if first > start else contextlib.nullcontext():
                    figures = hosts.agree(evaluate, state)
                    scores = {f"eval/{name}": value for name, value in figures.items()}
                metrics |= scores
            log.log(step, step * config.batch_size, metrics)
            if sample and due(config.sample_every):
                with log.paused():
                    hosts.agree(picture, log, step, step * config.batch_size, sample, state)
            if due(config.checkpoint_every) or step == config.steps:
                with log.paused():
                    save(checkpoints, step, state, scores)
    if not hosts.first():
        return state
    seconds = time.monotonic() - started
    shown = best.rpartition(":")[2] if best else ""
    ending = f", {shown} {scores[shown]:.2f}" if shown in scores else ""
    print(
        f"trained {step} steps, {step * config.batch_size / 1000:.0f} kimg, in {seconds:.0f} s{ending}; "
        f"everything lies in {workdir}: checkpoints/, samples/, metrics.jsonl, config.json"
    )
    return state


def begin(config: Common, workdir: epath.Path, about: Mapping[str, Any], step: int) -> None:
    """What the directory holds before the first call: the config, and no row of a step after `step`."""
    flags.write(hosts.alone(config), workdir, about)
    report.truncate(workdir, step)


def record(config: Common, workdir: epath.Path, step: int) -> report.Report | report.Silent:
    """Where the run is reported: by the first host alone."""
    if not hosts.first():
        return report.Silent()
    return report.Report(
        workdir,
        total_steps=config.steps,
        batch_size=config.batch_size,
        start_step=step,
        tensorboard=config.tensorboard,
    )


def picture(log: report.Report | report.Silent, step: int, images: int, sample: Sample, state: State) -> None:
    log.picture("", step, images, sample(state))


def profiled(workdir: epath.Path) -> contextlib.AbstractContextManager:
    """Records what the devices do. TensorBoard shows it with its profile plugin; ui.perfetto.dev reads the .gz file."""
    return jax.profiler.trace(workdir / "profile", create_perfetto_trace=True)


def due_between(first: int, last: int, total: int) -> Callable[[int], bool]:
    """Whether something that happens every so many steps, and at the end, falls in the steps (first, last]."""
    return lambda every: every > 0 and (last // every > first // every or last == total)


def check(config: Common) -> None:
    """What can be wrong with a run before any data is read; writes nothing."""
    if not config.workdir:
        raise InputError("--workdir is empty; expected the directory of the run, for example --workdir=runs/digits")
    for name in ("steps", "batch_size", "steps_per_call", "keep"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name}={getattr(config, name)}: expected at least 1")
    for name in ("sample_every", "eval_every", "checkpoint_every"):
        if getattr(config, name) < 0:
            raise InputError(f"--{name}={getattr(config, name)}: expected 0 (never) or more")
    if config.eval_every and config.eval_samples < 2:
        raise InputError(f"--eval_samples={config.eval_samples}: expected at least 2, which have a covariance")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed={config.seed}: expected a number from 0 to {2**32 - 1}")
    hosts.agree(check_workdir, config)


def check_workdir(config: Common) -> None:
    """Whether it can hold this run: it is empty, or the run's own, and may be written to."""
    workdir = epath.Path(config.workdir).expanduser()
    try:
        if not flags.check_same(config, workdir):
            for name in ("checkpoints", report.METRICS):
                if (workdir / name).exists():
                    raise InputError(f"--workdir={config.workdir} holds {name} but no config.json; choose another")
        existing = next(path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise InputError(f"cannot write to --workdir={config.workdir}: {existing} is not a directory")
    except OSError as error:  # a name that the file system cannot even look for
        raise InputError(f"cannot use --workdir={config.workdir}: {error.strerror or error}") from None
    if "://" not in os.fspath(workdir) and not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to --workdir={config.workdir}: permission denied in {existing}")


def claim(config: Common) -> epath.Path:
    """The work directory, made if it is missing; or one line that says why it cannot be had."""
    workdir = epath.Path(config.workdir).expanduser()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to --workdir={config.workdir}: {error.strerror or error}") from None
    return workdir


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
    """What is left of a run that diverged."""
    checkpoints.wait()
    steps = hosts.agree(lambda: checkpoints.steps)
    return f"the last good checkpoint stands, of step {steps[-1]}" if steps else "no checkpoint had been saved yet"


def save(checkpoints: checkpoint.Checkpoints, step: int, state: State, scores: Mapping[str, float]) -> None:
    """Saves a state that is finite: the last update of a call may have broken what no loss has seen yet."""
    if not _finite(state.players):
        raise Diverged(f"the weights are not finite after step {step}; {last_good(checkpoints)}")
    checkpoints.save(step, state, dict(scores))
