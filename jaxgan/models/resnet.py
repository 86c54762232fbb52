"""Residual networks for images: SNGAN's (arXiv:1802.05957, tables 3 to 5), WGAN-GP's (arXiv:1704.00028, appendix C)
and SAGAN's (arXiv:1805.08318).

The generator doubles an image of 4x4 (6x6 for 48x48) up, with batch norm; for classes, with a gain and a bias of each.
The discriminator has no batch norm: SNGAN's is spectrally normalised throughout and sums over the places of the last
features, WGAN-GP's critic is tamed by its gradient penalty alone and averages. Labels enter it by projection
(arXiv:1802.05637, eq. 5). Blocks are two 3x3 convolutions behind ReLUs, with a shortcut that is a 1x1 convolution where
the image or the channels change.

SAGAN is SNGAN with a spectrally normalised generator too, and self-attention in both players: at 32x32 ("feat32" of its
table 1), for images of 32x32 at 16x16.

Where the channels change in a block of the discriminator, the authors' code tells what the papers' tables do not: the
first convolution of SNGAN's and WGAN-GP's block keeps the channels that it receives, that of SAGAN's changes them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxgan.errors import InputError, unknown
from jaxgan.layers import BatchNorm, Conv, Dense
from jaxgan.layers.attention import SelfAttention

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
    attention: tuple[int, int] | None = None  # the blocks, from 0, of both that self-attention follows
    head_bias: bool = True  # whether the discriminator's last layer has a bias


SNGAN = {
    32: Plan(4, 4, (4, 4, 4), (2, 2, 2, 2), 2, head_bias=False),
    48: Plan(6, 8, (4, 2, 1), (1, 2, 4, 8, 16), 4),
    64: Plan(4, 16, (8, 4, 2, 1), (1, 2, 4, 8, 16), 5),  # not in the paper, but in its authors' code
    128: Plan(4, 16, (16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5),
}
PLANS = {
    "sngan": SNGAN,
    "wgan_gp": SNGAN | {32: Plan(4, 2, (2, 2, 2), (2, 2, 2, 2), 2)},  # the paper's at 32x32, SNGAN's beyond
    "sagan": {
        32: Plan(4, 4, (4, 4, 4), (2, 2, 2, 2), 2, (1, 0)),  # not in the paper; SNGAN's
        64: Plan(4, 16, (16, 8, 4, 2), (1, 2, 4, 8, 16), 4, (2, 0)),  # not in the paper; that of 128 less a block
        128: Plan(4, 16, (16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5, (2, 1)),
    },
}


class Kind(NamedTuple):
    spectral: tuple[bool, bool]  # whether generator and discriminator are spectrally normalised
    inner: Any  # initial weights of the 3x3 convolutions in blocks
    wide: bool  # between its two convolutions a discriminator's block has the channels of its output, else of its input
    epsilon: float  # of batch norm


KINDS = {
    "sngan": Kind((False, True), gained, False, 2e-5),  # Chainer's default
    "wgan_gp": Kind((False, False), gained, False, 1e-5),
    "sagan": Kind((True, True), plain, True, 1e-5),
}


def kind_of(variant: str, revision: int) -> Kind:
    return KINDS[variant] if revision > 1 else KINDS[variant]._replace(wide=True, epsilon=1e-5)


# Runs of version 0.1 did not store a revision: every block of theirs is wide, and every last layer has a bias.
UNSTORED = {"revision": 1}


def plan(variant: str, shape: tuple[int, int, int]) -> Plan:
    if variant not in PLANS:
        raise unknown("variant of resnet", variant, PLANS)
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
    """z (b, latent) -> images (b, *shape) in [-1, 1]. `revision`: 1 for the networks of version 0.1 (`UNSTORED`)."""

    shape: tuple[int, int, int]
    num_classes: int = 0
    latent: int = 128
    width: int = 64
    variant: str = "sngan"
    dtype: Any = jnp.float32
    revision: int = 2
    unstored: ClassVar[Mapping[str, Any]] = UNSTORED

    @nn.compact
    def __call__(self, z: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        sizes, kind = plan(self.variant, self.shape), kind_of(self.variant, self.revision)
        base, first, attention = sizes.base, sizes.first, sizes.attention
        spectral, inner = kind.spectral[0], kind.inner

        def active(x, label=label):
            norm = BatchNorm(epsilon=kind.epsilon, num_classes=self.num_classes, dtype=self.dtype)
            return nn.relu(norm(x, train, label))

        def conv(x, features, kernel, init, up=False):
            return Conv(features, kernel, kernel_init=init, spectral=spectral, up=up, dtype=self.dtype)(x, train)

        def block(x, features):
            shortcut = up(conv(x, features, 1, plain))  # pointwise, so it may come first
            x = conv(active(x), features, 3, inner, up=True)
            return conv(active(x), features, 3, inner) + shortcut

        x = Dense(base * base * first * self.width, True, plain, spectral, self.dtype)(z, train)
        x = x.reshape(-1, base, base, first * self.width)
        for i, multiple in enumerate(sizes.up):
            x = checkpoint_name(block(x, multiple * self.width), "block")
            if attention and i == attention[0]:
                x = SelfAttention(spectral, plain, self.dtype)(x, train)
        x = conv(active(x, None), self.shape[2], 3, plain)  # of no class, as the authors of all three have it
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """images (b, *shape) -> logits (b,). `revision`: 1 for the networks of version 0.1 (`UNSTORED`)."""

    shape: tuple[int, int, int]
    num_classes: int = 0
    width: int = 64
    variant: str = "sngan"
    dtype: Any = jnp.float32
    revision: int = 2
    mixes_batch: ClassVar[bool] = False
    unstored: ClassVar[Mapping[str, Any]] = UNSTORED

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        sizes, kind = plan(self.variant, self.shape), kind_of(self.variant, self.revision)
        attention, spectral, inner = sizes.attention, kind.spectral[1], kind.inner

        def conv(x, features, kernel, init=inner, down=False):
            layer = Conv(features, kernel, kernel_init=init, spectral=spectral, down=down, dtype=self.dtype)
            return layer(x, train)

        def block(x, features, halve, first):
            hidden = features if first or kind.wide else x.shape[-1]
            y = conv(x if first else nn.relu(x), hidden, 3)
            y = conv(nn.relu(y), features, 3, down=halve)
            x = down(x) if halve else x  # which commutes with the pointwise convolution, and makes it cost a quarter
            return y + (conv(x, features, 1, plain) if halve or x.shape[-1] != features else x)

        x = x.astype(self.dtype)
        for i, multiple in enumerate(sizes.disc):
            x = checkpoint_name(block(x, multiple * self.width, i < sizes.halvings, i == 0), "block")
            if attention and i == attention[1]:
                x = SelfAttention(spectral, plain, self.dtype)(x, train)
        x = nn.relu(x).astype(jnp.float32)
        x = x.sum((1, 2)) if spectral else x.mean((1, 2))  # (b, c)
        bias = sizes.head_bias or self.revision < 2
        logit = Dense(1, bias, plain, spectral)(x, train)[:, 0]
        if label is not None:
            # Normalised as the transpose of the embedding: (c, classes).
            classes = Dense(self.num_classes, False, plain, spectral)(x, train)
            logit = logit + jnp.take_along_axis(classes, label[:, None], 1)[:, 0]
        return logit
