"""R3GAN: Huang, Gokaslan, Kuleshov and Tompkin 2024 (arXiv:2501.05441), its config E, for images of any size.

Both networks are stages of one resolution each, two residual blocks a stage, without normalisation, noise or style:

    x + W3 φ(b2 + W2 φ(b1 + W1 x)),      φ: leaky ReLU 0.2

with 1x1 convolutions W1 and W3 to twice the channels and back and a grouped 3x3 convolution W2. W3 starts at zero, all
other weights at N(0, g² / fan_in): g = sqrt(2 / (1 + 0.2²)) L^(-1/4) for W1 and W2 in a network of L blocks
(arXiv:1901.09321), 1 elsewhere. Only φ has biases. Between stages the image is resampled by `resample.up` and `down`;
where the channels change, by a 1x1 convolution at the lower of the two resolutions.

The image is halved (rounding up) to a base of 4 to 7 pixels on its shorter side. The latent is N(0, I), not normalised.
Generated images are linear in the last features: no tanh keeps them within [-1, 1], where only samples are clipped.

In bfloat16 the three highest resolutions are computed, four from 64x64 on, and the base never is.
"""

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxgan.errors import InputError, unknown
from jaxgan.layers import Conv, Dense
from jaxgan.layers.grouped import GroupedConv
from jaxgan.layers.resample import down, up


class Plan(NamedTuple):
    width: int  # channels of the stages
    full: int  # of so many pixels at most; each larger one has half the channels of the one before
    group: int  # channels a group of the 3x3 convolutions, which have twice the stage's channels


SMALL = Plan(64, 16, 16)  # not in the paper: for a CPU
PAPER = Plan(768, 32, 16)
IMAGENET = Plan(1536, 64, 32)
VARIANTS = {
    "small": SMALL,
    "stacked_mnist": PAPER,
    "cifar10": PAPER,
    "ffhq64": PAPER,
    "ffhq256": PAPER,
    "imagenet32": IMAGENET,
    "imagenet64": IMAGENET,
}
BLOCKS = 2  # of a stage


class Stage(NamedTuple):
    size: tuple[int, int]
    channels: int
    groups: int
    gain: float  # of W1 and W2
    dtype: Any


def stages(shape: tuple[int, int, int], variant: str, width: int = 0, dtype: Any = jnp.float32) -> list[Stage]:
    """From the base's to the image's. `width` takes the place of the variant's own; 0: that."""
    if variant not in VARIANTS:
        raise unknown("variant of r3gan", variant, VARIANTS)
    if width < 0:
        raise InputError(f"--width={width}: expected channels of the widest stage, or 0 for the variant's own")
    plan = VARIANTS[variant]
    sizes = [(shape[0], shape[1])]
    while min(sizes[0]) >= 8:
        h, w = sizes[0]
        sizes.insert(0, (-(-h // 2), -(-w // 2)))
    half = min(3 if len(sizes) < 5 else 4, len(sizes) - 1)
    gain = (2 / (1 + 0.2**2)) ** 0.5 * (BLOCKS * len(sizes)) ** -0.25
    result, channels = [], width or plan.width
    for i, size in enumerate(sizes):
        channels = max(channels // 2, 1) if i and max(size) > plan.full else channels
        # Widths that are no multiple of the groups' get the largest groups that divide them.
        group = next(n for n in range(plan.group, 0, -1) if 2 * channels % n == 0)
        wide = dtype if i >= len(sizes) - half else jnp.promote_types(dtype, jnp.float32)
        result.append(Stage(size, channels, 2 * channels // group, gain, wide))
    return result


def normal(gain: float = 1.0):
    """N(0, gain² / fan_in)."""
    return nn.initializers.variance_scaling(gain**2, "fan_in", "normal")


class Block(nn.Module):
    stage: Stage

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, dtype, init = x.shape[-1], self.stage.dtype, normal(self.stage.gain)
        y = nn.leaky_relu(Conv(2 * c, 1, kernel_init=init, dtype=dtype)(x), 0.2)
        y = nn.leaky_relu(GroupedConv(2 * c, self.stage.groups, kernel_init=init, dtype=dtype)(y), 0.2)
        y = Conv(c, 1, use_bias=False, kernel_init=nn.initializers.zeros, dtype=dtype)(y)
        return checkpoint_name(x + y, "block")


def pointwise(features: int, dtype: Any) -> Conv:
    return Conv(features, 1, use_bias=False, kernel_init=normal(), dtype=dtype)


class Generator(nn.Module):
    """z (b, latent) -> images (b, *shape), in [-1, 1] where not in training; labels are embedded beside the latent."""

    shape: tuple[int, int, int]
    num_classes: int = 0
    latent: int = 64
    width: int = 0
    variant: str = "small"
    dtype: Any = jnp.float32

    # "highest": where a run is in bfloat16, the stages in float32 would otherwise get products in TF32.
    @nn.compact
    @jax.default_matmul_precision("highest")
    def __call__(self, z: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        base, *upper = stages(self.shape, self.variant, self.width, self.dtype)
        z = z.astype(base.dtype)
        if label is not None:
            embedded = Dense(self.latent, False, normal(), dtype=base.dtype)(jax.nn.one_hot(label, self.num_classes))
            z = jnp.concatenate([z, embedded], axis=-1)
        basis = self.param("basis", nn.initializers.normal(1.0), (*base.size, base.channels))
        x = basis * Dense(base.channels, False, normal(), dtype=base.dtype)(z)[:, None, None]  # (b, h, w, c)
        for stage in (base, *upper):
            x = x.astype(stage.dtype)
            if x.shape[-1] != stage.channels:
                x = pointwise(stage.channels, stage.dtype)(x)
            if stage is not base:
                x = up(x)[:, : stage.size[0], : stage.size[1]]
            for _ in range(BLOCKS):
                x = Block(stage)(x)
        x = pointwise(self.shape[2], x.dtype)(x).astype(jnp.float32)
        return x if train else jnp.clip(x, -1, 1)


class Discriminator(nn.Module):
    """images (b, *shape) -> logits (b,). With classes: the inner product of the features with the class's embedding."""

    shape: tuple[int, int, int]
    num_classes: int = 0
    width: int = 0
    variant: str = "small"
    dtype: Any = jnp.float32
    mixes_batch: ClassVar[bool] = False

    @nn.compact
    @jax.default_matmul_precision("highest")
    def __call__(self, x: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        base, *upper = stages(self.shape, self.variant, self.width, self.dtype)
        descending = [*reversed(upper), base]
        x = pointwise(descending[0].channels, descending[0].dtype)(x)
        for stage, following in zip(descending, [*descending[1:], None], strict=True):
            x = x.astype(stage.dtype)
            for _ in range(BLOCKS):
                x = Block(stage)(x)
            if following is not None:
                x = down(x)
                if following.channels != stage.channels:
                    x = pointwise(following.channels, stage.dtype)(x)
        # A depthwise convolution over all of the last image: (b, h, w, c) -> (b, c).
        spread = nn.initializers.normal((base.size[0] * base.size[1]) ** -0.5)
        basis = self.param("basis", spread, (*base.size, base.channels))
        x = jnp.einsum("bhwc,hwc->bc", x.astype(base.dtype), basis)
        if label is None:
            return Dense(1, False, normal(), dtype=base.dtype)(x)[:, 0]
        c = base.channels
        x = Dense(c, False, normal(), dtype=base.dtype)(x)
        embed = Dense(c, False, normal(c**-0.5), dtype=base.dtype)
        return jnp.sum(x * embed(jax.nn.one_hot(label, self.num_classes)), -1)
