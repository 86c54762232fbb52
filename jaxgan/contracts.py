"""What a fork's own parts have to look like: each check is one line that says what to write.

All of them look at shapes and types only. They run while a step is traced, so also when shapes alone are evaluated
(`--dry_run`), and cost a compiled step nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgan.errors import InputError


def name_of(part: Any) -> str:
    """Where somebody finds it: pkg.module.name."""
    part = getattr(part, "func", part)  # of a functools.partial
    owner = part if hasattr(part, "__qualname__") else type(part)
    return f"{owner.__module__}.{owner.__qualname__}"


def check_type(what: str, value: Any, wanted: type, example: str) -> None:
    if not isinstance(value, wanted):
        raise InputError(f"{what} is a {type(value).__name__}, {value!r:.60}; expected {example}")


def check_attributes(module: Any, needed: Mapping[str, str], what: str) -> None:
    """needed: {attribute: the line that declares it}."""
    for name, line in needed.items():
        if not hasattr(module, name):
            raise InputError(f"the {what} {name_of(type(module))} has no attribute {name!r}; write {line} in its class")


def check_shape(what: str, x: Any, shape: Sequence[int], meaning: str) -> None:
    """An array of floating-point numbers of this shape. meaning: the shape in words."""
    found = getattr(x, "shape", None)
    if found is None or not hasattr(x, "dtype"):
        found = () if isinstance(x, float | int) else None
    if found is None:
        raise InputError(f"{what} is a {type(x).__name__}; expected an array {meaning}")
    if tuple(found) != tuple(shape):
        raise InputError(f"{what} has shape {tuple(found)}; expected {tuple(shape)}, {meaning}")
    if hasattr(x, "dtype") and not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"{what} is {x.dtype}; expected floating-point numbers, {meaning}")


def check_draws(batch: Mapping[str, Any], draws: int) -> None:
    """A step's batch: as many batches of new examples as its moves draw."""
    if not batch:
        raise InputError("the batch of a step is empty; expected arrays (draws, b, ...), for example 'image' and 'row'")
    for name, x in batch.items():
        shape: tuple[int, ...] = getattr(x, "shape", ())
        if len(shape) < 2 or shape[0] < draws:
            raise InputError(
                f"batch[{name!r}] of a step has shape {tuple(shape)}; expected ({draws}, b, ...): the moves of this "
                f"game draw {draws} batches of new examples (Game.draws)"
            )


def check_init(player: str, made: Any) -> tuple[Any, Any]:
    """What `Player.init` returned."""
    if not isinstance(made, tuple) or len(made) != 2:
        raise InputError(f"init of player {player!r} returns a {type(made).__name__}; expected (params, variables)")
    return made


def check_move(title: str, made: Any, variables: Mapping[str, Any]) -> tuple[Any, tuple]:
    """What the loss of a move returned. variables: those of the players that move, before it."""
    what = f"the loss of move {title!r}"
    form = "expected scalar, ({name: scalar}, {player: variables})"
    parts = made if isinstance(made, tuple) and len(made) == 2 else (None, None)
    if not (isinstance(parts[1], tuple) and len(parts[1]) == 2 and all(isinstance(x, Mapping) for x in parts[1])):
        raise InputError(f"{what} returns {_written(made)}; {form}")
    metrics, new = parts[1]
    check_shape(what, parts[0], (), "a scalar: the mean over the batch")
    for name, value in metrics.items():
        if jnp.shape(value) != ():
            shape = jnp.shape(value)
            raise InputError(
                f"metric {name!r} of move {title!r} has shape {shape}; expected a scalar, such as its mean"
            )
    for name in variables.keys() & new.keys():  # those of players that do not move are dropped
        _check_variables(f"{what} returns variables of {name!r}", variables[name], new[name])
    return made


def _check_variables(what: str, before: Any, after: Any) -> None:
    """Of one structure, or no loop can carry them."""
    one, other = (
        {
            jax.tree_util.keystr(path): (jnp.shape(x), x.dtype if hasattr(x, "dtype") else jnp.result_type(x))
            for path, x in _leaves(tree)
        }
        for tree in (before, after)
    )
    for path in sorted(one.keys() | other.keys()):
        if one.get(path) != other.get(path):
            was, is_now = (_kind(kinds.get(path)) for kinds in (one, other))
            raise InputError(f"{what} with {path or 'a leaf'} {is_now}; expected {was}, as its init made it")


def _leaves(tree: Any) -> list:
    return jax.tree_util.tree_leaves_with_path(tree)


def _kind(kind: tuple | None) -> str:
    return "that is missing" if kind is None else f"{kind[1]}{list(kind[0])}"


def _written(made: Any) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(x).__name__ for x in made)})"
    return f"a {type(made).__name__}"


def number(what: str, value: Any) -> float:
    """A figure of an evaluation."""
    if not isinstance(value, bool | int | float | np.number | np.ndarray | jax.Array) or np.ndim(value):
        raise InputError(f"{what} is {_figure(value)}; expected a number")
    return float(value)


def _figure(value: Any) -> str:
    return f"an array {np.shape(value)}" if hasattr(value, "shape") else f"a {type(value).__name__}"


def call_gen_loss(function: Callable, fake: jax.Array, real: Any) -> jax.Array:
    """`Loss.gen`. Where it fails without real logits and would not with them, that is what is said."""
    try:
        return function(fake, real)
    except (TypeError, AttributeError, ValueError) as error:
        if real is not None:
            raise
        try:
            jax.eval_shape(function, fake, fake)
        except Exception:  # whatever else is wrong with it is the first error's to say
            raise error from None
        raise InputError(
            f"the loss's gen {name_of(function)} looks at real logits, which are None; write Loss(disc, gen, "
            f"paired=True) ({' '.join(str(error).split()):.80})"
        ) from error
