"""One compiled call: a scan over many steps of a game, mapped over the devices.

The state is one replicated array tree without a device axis, donated from call to call, so that a program for one
device, eight, or many hosts is the same program; of many, each holds its own replicas. A call costs the host a fraction
of a millisecond; the scan pays that once for all of its steps, and metrics leave the devices once, stacked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgan import collectives, numerics
from jaxgan.canonical import canonical_convolutions
from jaxgan.errors import InputError
from jaxgan.game import Game, State


def compile_steps(game: Game, draw: Callable[[Any, Any], Any], devices: Sequence[jax.Device]) -> Any:
    """(state, resident, feed) -> (state, metrics).

    draw: (resident, one step's slice of feed) -> the batch that `game.step` takes, on one device.
    resident: data replicated on every device. feed: arrays with leading axes (local devices, steps); its second axis
    decides how many steps a call makes, and each other length is compiled once more.
    metrics: {name: (steps,)}. The state handed in is gone afterwards.

    On a CPU the convolutions of any network are brought into the order of axes in which XLA is fast inside a loop.
    """

    def steps(state: State, resident: Any, feed: Any) -> tuple[State, dict[str, jax.Array]]:
        return lax.scan(lambda state, x: game.step(state, draw(resident, x)), state, feed)

    call = jax.pmap(
        canonical_convolutions(steps, devices[0].platform),
        axis_name=collectives.AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        donate_argnums=0,
        devices=list(devices),
    )
    return _Fixed(call)


class _Fixed:
    """A compiled call whose tracing and lowering do not depend on the environment either (`numerics`)."""

    def __init__(self, call: Any):
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        with numerics.fixed():
            return self._call(*arguments)

    def lower(self, *shapes: Any) -> Any:
        with numerics.fixed():
            return self._call.lower(*shapes)


def lower(call: Any, *shapes: Any) -> Any:
    """Traces `compile_steps` before there are arrays. Of several hosts its first call does: pmap has no other way."""
    return call.lower(*shapes) if jax.process_count() == 1 else call


def ahead(lowered: Any) -> Any:
    """Compiles what `lower` returned."""
    return lowered.compile() if jax.process_count() == 1 else lowered


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Every leaf whole on every device of this host, as a compiled call wants it: no second compilation, no copy."""
    return jax.device_put(tree, here(devices))


def like(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """What `replicate` makes of arrays of these shapes, as shapes: for compiling before there are any."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here(devices)), tree)


def here(devices: Sequence[jax.Device]) -> NamedSharding:
    """Replicated over those devices that are of this host: pmap takes and gives what is one host's share."""
    own = [device for device in devices if device.process_index == jax.process_index()]
    return NamedSharding(Mesh(np.asarray(own), (collectives.AXIS,)), PartitionSpec())


def devices_for(batch_size: int, count: int = 0) -> list[jax.Device]:
    """The first `count` devices (0: all), which must divide the global batch; of several hosts, as many of each."""
    devices = jax.devices()
    machines = jax.process_count()
    if count % machines:
        raise InputError(
            f"--devices={count} does not divide over {machines} hosts; nearest: {-(-count // machines) * machines}"
        )
    if machines > 1 and 0 < count <= len(devices):
        homes = [[d for d in devices if d.process_index == i][: count // machines] for i in range(machines)]
        devices = [device for home in homes for device in home]
    if not 0 <= count <= len(devices):
        raise InputError(f"--devices={count}, but this machine has {len(devices)} ({devices[0].device_kind})")
    devices = devices[: count or len(devices)]
    check_shares(batch_size, len(devices))
    return devices


def check_shares(batch_size: int, n: int) -> None:
    """Raises InputError for a batch that n devices cannot share."""
    if batch_size < 1 or batch_size % n:
        low = max(batch_size // n, 1) * n
        raise InputError(f"--batch_size={batch_size} does not divide over {n} devices; nearest: {low} or {low + n}")


def check_divides(flag: str, n: int, count: int, what: str) -> None:
    """Raises InputError for parts of a batch that are not equal: `--flag=n` of `count` images."""
    if count % n:
        divisors = [k for k in range(1, count + 1) if count % k == 0]
        near = sorted(sorted(divisors, key=lambda k: abs(k - n))[:2])
        raise InputError(f"--{flag}={n} does not divide the {count} {what}; nearest: {' or '.join(map(str, near))}")
