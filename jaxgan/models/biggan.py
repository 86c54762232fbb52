"""BigGAN and BigGAN-deep (arXiv:1809.11096, appendix B): residual networks for the classes of ImageNet and for less.

Both players are spectrally normalised throughout. All batch norms of the generator but the last have gains and biases
linear in a condition: of BigGAN, the class's embedding, which all share, and the block's own chunk of the latent; of
BigGAN-deep, the embedding and the whole latent. Without classes the latent is all of it. One self-attention stands in
the middle of each network. Labels enter the discriminator by projection (arXiv:1802.05637, eq. 5).

BigGAN's blocks are SNGAN's: two 3x3 convolutions and a 1x1 shortcut. BigGAN-deep's have a bottleneck of a quarter of
the channels, stand in pairs, and leave the shortcut alone: where channels become fewer the first stay, where they
become more a 1x1 convolution adds the missing ones.

The paper's tables contradict its counts of parameters in two places, and the counts are met here: the generator's first
layer sees 20 dimensions of the latent and not the embedding, and the discriminator's first block has `width` channels.

Besides the tables' 128, 256 and 512 there are 64 and 32, as in the first author's later code, and smaller ones; and any
height and width that are 4 to 7 pixels doubled as often. "cifar" is that code's network for CIFAR: 32's channels with a
gain and a bias of each class in place of the condition, the latent in one piece, and N(0, 0.02²) at the start.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxgan.errors import InputError, unknown
from jaxgan.layers import BatchNorm, Conv, Dense
from jaxgan.layers.attention import SelfAttention
from jaxgan.layers.norm import ConditionalBatchNorm, around_one
from jaxgan.models.resnet import down, up

EMBEDDING = 128


class Kind(NamedTuple):
    deep: bool  # blocks in pairs, with bottlenecks
    width: int  # `ch` of the paper
    chunk: int  # dimensions of the latent for the first layer and for each block; 0: all see the whole
    latent: int  # all dimensions, where they are in one piece
    tables: bool  # every class has gains and biases of its own; nothing else modulates
    init: Any
    epsilon: float  # of batch norm


orthogonal = nn.initializers.orthogonal()
KINDS = {
    "biggan": Kind(False, 96, 20, 0, False, orthogonal, 1e-4),
    "deep": Kind(True, 128, 0, 128, False, orthogonal, 1e-4),
    "cifar": Kind(False, 64, 0, 128, True, nn.initializers.normal(0.02), 1e-5),
}


class Plan(NamedTuple):
    """Channels in multiples of `width`; stages count from 0."""

    first: int  # of the generator's first image
    up: tuple[int, ...]  # of the generator's stages, each of which doubles the image
    attention_up: int | None  # the stage that self-attention follows
    stem: int  # of the convolution before the discriminator's stages; 0: there is none
    down: tuple[int, ...]  # of the discriminator's stages,
    halvings: int  # the first so many of which halve the image
    attention_down: int | None


# By the size that 4x4 becomes: 48x48 and 56x56, of 6x6 and 7x7, have 32's plan. Those under 32 go on as 32 does.
SMALL = {
    8: Plan(4, (4,), None, 0, (4, 4), 1, None),
    16: Plan(4, (4, 4), None, 0, (4, 4, 4), 1, None),
    32: Plan(4, (4, 4, 4), None, 0, (4, 4, 4, 4), 2, None),
}
PLANS = {
    "biggan": SMALL
    | {
        64: Plan(16, (16, 8, 4, 2), 2, 0, (1, 2, 4, 8, 16), 4, 0),
        128: Plan(16, (16, 8, 4, 2, 1), 3, 0, (1, 2, 4, 8, 16, 16), 5, 0),  # table 4
        256: Plan(16, (16, 8, 8, 4, 2, 1), 4, 0, (1, 2, 4, 8, 8, 16, 16), 6, 1),  # table 5
        512: Plan(16, (16, 8, 8, 4, 2, 1, 1), 3, 0, (1, 1, 2, 4, 8, 8, 16, 16), 7, 2),  # table 6
    },
    "deep": {
        8: Plan(4, (4,), None, 4, (4,), 1, None),
        16: Plan(4, (4, 4), None, 4, (4, 4), 1, None),
        32: Plan(4, (4, 4, 4), None, 4, (4, 4, 4), 2, None),
        64: Plan(16, (16, 8, 4, 2), 2, 1, (2, 4, 8, 16), 4, 0),
        128: Plan(16, (16, 8, 4, 2, 1), 3, 1, (2, 4, 8, 16, 16), 5, 0),  # table 7
        256: Plan(16, (16, 8, 8, 4, 2, 1), 3, 1, (2, 4, 8, 8, 16, 16), 6, 1),  # table 8
        512: Plan(16, (16, 8, 8, 4, 2, 1, 1), 3, 1, (1, 2, 4, 8, 8, 16, 16), 7, 2),  # table 9
    },
    "cifar": SMALL,
}


def plan(variant: str, shape: tuple[int, int, int]) -> tuple[tuple[int, int], Plan]:
    """Height and width of the generator's first image, 4 to 7 pixels on its shorter side, and the plan from there."""
    if variant not in PLANS:
        raise unknown("variant of biggan", variant, PLANS)
    plans, (height, width, _) = PLANS[variant], shape
    doublings = 0
    while height % (2 << doublings) == width % (2 << doublings) == 0 and min(height, width) >> doublings >= 8:
        doublings += 1
    base = height >> doublings, width >> doublings
    if not 4 <= min(base) <= 7 or 4 << doublings not in plans:
        sizes = [b * size // 4 for b in (4, 5, 6, 7) for size in plans]
        near = min(sizes, key=lambda size: abs(size - min(height, width)))
        raise InputError(
            f"biggan's {variant} has no plan for images of {height}x{width}; nearest: --size={near} "
            f"(4 to 7 pixels doubled 1 to {max(plans).bit_length() - 3} times, on both sides)"
        )
    return base, plans[4 << doublings]


def parts(z: jax.Array, embedded: jax.Array | None, stages: int, split: bool) -> tuple[jax.Array, list[jax.Array]]:
    """What the first layer sees of the latent z (b, d) and the classes' embeddings (b, k), and each stage's condition.

    split: z in chunks, as equal as can be, the first layer's without the embedding; else all of both for everyone.
    """
    shared = [] if embedded is None else [embedded]
    if not split:
        whole = jnp.concatenate([*shared, z], -1)
        return whole, [whole] * stages
    first, *chunks = jnp.split(z, [z.shape[1] * i // (stages + 1) for i in range(1, stages + 1)], -1)
    return first, [jnp.concatenate([*shared, chunk], -1) for chunk in chunks]


class Generator(nn.Module):
    """z (b, latent) -> images (b, *shape) in [-1, 1]. `latent` and `width`: 0 for the paper's own."""

    shape: tuple[int, int, int]
    num_classes: int = 0
    latent: int = 0
    width: int = 0
    variant: str = "biggan"
    dtype: Any = jnp.float32

    def __post_init__(self):
        stages = len(plan(self.variant, self.shape)[1].up)
        kind = KINDS[self.variant]
        self.width = self.width or kind.width
        self.latent = self.latent or kind.latent or kind.chunk * (stages + 1)
        if kind.chunk and self.latent <= stages:
            raise InputError(
                f"--latent={self.latent}: expected {stages + 1} or more, for the first layer and each block"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, z: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        kind, ((height, width), stages) = KINDS[self.variant], plan(self.variant, self.shape)
        embedded = None
        if label is not None and not kind.tables:
            embedded = nn.Embed(self.num_classes, EMBEDDING, embedding_init=kind.init, name="embed")(label)
        first, conditions = parts(z, embedded, len(stages.up), bool(kind.chunk))
        conv, stage = convolution(kind, self.dtype, train), deep_up if kind.deep else wide_up

        def active(x, condition):
            if kind.tables:
                starts = {"scale_init": around_one, "bias_init": kind.init} if self.num_classes else {}
                norm = BatchNorm(epsilon=kind.epsilon, dtype=self.dtype, num_classes=self.num_classes, **starts)
                return nn.relu(norm(x, train, label))
            norm = ConditionalBatchNorm(epsilon=kind.epsilon, kernel_init=kind.init, spectral=True, dtype=self.dtype)
            return nn.relu(norm(x, condition, train))

        features = stages.first * self.width
        x = Dense(height * width * features, True, kind.init, spectral=True, dtype=self.dtype)(first, train)
        x = x.reshape(-1, height, width, features)
        for i, multiple in enumerate(stages.up):
            x = stage(x, multiple * self.width, conv, functools.partial(active, condition=conditions[i]))
            if i == stages.attention_up:
                x = SelfAttention(True, kind.init, self.dtype)(x, train)
        x = nn.relu(BatchNorm(epsilon=kind.epsilon, dtype=self.dtype)(x, train))
        return jnp.tanh(conv(x, self.shape[2]).astype(jnp.float32))


class Discriminator(nn.Module):
    """images (b, *shape) -> logits (b,)."""

    shape: tuple[int, int, int]
    num_classes: int = 0
    width: int = 0
    variant: str = "biggan"
    dtype: Any = jnp.float32
    mixes_batch: ClassVar[bool] = False

    def __post_init__(self):
        plan(self.variant, self.shape)
        self.width = self.width or KINDS[self.variant].width
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        kind, (_, stages) = KINDS[self.variant], plan(self.variant, self.shape)
        conv, stage = convolution(kind, self.dtype, train), deep_down if kind.deep else wide_down
        x = x.astype(self.dtype)
        if stages.stem:
            x = conv(x, stages.stem * self.width)
        for i, multiple in enumerate(stages.down):
            x = stage(x, multiple * self.width, conv, i < stages.halvings, i == 0)
            if i == stages.attention_down:
                x = SelfAttention(True, kind.init, self.dtype)(x, train)
        x = nn.relu(x).astype(jnp.float32).sum((1, 2))  # (b, c)
        logit = Dense(1, kernel_init=kind.init, spectral=True)(x, train)[:, 0]
        if label is not None:
            # Normalised as the transpose of the embedding: (c, classes).
            classes = Dense(self.num_classes, False, kind.init, True, name="embed")(x, train)
            logit = logit + jnp.take_along_axis(classes, label[:, None], 1)[:, 0]
        return logit


def convolution(kind: Kind, dtype: Any, train: bool) -> Callable:
    def conv(x, features, kernel=3, **options):
        return Conv(features, kernel, kernel_init=kind.init, dtype=dtype, spectral=True, **options)(x, train)

    return conv


# One stage each: (b, h, w, c) -> (b, 2h, 2w, features) in the generator, -> (b, h / 2, w / 2, features) in the
# discriminator, or the same size where it does not halve. `conv` is a convolution, `active` batch norm and ReLU.


def wide_up(x, features, conv, active):
    shortcut = up(conv(x, features, 1))  # pointwise, so it may come first
    x = conv(active(x), features, up=True)
    return checkpoint_name(conv(active(x), features) + shortcut, "block")


def wide_down(x, features, conv, halve, first):
    y = conv(x if first else nn.relu(x), features)
    y = conv(nn.relu(y), features, down=halve)
    x = down(x) if halve else x
    return checkpoint_name(y + (conv(x, features, 1) if halve or x.shape[-1] != features else x), "block")


def deep_up(x, features, conv, active):
    def block(x, features, larger):
        narrow = max(x.shape[-1] // 4, 1)
        y = conv(active(x), narrow, 1)
        y = conv(active(y), narrow, up=larger)
        y = conv(active(y), narrow)
        y = conv(active(y), features, 1)
        x = x[..., :features]
        return checkpoint_name(y + (up(x) if larger else x), "block")

    return block(block(x, x.shape[-1], False), features, True)


def deep_down(x, features, conv, halve, first):
    def block(x, smaller):
        narrow = max(features // 4, 1)
        y = conv(nn.relu(x), narrow, 1)
        y = conv(nn.relu(y), narrow)
        y = nn.relu(conv(nn.relu(y), narrow))
        x, y = (down(x), down(y)) if smaller else (x, y)
        y = conv(y, features, 1)
        missing = features - x.shape[-1]
        return checkpoint_name(y + (jnp.concatenate([x, conv(x, missing, 1)], -1) if missing else x), "block")

    return block(block(x, halve), False)
