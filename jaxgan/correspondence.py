"""Cross-domain correspondence: Ojha et al. 2021 (arXiv:2104.06820), its consistency of distances and its patches.

A generator that is adapted to ten images collapses onto them unless something holds its latents apart. Here that is the
source generator: whichever of its images are alike are to stay alike, and the others not to become so.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan import layerwise, numerics


def distance_consistency(adapted: jax.Array, source: jax.Array) -> jax.Array:
    """KL(y of the adapted || y of the source), nats, mean over latents (eq. 3), from a layer's activations (b, ...).

    y_i is the softmax over j ≠ i of the cosines of the activations of latents i and j (eq. 1 and 2). (The authors' code
    takes the divergence the other way round.)
    """
    ours, theirs = (_log_similarities(x) for x in (adapted, source))
    return jnp.mean(jnp.sum(jnp.exp(ours) * (ours - theirs), axis=1))


def _log_similarities(x: jax.Array) -> jax.Array:
    """(b, ...) -> log y, (b, b - 1)."""
    b = x.shape[0]
    x = x.astype(jnp.float32).reshape(b, -1)
    x = x * jax.lax.rsqrt(jnp.sum(x * x, axis=1, keepdims=True) + 1e-12)
    cosines = x @ x.T
    others = (jnp.arange(b)[:, None] + jnp.arange(1, b)) % b  # j ≠ i
    return jax.nn.log_softmax(jnp.take_along_axis(cosines, others, axis=1), axis=1)


def mean_consistency(adapted: Mapping[str, jax.Array], source: Mapping[str, jax.Array]) -> jax.Array:
    """The mean over layers."""
    return jnp.mean(jnp.stack([distance_consistency(adapted[name], source[name]) for name in adapted]))


class Anchored(nn.Module):
    """A generator whose latents are N(anchor, radius²), about one of a few fixed anchors (section 3.2).

    Only there is an image judged as a whole. It has the parameters of the generator itself.
    """

    generator: nn.Module
    anchors: int
    radius: float = 0.05
    seed: int = 0

    @property
    def latent(self) -> int:
        return self.generator.latent  # type: ignore[attr-defined]

    def setup(self) -> None:
        nn.share_scope(self, self.generator)

    def __call__(self, z: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        centres = jax.random.normal(numerics.key(self.seed), (self.anchors, z.shape[-1]), jnp.float32)
        chosen = jax.random.randint(self.make_rng("noise"), z.shape[:1], 0, self.anchors, jnp.int32)
        return self.generator(centres[chosen] + self.radius * z, label, train)


class Patched(nn.Module):
    """A discriminator that also judges parts of an image, by a linear head on what its layer `layer` makes of them.

    patches: give those verdicts, (b · places,), in place of that on the whole image, (b,). The parameters are those of
    the discriminator, beside them `patch_head`.
    """

    discriminator: nn.Module
    layer: str
    patches: bool = False

    @property
    def mixes_batch(self) -> bool:
        return self.discriminator.mixes_batch  # type: ignore[attr-defined]

    def setup(self) -> None:
        nn.share_scope(self, self.discriminator)
        self.patch_head = nn.Dense(1)

    def __call__(self, x: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        seen: list[jax.Array] = []

        def look(inner: Any, args: tuple, kwargs: dict, context: Any) -> Any:
            made = inner(*args, **kwargs)
            if context.method_name == "__call__" and "/".join(context.module.path) == self.layer:
                seen.append(made)
            return made

        with nn.intercept_methods(look):
            whole = self.discriminator(x, label, train)
        places = seen[-1].astype(jnp.float32)  # (b, h, w, c), of any scale: what normalises them comes after the layer
        places = places * jax.lax.rsqrt(jnp.mean(places**2, axis=-1, keepdims=True) + 1e-8)
        verdicts = self.patch_head(nn.leaky_relu(places, 0.2))  # (b, h, w, 1)
        return verdicts.reshape(-1) if self.patches else whole


def patch_layer(discriminator: nn.Module, variables: Any, *inputs: Any) -> str | None:
    """The highest layer that tells at least 6 x 6 places apart, else the lowest that has any; None: there is none."""

    def layers(variables, *x):
        return layerwise.outputs(lambda: discriminator.apply(variables, *x), variables["params"])[1]

    made = jax.eval_shape(layers, variables, *inputs)
    spatial = [name for name, x in made.items() if len(x.shape) == 4]
    fine = [name for name in spatial if min(made[name].shape[1:3]) >= 6]
    return (fine[-1:] or spatial[:1] or [None])[0]
