"""Convolutions of any network in the order of axes that XLA:CPU is fast in.

XLA:CPU hands a convolution to a fast kernel if its operands are (b, spatial ..., c) and (spatial ..., c, d). It turns
other orders into this one, but only in the outermost computation of a program: those inside a loop or a branch run as
plain nested loops, 10 to 60 times slower. Gradients have other orders, so the step of a game, which is scanned, would
run every `flax.linen.Conv` that way. Here the turn is made before XLA sees the program.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

Spec = Sequence[int]


def canonical_convolutions(function: Callable[..., Any], platform: str = "") -> Callable[..., Any]:
    """Returns `function` with every convolution of its trace in canonical order, which computes the same.

    Args:
      function: of arrays. Derivatives are to be taken inside of it: those taken of it are not canonical.
      platform: that it is compiled for, by default the default backend. Of any but "cpu" it stays as it is.
    """

    def traced(*args: Any) -> Any:
        if (platform or jax.default_backend()) != "cpu":
            return function(*args)
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = core.jaxpr_as_fun(_turned(jaxpr))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return traced


def _order(rank: int) -> lax.ConvDimensionNumbers:
    """The canonical one. Specs are (batch, features, spatial ...) of images, (out, in, spatial ...) of kernels."""
    image = (0, rank - 1, *range(1, rank - 1))
    return lax.ConvDimensionNumbers(image, (rank - 1, rank - 2, *range(rank - 2)), image)


def is_slow(eqn: Any) -> bool:
    """Whether XLA:CPU has a fast kernel for this convolution, but would not find it inside a loop."""
    if eqn.primitive is not lax.conv_general_dilated_p:
        return False
    numbers, (x, w), (y,) = eqn.params["dimension_numbers"], eqn.invars, eqn.outvars
    if numbers == _order(len(numbers.lhs_spec)) and eqn.params["batch_group_count"] == 1:
        return False
    floating = all(jnp.issubdtype(v.aval.dtype, jnp.floating) and v.aval.dtype != jnp.float64 for v in (x, w, y))
    return bool(floating and math.prod(x.aval.shape) and math.prod(w.aval.shape) and x.aval.ndim <= 5)


def _turned(jaxpr: Any) -> Any:
    """The jaxpr, open or closed, and all in it; itself where nothing changes."""
    inner = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    eqns = [_turned_equation(eqn) for eqn in inner.eqns]
    if all(a is b for a, b in zip(eqns, inner.eqns, strict=True)):
        return jaxpr
    turned = inner.replace(eqns=eqns)
    return turned if inner is jaxpr else jaxpr.replace(jaxpr=turned)


def _turned_equation(eqn: Any) -> Any:
    if is_slow(eqn):
        # A call of a jitted function is one equation, which takes the place of the old one.
        (call,) = jax.make_jaxpr(jax.jit(_convolution(eqn.params)))(*(v.aval for v in eqn.invars)).eqns
        return eqn.replace(primitive=call.primitive, params=call.params, effects=call.effects)
    params = {name: _turned_parameter(value) for name, value in eqn.params.items()}
    return eqn if all(params[name] is value for name, value in eqn.params.items()) else eqn.replace(params=params)


def _turned_parameter(value: Any) -> Any:
    if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
        return _turned(value)
    if isinstance(value, tuple) and any(isinstance(item, core.Jaxpr | core.ClosedJaxpr) for item in value):
        items = tuple(map(_turned_parameter, value))  # the branches of a condition
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    return value


def _convolution(params: dict[str, Any]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The same function of x and w, by a canonical convolution."""
    numbers: Any = params["dimension_numbers"]
    groups = params["batch_group_count"]
    order: Any = _order(len(numbers.lhs_spec))

    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        x, w = _transpose(x, numbers.lhs_spec, order.lhs_spec), _transpose(w, numbers.rhs_spec, order.rhs_spec)
        own: dict[str, Any] = {"dimension_numbers": order}
        if groups > 1:  # (g b, ..., c) -> (b, ..., g c): groups of examples become groups of channels
            x = jnp.moveaxis(x.reshape(groups, -1, *x.shape[1:]), 0, -2).reshape(
                -1, *x.shape[1:-1], groups * x.shape[-1]
            )
            own |= {"batch_group_count": 1, "feature_group_count": groups}
        elif (padding := _swapped_padding(params, x.shape[1:-1], w.shape[:-2])) is not None:
            spatial = tuple(range(1, x.ndim - 1))
            own |= {
                "padding": padding,
                "lhs_dilation": params["rhs_dilation"],
                "rhs_dilation": params["lhs_dilation"],
            }
            image = jnp.moveaxis(lax.rev(w, tuple(i - 1 for i in spatial)), -1, 0)  # (d, ..., c)
            kernel = jnp.moveaxis(lax.rev(x, spatial), 0, -1)  # (..., c, b)
            y = jnp.swapaxes(lax.conv_general_dilated_p.bind(image, kernel, **params | own), 0, -1)
            return _transpose(y, order.out_spec, numbers.out_spec)
        y = lax.conv_general_dilated_p.bind(x, w, **params | own)
        return _transpose(y, order.out_spec, numbers.out_spec)

    return convolve


def _swapped_padding(
    params: dict[str, Any], image: Sequence[int], window: Sequence[int]
) -> tuple[tuple[int, int], ...] | None:
    """The padding of the same convolution with image and window in each other's place, both reversed; None: as it is.

    Where the window is larger than the image, as in weight gradients of transposed convolutions, XLA exchanges them
    itself, into an order that is not canonical. With positions i of the image, k of the window and o of the output,
    i lhs_dilation = o stride + k rhs_dilation - padding; solved for k, padding grows by the difference of the sides.
    """
    if params["feature_group_count"] > 1 or math.prod(window) <= math.prod(image):
        return None
    more = [
        (n - 1) * dilation - (k - 1) * of_window
        for n, k, dilation, of_window in zip(image, window, params["lhs_dilation"], params["rhs_dilation"], strict=True)
    ]
    padding = tuple((low + m, high + m) for (low, high), m in zip(params["padding"], more, strict=True))
    return padding if min(min(sides) for sides in padding) >= 0 else None


def _transpose(x: jax.Array, now: Spec, then: Spec) -> jax.Array:
    """Moves axis now[i] to then[i]."""
    axes = dict(zip(then, now, strict=True))
    return lax.transpose(x, [axes[i] for i in range(x.ndim)])
