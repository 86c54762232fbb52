"""The one mapped axis. Outside of a mapped call there is one device, and each function below is then the identity.

Networks and games call these and nothing else of `jax.lax`'s collectives, so the same code runs under plain `jit`, in a
notebook, and over every chip of a pod.
"""

import jax
from jax import lax

AXIS = "data"


def size() -> int:
    """Number of devices that share the batch."""
    try:
        return lax.axis_size(AXIS)
    except NameError:  # what JAX raises for an axis that no enclosing map binds
        return 1


def mean(tree):
    """The mean of every leaf over the devices."""
    return lax.pmean(tree, AXIS) if size() > 1 else tree


def neighbors_mean(tree, count: int):
    """The mean of every leaf over `count` consecutive devices, which divides their number. Differentiable."""
    if count == 1:
        return tree
    groups = [list(range(first, first + count)) for first in range(0, size(), count)]
    return lax.pmean(tree, AXIS, axis_index_groups=groups)


def gather(x: jax.Array) -> jax.Array:
    """(b, ...) on each device -> (devices * b, ...), rows in the order of the devices. Differentiable."""
    return lax.all_gather(x, AXIS, tiled=True) if size() > 1 else x
