"""The layers of a network in the order in which they are called: what they make, and which weights are theirs."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax

from jaxgan import leaves

T = TypeVar("T")


def outputs(call: Callable[[], T], weights: Mapping[str, Any]) -> tuple[T, dict[str, Any]]:
    """`call()`, a pass through a network, and what each layer made in it, {path: array}, from the first called on.

    weights: the network's parameters. A layer is a module with an array of two axes or more of its own there: kernels
    of convolutions and dense layers. One that is called again counts with its last output; the network itself is none.
    """
    owners = {name.rpartition("/")[0] for name, x in leaves.names(weights) if getattr(x, "ndim", 0) >= 2}
    found: dict[str, Any] = {}

    def look(inner: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        path = "/".join(context.module.path)
        if context.method_name != "__call__" or not path or path not in owners:
            return inner(*args, **kwargs)
        found.setdefault(path, None)  # those that are called within it come after it
        found[path] = inner(*args, **kwargs)
        return found[path]

    with nn.intercept_methods(look):
        return call(), found


def depths(module: nn.Module, variables: Mapping[str, Any], *inputs: Any, **options: Any) -> dict[str, int]:
    """{name of a parameter: the layer, from 1, that it belongs to}, by a pass of shapes alone.

    What has no layer of its own, like the gains of a normalisation, belongs to the layer called last before it. Arrays
    of the network itself belong to the last: where between the layers they are used is not to be seen.
    """
    flat = leaves.names(variables["params"])
    owners = {name.rpartition("/")[0] for name, x in flat if getattr(x, "ndim", 0) >= 2} - {""}
    at: dict[str, int] = {}

    def look(inner: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and path not in at:
            at[path] = max(at.values(), default=0) + (path in owners)
        return inner(*args, **kwargs)

    with nn.intercept_methods(look):
        jax.eval_shape(lambda variables, *x: module.apply(variables, *x, **options), variables, *inputs)
    at[""] = max(at.values())
    return {name: at[name.rpartition("/")[0]] for name, _ in flat}
