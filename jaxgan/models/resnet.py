"""Residual networks for images: SNGAN's (arXiv:1802.05957, tables 3 to 5) and WGAN-GP's (arXiv:1704.00028, appendix C).

The generator doubles an image of 4x4 (6x6 for 48x48) up, with batch norm; for classes, with a gain and a bias of each.
The discriminator has no batch norm: SNGAN's is spectrally normalised throughout and sums over the places of the last
features, WGAN-GP's critic is tamed by its gradient penalty alone and averages. Labels enter it by projection
(arXiv:1802.05637, eq. 5). Blocks are two 3x3 convolutions behind ReLUs, with a shortcut that is a 1x1 convolution where
the image or the channels change.
"""

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxgan.errors import InputError
from jaxgan.layers import BatchNorm, Conv, Dense

# Glorot's uniform; with a gain of sqrt(2) before a ReLU, as both papers' authors have it.
plain = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
gained = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")


class Plan(NamedTuple):
    """Channels in multiples of `width`."""

    base: int  # height and width of the generator's first image
    first: int  # its channels
    up: tuple[int, ...]  # of the generator's blocks, each of which doubles the image
    disc: tuple[int, ...]  # of the discriminator's blocks,
    halvings: int  # the first so many of which halve the image


PLANS = {
    "sngan": {
        32: Plan(4, 4, (4, 4, 4), (2, 2, 2, 2), 2),
        48: Plan(6, 8, (4, 2, 1), (1, 2, 4, 8, 16), 4),
        64: Plan(4, 16, (8, 4, 2, 1), (1, 2, 4, 8, 16), 5),  # not in the paper; that of 128 less a block
        128: Plan(4, 16, (16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5),
    },
    "wgan_gp": {32: Plan(4, 2, (2, 2, 2), (2, 2, 2, 2), 2)},
}


def plan(variant: str, shape: tuple[int, int, int]) -> Plan:
    if variant not in PLANS:
        raise InputError(f"unknown variant {variant!r} of resnet; choices: {', '.join(PLANS)}")
    sizes = PLANS[variant]
    if shape[0] != shape[1] or shape[0] not in sizes:
        near = min(sizes, key=lambda size: abs(size - shape[0]))
        raise InputError(
            f"resnet's {variant} has no plan for images of {shape[0]}x{shape[1]}; nearest: --size={near} "
            f"(squares of {', '.join(map(str, sizes))} pixels)"
        )
    return sizes[shape[0]]


def up(x: jax.Array) -> jax.Array:
    """(b, h, w, c) -> (b, 2h, 2w, c), each pixel four times."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def down(x: jax.Array) -> jax.Array:
    """(b, 2h, 2w, c) -> (b, h, w, c), means of four."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


class Generator(nn.Module):
    """z (b, latent) -> images (b, *shape) in [-1, 1]."""

    shape: tuple[int, int, int]
    num_classes: int = 0
    latent: int = 128
    width: int = 64
    variant: str = "sngan"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        def active(x):
            return nn.relu(BatchNorm(num_classes=self.num_classes, dtype=self.dtype)(x, train, label))

        def block(x, features):
            shortcut = up(Conv(features, 1, kernel_init=plain, dtype=self.dtype)(x))  # pointwise, so it may come first
            x = Conv(features, 3, kernel_init=gained, up=True, dtype=self.dtype)(active(x))
            return Conv(features, 3, kernel_init=gained, dtype=self.dtype)(active(x)) + shortcut

        base, first, ups, *_ = plan(self.variant, self.shape)
        x = Dense(base * base * first * self.width, kernel_init=plain, dtype=self.dtype)(z)
        x = x.reshape(-1, base, base, first * self.width)
        for multiple in ups:
            x = checkpoint_name(block(x, multiple * self.width), "block")
        x = Conv(self.shape[2], 3, kernel_init=plain, dtype=self.dtype)(active(x))
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """images (b, *shape) -> logits (b,)."""

    shape: tuple[int, int, int]
    num_classes: int = 0
    width: int = 64
    variant: str = "sngan"
    dtype: Any = jnp.float32
    mixes_batch: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        spectral = self.variant == "sngan"

        def conv(x, features, kernel, init=gained, down=False):
            layer = Conv(features, kernel, kernel_init=init, spectral=spectral, down=down, dtype=self.dtype)
            return layer(x, train)

        def block(x, features, halve, first):
            y = conv(x if first else nn.relu(x), features, 3)
            y = conv(nn.relu(y), features, 3, down=halve)
            x = down(x) if halve else x  # which commutes with the pointwise convolution, and makes it cost a quarter
            return y + (conv(x, features, 1, plain) if halve or x.shape[-1] != features else x)

        *_, widths, halvings = plan(self.variant, self.shape)
        x = x.astype(self.dtype)
        for i, multiple in enumerate(widths):
            x = checkpoint_name(block(x, multiple * self.width, i < halvings, i == 0), "block")
        x = nn.relu(x).astype(jnp.float32)
        x = x.sum((1, 2)) if spectral else x.mean((1, 2))  # (b, c)
        logit = Dense(1, kernel_init=plain, spectral=spectral)(x, train)[:, 0]
        if label is not None:
            # Normalised as the transpose of the embedding: (c, classes).
            classes = Dense(self.num_classes, False, plain, spectral)(x, train)
            logit = logit + jnp.take_along_axis(classes, label[:, None], 1)[:, 0]
        return logit
