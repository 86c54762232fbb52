"""Runs a game to its end: start, resume, rollback (`play` has the calls between). Knows nothing of GANs.

Started on the directory of an unfinished run, it goes on from the newest checkpoint that is whole, and ends in the same
bits: metrics after the checkpoint are dropped, and everything random is a function of the step.
"""

import concurrent.futures
import contextlib
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgan import (
    checkpoint,
    classes,
    files,
    flags,
    hosts,
    memory,
    numerics,
    parallel,
    report,
    rollback,
    sources,
    workdir,
)
from jaxgan.config import Common, check_numbers, kimg
from jaxgan.data import Feed
from jaxgan.errors import Diverged, InputError, printable
from jaxgan.game import Game, State
from jaxgan.play import Evaluate, Program, Run, Sample, last_good, play, storing
from jaxgan.preemption import Preemption


def cache_dir() -> Path:
    """Where compiled programs and classifiers are kept between runs: $JAXGAN_CACHE, or ~/.cache/jaxgan."""
    return Path(os.environ.get("JAXGAN_CACHE") or Path("~/.cache/jaxgan").expanduser())


def setup(config: Common) -> None:
    """Process-wide settings, most of them of JAX, and the other hosts; before anything touches a device."""
    # Cameras write EXIF that is not quite right: a line for each, and nothing that pixels depend on.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    numerics.fix()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    if config.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    if config.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    hosts.initialise(config)
    numerics.start()


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
    Raises `Preempted` when a signal ended it, KeyboardInterrupt for an interrupt in a notebook, `StorageFault` when
    nothing can be written any longer, and `Diverged`.
    """
    started = time.monotonic()
    length = min(config.steps_per_call, feed.max_steps, config.steps)
    check_memory(game, config, example, devices)
    shapes = parallel.like(shapes_of(game, config, example), devices)
    with hosts.together(), contextlib.ExitStack() as stack:
        preemption = stack.enter_context(Preemption())
        pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile")
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)

        def program(rollbacks: int) -> Program:
            slowed = game.slowed(rollback.SLOWER**rollbacks) if rollbacks else game
            call = parallel.compile_steps(slowed, feed.draw, devices)
            traced = pool.submit(lambda: parallel.lower(call, shapes, *feed.like(length)))
            return Program(call, traced, pool.submit(lambda: parallel.ahead(traced.result())), length)

        def first() -> State:
            # Optimising a program that runs once costs a CPU 6 s of start-up for the default networks, this way 1.5 s.
            quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
            init = jax.jit(game.init, compiler_options=quick)
            return parallel.replicate(begin_from(init(numerics.key(config.seed), example)), devices)

        # Three things at once: the step compiles, the data are read, and the first state is made.
        compiling = program(0)
        state = first()
        resident = feed.resident  # raises for data that cannot be read, before anything is written
        compiling.traced.result()  # and for losses, penalties and networks that are none
        directory, beat = workdir.of(config), workdir.Beat(None)

        def hold() -> bool:
            nonlocal beat
            beat = stack.enter_context(workdir.held(workdir.claim(config)))
            return workdir.check_data(config, directory, feed.about)

        resumed = hosts.agree(hold)
        about_data = feed.about
        sources.check_about(about_data, hosts.agree(lambda: about_data), "host 0 has")
        checkpoints = stack.enter_context(
            checkpoint.Checkpoints(directory / "checkpoints", keep=config.keep, best=best, metadata=about)
        )
        step, owed, rollbacks, went_back = 0, None, 0, hosts.agree(rollback.count, directory)
        tried = None  # the step from which the last rollback plays on
        if found := checkpoints.restore(shapes, added=game.added()):
            step, state = found
            kept = hosts.agree(checkpoint.describe, directory / "checkpoints", step)["metadata"] or {}
            rollbacks, owed = kept.get("rollbacks", 0), kept.get("owed")
        if went_back > rollbacks:  # and was ended before it saved again
            rollbacks, tried = went_back, step
            state = rollback.other_noise(state, rollbacks, devices)
        if step >= config.steps and not owed:
            hosts.tell(f"{directory} is already trained for {step} steps; --steps={config.steps} asks for no more")
            return state

        def begin() -> None:
            with storing(directory, checkpoints):
                flags.write(hosts.alone(config), directory, {**about, "data": about_data, "examples": feed.examples})
                if feed.skipped:
                    files.write(directory / "skipped.txt", "".join(f"{printable(line)}\n" for line in feed.skipped))
                report.truncate(directory, step - bool(owed) if resumed else -1)  # what is owed gives a row

        hosts.agree(begin)
        if about_data["num_classes"]:
            names = classes.line(about_data["classes"], about_data["num_classes"])
            hosts.tell(f"training on {feed.examples:,} examples of {names}", sys.stderr)
        if rollbacks:
            compiling = program(rollbacks)
        run = Run(game, feed, config, directory, checkpoints, preemption, beat, sample, evaluate)
        for left in range(max(config.rollbacks - rollbacks, 0), -1, -1):
            try:
                state, scores = play(run, compiling, resident, step, state, rollbacks, owed)
                break
            except Diverged as error:
                if config.on_nonfinite == "stop" or not left:
                    advice = "A lower learning rate or a gradient penalty may help"
                    raise Diverged(f"{error}; {last_good(checkpoints)}. {advice}") from None
                rollbacks += 1
                compiling = program(rollbacks)
                with storing(directory, checkpoints):
                    checkpoints.wait()
                    # One that leads nowhere was saved too late: then the one before it, or from the start.
                    late = tried if tried in hosts.agree(lambda: checkpoints.steps[-1:]) else None
                    step, state = checkpoints.restore(shapes, before=late, added=game.added()) or (0, first())
                    hosts.agree(rollback.go_back, directory, step, rollbacks)
                state, owed, tried = rollback.other_noise(state, rollbacks, devices), None, step
                again = "" if late is None else f", again after the checkpoint of step {late}, which is moved aside"
                rate = f"learning rates times {rollback.SLOWER**rollbacks}"
                back = f"back to step {step}, {rate}, other noise; {left - 1} rollbacks left"
                hosts.tell(f"{error}{again}; {back}", sys.stderr)
    step, seconds = config.steps, time.monotonic() - started
    shown = best.rpartition(":")[2] if best else ""
    ending = f", {shown} {scores[shown]:.2f}" if shown in scores else ""
    pictures = "samples/, " if sample and config.sample_every else ""
    hosts.tell(
        f"trained {step} steps, {kimg(step * config.batch_size)}, in {seconds:.0f} s{ending}; "
        f"everything lies in {directory}: checkpoints/, {pictures}metrics.jsonl, config.json"
    )
    return state


def check(config: Common) -> None:
    """What can be wrong with a run before any data is read; writes nothing."""
    check_numbers(config)
    with hosts.together():
        hosts.agree(workdir.check, config)


def shapes_of(game: Game, config: Common, example: Mapping[str, Any]) -> State:
    """Those of the first state. Raises InputError for networks of more numbers than there are addresses."""
    try:
        state = jax.eval_shape(game.init, numerics.key(config.seed), example)
    except (OverflowError, MemoryError):
        state = None
    if state is None or sum(leaf.size for leaf in jax.tree.leaves(state)) > 2**40:
        raise InputError("the networks are too large for any memory; expected less of --width or --latent") from None
    return state


def check_step(game: Game, config: Common, example: Mapping[str, Any], devices: list[jax.Device]) -> None:
    """Traces a step for its shapes alone. Raises InputError for networks, losses and penalties that are none."""
    state, share = shapes_of(game, config, example), config.batch_size // len(devices)
    batch = {n: jax.ShapeDtypeStruct((game.draws, share, *np.shape(x)[1:]), x.dtype) for n, x in example.items()}
    jax.eval_shape(game.step, state, batch)


def check_memory(game: Game, config: Common, example: Mapping[str, Any], devices: list[jax.Device]) -> None:
    """Refuses what cannot fit: the state and one batch, without what computing with them takes."""
    if not {"image", "row"} <= example.keys():
        raise InputError(f"the example of a run holds {sorted(example)}; expected arrays (b, ...) 'image' and 'row'")
    state = shapes_of(game, config, example)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    own = [device for device in devices if device.process_index == jax.process_index()]
    batch = game.draws * config.batch_size // len(devices) * len(own) * 4 * math.prod(example["image"].shape[1:])
    room = memory.of(own)
    memory.check(weights * len(own), "the networks and their optimizers", "expected less of --width", room)
    what = f"a step of {game.draws:,} batches of {config.batch_size:,} images"
    memory.check(batch, what, "expected a smaller --batch_size", room)
