"""A generator behind a miner: Wang et al. 2020 (MineGAN, arXiv:1912.05270, section 4.1), z = M(u) with u ~ N(0, I).

The miner moves latents to where a trained generator already makes images like the wanted ones. Here it is residual and
its last layer starts at 0, so that at first nothing is moved (the paper's starts anywhere).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan import lookup, models
from jaxgan.errors import unknown
from jaxgan.layers import Dense


class Miner(nn.Module):
    """u (b, latent) -> z (b, latent)."""

    width: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, u: jax.Array) -> jax.Array:
        x = u.astype(self.dtype)
        for _ in range(2):
            x = nn.relu(Dense(self.width, dtype=self.dtype)(x))
        return u + Dense(u.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype)(x).astype(u.dtype)


class Generator(nn.Module):
    """u (b, latent) -> images (b, *shape): those of `jaxgan.models.<model>.Generator(..., **arguments)` at the mined z.

    Its parameters are those of that generator, and beside them `miner`.
    """

    shape: tuple[int, int, int]
    num_classes: int = 0
    latent: int = 100
    model: str = "dcgan"
    arguments: tuple[tuple[str, Any], ...] = ()
    miner_width: int = 128
    dtype: Any = jnp.float32

    @property
    def home(self) -> Any:
        # A module of jaxgan and of nowhere else: the name may come from a file.
        if self.model not in lookup.names(models):
            raise unknown("model to mine", self.model, lookup.names(models))
        return lookup.module("model to mine", self.model, models, ("Generator",))

    @property
    def added(self) -> Mapping[str, Any]:
        return getattr(self.home.Generator, "added", {})

    def setup(self) -> None:
        common = {name: getattr(self, name) for name in ("shape", "num_classes", "latent", "dtype")}
        unstored = getattr(self.home.Generator, "unstored", {})  # of a run that is older than these arguments
        self.mined = self.home.Generator(**common, **{**unstored, **dict(self.arguments)})
        nn.share_scope(self, self.mined)
        self.miner = Miner(self.miner_width, self.dtype)

    def __call__(self, z: jax.Array, label: jax.Array | None = None, train: bool = False, **style: Any) -> jax.Array:
        return self.mined(self.miner(z), label, train, **style)
