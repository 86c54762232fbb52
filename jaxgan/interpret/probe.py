"""What the layers of a network see and make, watched or changed from outside: no network knows of it.

    (images, seen) = observed(render)(points)                    # seen["Dense_0"].outputs
    images = edited(render, "Conv_1", lambda x: x * mask)(points)

A layer is a module whose class is named after a dense layer or a convolution, of jaxgan, Flax or a fork; its name is
its path. What it sees is its first argument: activations, after whatever non-linearity stands before it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgan import numerics

KINDS = ("Dense", "Conv")


class Seen(NamedTuple):
    inputs: jax.Array  # (b, ..., c)
    outputs: jax.Array


def observed(function: Callable[..., Any]) -> Callable[..., tuple[Any, dict[str, Seen]]]:
    """The same function, which gives what its layers saw and made too, in the order in which they were done.

    It must not be a compiled one, in which nothing can be watched any more; what comes out may be compiled.
    """

    def both(*args: Any) -> tuple[Any, dict[str, Seen]]:
        found: dict[str, Seen] = {}

        def look(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
            outputs = call(*args, **kwargs)
            if _is_layer(context, args):
                found.setdefault(_path(context), Seen(args[0], outputs))
            return outputs

        with nn.intercept_methods(look):
            result = function(*args)
        return result, found

    return both


def edited(function: Callable[..., Any], layer: str, edit: Callable[[jax.Array], jax.Array]) -> Callable[..., Any]:
    """The same function, in which `layer` sees `edit` of what it saw. ValueError where no layer has that name."""

    def changed(*args: Any) -> Any:
        met = False

        def look(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
            nonlocal met
            if _is_layer(context, args) and _path(context) == layer:
                met = True
                args = (edit(args[0]), *args[1:])
            return call(*args, **kwargs)

        with nn.intercept_methods(look):
            result = function(*args)
        if not met:
            raise ValueError(f"no layer {layer!r} was called")
        return result

    return changed


def is_affine(values: Any) -> bool:
    """Whether values (3, ...) at points a, b and their middle say that the function between is affine, to 1e-3."""
    values = np.asarray(values, np.float64)
    bend = np.abs(values[0] + values[1] - 2 * values[2]).max()
    return bool(bend <= 1e-3 * max(np.abs(values[0] - values[1]).max(), 1e-6 * np.abs(values).max(), 1e-12))


@numerics.fixed()
def affine_layers(function: Callable[[jax.Array], Any], dimension: int) -> tuple[list[str], list[str]]:
    """Of a function of points (3, dimension), by what its layers do at two points and their middle: names of the dense
    layers whose outputs are affine in the point and not constant, and of all layers that see what is not affine in it.
    """
    ends = jax.random.normal(numerics.key(0), (2, dimension), jnp.float32)
    points = jnp.concatenate([ends, ends.mean(0, keepdims=True)])
    _, seen = jax.jit(observed(function))(points)
    first, later = [], []
    for name, (x, y) in seen.items():
        if x.shape[0] != 3 or y.shape[0] != 3:
            continue  # not of the points: a class's embedding, a constant
        if not is_affine(x):
            later.append(name)
        elif y.ndim == 2 and is_affine(y) and np.ptp(np.asarray(y), axis=0).max() > 0:
            first.append(name)
    return first, later


@numerics.fixed()
def weight_of(function: Callable[[jax.Array], Any], layers: list[str], dimension: int) -> np.ndarray:
    """A (outputs, dimension) of y = A x + b for dense layers that are affine in the point, one below the other.

    That includes what stands before a layer or in it (concatenation, spectral normalisation), whatever its parameters
    are called: column i is what a step of one along axis i adds.
    """
    points = jnp.concatenate([jnp.zeros((1, dimension)), jnp.eye(dimension)])

    def outputs(points: jax.Array) -> list[jax.Array]:
        seen = observed(function)(points)[1]
        return [seen[name].outputs.astype(jnp.float32) for name in layers]

    found = jax.jit(outputs)(points)
    return np.concatenate([np.asarray(y[1:] - y[0]).T for y in found]).astype(np.float64)


def _is_layer(context: Any, args: tuple) -> bool:
    named = any(kind in type(context.module).__name__ for kind in KINDS)
    return named and context.method_name == "__call__" and bool(args)


def _path(context: Any) -> str:
    return "/".join(context.module.path)
