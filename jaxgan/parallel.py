"""One compiled call: a scan over many steps of a game, mapped over the devices.

The state is one replicated array tree without a device axis, donated from call to call, so that a program for one
device, eight, or many hosts is the same program. A call costs the host a fraction of a millisecond; the scan pays that
once for all of its steps, and metrics leave the devices once, stacked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgan import collectives
from jaxgan.errors import InputError
from jaxgan.game import Game, State


def compile_steps(game: Game, draw: Callable[[Any, Any], Any], devices: Sequence[jax.Device]) -> Any:
    """(state, resident, feed) -> (state, metrics).

    draw: (resident, one step's slice of feed) -> the batch that `game.step` takes, on one device.
    resident: data replicated on every device. feed: arrays with leading axes (local devices, steps); its second axis
    decides how many steps a call makes, and each other length is compiled once more.
    metrics: {name: (steps,)}. The state handed in is gone afterwards.
    """

    def steps(state: State, resident: Any, feed: Any) -> tuple[State, dict[str, jax.Array]]:
        return lax.scan(lambda state, x: game.step(state, draw(resident, x)), state, feed)

    return jax.pmap(
        steps,
        axis_name=collectives.AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        donate_argnums=0,
        devices=list(devices),
    )


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Every leaf whole on every device, placed as a compiled call wants it: no second compilation, no copy later."""
    return jax.device_put(tree, NamedSharding(Mesh(np.asarray(devices), (collectives.AXIS,)), PartitionSpec()))


def like(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """What `replicate` makes of arrays of these shapes, as shapes: for compiling before there are any."""
    sharding = NamedSharding(Mesh(np.asarray(devices), (collectives.AXIS,)), PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def devices_for(batch_size: int, count: int = 0) -> list[jax.Device]:
    """The first `count` devices (0: all), which must divide the global batch."""
    devices = jax.devices()
    if not 0 <= count <= len(devices):
        raise InputError(f"--devices={count}, but this machine has {len(devices)} ({devices[0].device_kind})")
    devices = devices[: count or len(devices)]
    n = len(devices)
    if batch_size < 1 or batch_size % n:
        low = max(batch_size // n, 1) * n
        raise InputError(f"--batch_size={batch_size} does not divide over {n} devices; nearest: {low} or {low + n}")
    return devices
