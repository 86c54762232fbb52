"""Path length regularisation (arXiv:1912.04958, section 3.2): equal steps in w change the image equally much.

    Move("gen", functools.partial(path_length, pair, 2.0, 4), every=4, draw=False, name="gen_path")

Its generator has two methods, `map` (z -> styles) and `synthesise` (styles -> images), and keeps "path/mean".
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxgan import collectives
from jaxgan.adversarial import Pair, image_keys, latents
from jaxgan.errors import InputError
from jaxgan.game import Batch, State


def check(generator: Any) -> None:
    """Raises InputError for a generator without styles."""
    if not all(hasattr(generator, name) for name in ("map", "synthesise")):
        raise _unfit(generator)


def _unfit(generator: Any) -> InputError:
    return InputError(
        f"--path_length: the {type(generator).__name__} of {type(generator).__module__} has no styles (no variable "
        "'path/mean'); expected one that has, such as --model=stylegan2"
    )


def path_length(
    pair: Pair,
    weight: float,
    every: int,
    params: Any,
    state: State,
    batch: Batch,
    key: jax.Array,
    *,
    shrink: int = 2,
    decay: float = 0.01,
):
    """weight · every · E (|Jᵀ y| - a)², J = ∂ image / ∂ styles, y ~ N(0, I) / sqrt(h w) (eq. 4): a generator's move.

    |Jᵀ y|² is the mean over the layers' styles. `a` is the moving average of the lengths over all devices, which takes
    in `decay` of this batch first; as in the authors' code, that part of it has a gradient. Their weight is 2, played
    every 4 steps.

    shrink: of the batch, that part is looked at, at least one image: the second derivatives need memory.
    """
    z_key, map_key, noise_key, y_key = jax.random.split(key, 4)
    gen, generator = state.players["gen"], pair.generator
    if "path" not in gen.variables:
        raise _unfit(generator)
    rows = batch["row"][: max(len(batch["row"]) // shrink, 1)]
    label = pair.label(batch)
    z = latents(z_key, rows, generator.latent)

    def apply(method, key, *inputs):
        # Noise inside a network differs between devices, by their rows.
        return generator.apply(
            {"params": params["gen"], **gen.variables},
            *inputs,
            train=True,
            method=method,
            mutable=list(gen.variables),
            rngs={"noise": jax.random.fold_in(key, rows[0])},
        )

    def synthesise(ws):
        return apply("synthesise", noise_key, ws)[0]

    if pair.remat:
        synthesise = jax.checkpoint(synthesise, policy=jax.checkpoint_policies.save_only_these_names("block"))
    ws, variables = apply("map", map_key, z, None if label is None else label[: len(rows)])
    images, pull = jax.vjp(synthesise, ws)
    normal = functools.partial(jax.random.normal, shape=images.shape[1:], dtype=jnp.float32)
    y = jax.vmap(normal)(image_keys(y_key, rows)).astype(images.dtype) / jnp.sqrt(images.shape[1] * images.shape[2])
    lengths = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(pull(y)[0]), 2), 1))  # (b,)

    mean = gen.variables["path"]["mean"]
    mean += decay * (collectives.mean(lengths.mean()) - mean)
    penalty = jnp.mean(jnp.square(lengths - mean))
    metrics = {"length": lengths.mean(), "penalty": penalty}
    return weight * every * penalty, (metrics, {"gen": {**variables, "path": {"mean": mean}}})
