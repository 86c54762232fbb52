"""StyleGAN2 (arXiv:1912.04958) in the configurations of StyleGAN2-ADA (arXiv:2006.06676).

A mapping network turns the latent z into w, and w scales the channels of every convolution of the generator, which
starts from a learnt constant of 4x4 pixels and adds up the colours of all resolutions. The discriminator is residual
and sees how much the images of a batch differ. Images are 4 to 7 pixels on the shorter side, doubled several times: 28
is 7 twice doubled, and its constant 7x7.
"""

import math
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxgan.errors import InputError, unknown
from jaxgan.layers import resample
from jaxgan.layers.equalised import EqualConv, EqualDense, leaky
from jaxgan.layers.minibatch import minibatch_std
from jaxgan.layers.modulated import ModulatedConv

AVERAGE = 0.995  # what the average of w keeps of itself in a training pass
CLAMP = 256.0  # bound of all activations, with half precision anywhere
HALF = 4  # so many of the highest resolutions are computed in half precision, but not the lowest


class Plan(NamedTuple):
    """What the networks of a configuration differ in."""

    channels: float  # at r pixels there are this times 64 / r times `width`, at most `width`; 0: by the image's size
    mapping: int  # layers from z to w
    mixing: float  # share of training images made from two latents
    residual: bool  # the discriminator
    group: int  # images of a minibatch standard deviation


# The networks of the authors' training configurations, by their names; the rest of one belongs to an experiment.
PLANS = {
    "auto": Plan(0, 2, 0.9, True, 4),
    "stylegan2": Plan(1, 8, 0.9, True, 4),
    "paper256": Plan(0.5, 8, 0.9, True, 8),
    "paper512": Plan(1, 8, 0.9, True, 8),
    "paper1024": Plan(1, 8, 0.9, True, 4),
    "cifar": Plan(1, 2, 0.0, False, 32),
}


def plan(variant: str, shape: tuple[int, int, int]) -> Plan:
    if variant not in PLANS:
        raise unknown("variant of stylegan2", variant, PLANS)
    found = PLANS[variant]
    return found if found.channels else found._replace(channels=1 if max(shape[:2]) >= 512 else 0.5)


def sizes(shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Heights and widths from the constant's to the image's: (7, 7), (14, 14), (28, 28)."""
    h, w, _ = shape
    doublings = max((min(h, w) // 4).bit_length() - 1, 0)
    if not doublings or h % 2**doublings or w % 2**doublings:
        near = [max(round(n / 2 ** max(doublings, 1)), 4) * 2 ** max(doublings, 1) for n in (h, w)]
        raise InputError(
            f"stylegan2 has no plan for images of {h}x{w}; nearest: --size={near[0]}x{near[1]} "
            "(4 to 7 pixels on the shorter side, doubled once or more: 8, 12, 28, 32, 48, 256 ...)"
        )
    return [(h >> i, w >> i) for i in reversed(range(doublings + 1))]


def channels(plan: Plan, width: int, size: tuple[int, int]) -> int:
    return max(min(int(plan.channels * 64 * width / max(size)), width), 1)


def precision(dtype: Any, level: int, levels: int) -> tuple[Any, float | None]:
    """Of the blocks at one resolution (0: the base's): the dtype of their arithmetic, and the clamp of activations."""
    if jnp.dtype(dtype).itemsize >= 4:
        return dtype, None
    return dtype if level >= max(levels - HALF, 1) else jnp.float32, CLAMP


def unit(x: jax.Array) -> jax.Array:
    """(b, c) -> (b, c), of second moment 1."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-8)


class Mapping(nn.Module):
    """z (b, latent), label (b,), or one of both -> w (b, features), float32."""

    features: int
    layers: int = 8
    num_classes: int = 0

    @nn.compact
    def __call__(self, z: jax.Array | None, label: jax.Array | None) -> jax.Array:
        parts = [] if z is None else [unit(z)]
        if label is not None:
            parts.append(unit(EqualDense(self.features, name="embed")(jax.nn.one_hot(label, self.num_classes))))
        x = jnp.concatenate(parts, axis=-1)
        for _ in range(self.layers):
            x = leaky(EqualDense(self.features, rate=0.01)(x))
        return x


class Styled(nn.Module):
    """Modulated convolution, noise, bias, activation: (b, h, w, c), w -> (b, h, w, features), or twice as large.

    noise: (b or 1, h, w, 1) as the output has it; the layer learns its strength.
    """

    features: int
    up: bool
    clamp: float | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array, noise: jax.Array) -> jax.Array:
        x = ModulatedConv(self.features, up=self.up, dtype=self.dtype)(x, w)
        strength = self.param("strength", nn.initializers.zeros, ())
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # In float32 and rounded once, for the derivatives by both are sums over all places.
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)) + strength * noise + bias
        return leaky(x.astype(self.dtype), self.clamp)


class Colours(nn.Module):
    """Features (b, h, w, c), w -> colours (b, h, w, features), float32."""

    features: int
    clamp: float | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        x = ModulatedConv(self.features, 1, demodulate=False, dtype=self.dtype)(x, w)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = x + self.param("bias", nn.initializers.zeros, (self.features,))
        return x if self.clamp is None else jnp.clip(x, -self.clamp, self.clamp)


class Synthesis(nn.Module):
    """Styles (b, 2 resolutions, width) -> images (b, *shape), float32, whose values have no bounds.

    noise: (pixels of all layers,), the same for all images; None in training, where each image has noise of its own.
    """

    shape: tuple[int, int, int]
    width: int
    plan: Plan
    dtype: Any

    @nn.compact
    def __call__(self, ws: jax.Array, noise: jax.Array | None) -> jax.Array:
        levels = sizes(self.shape)
        layers = noise_sizes(levels)
        ends = np.cumsum([h * w for h, w in layers])
        # Drawn at once: each draw costs a CPU half a second to compile.
        flat = jax.random.normal(self.make_rng("noise"), (len(ws), int(ends[-1]))) if noise is None else noise[None]
        parts = jnp.split(flat, ends[:-1], axis=1)
        maps = [part.reshape(-1, *size, 1) for part, size in zip(parts, layers, strict=True)]
        image = jnp.float32(0)
        for i, size in enumerate(levels):
            dtype, clamp = precision(self.dtype, i, len(levels))
            features = channels(self.plan, self.width, size)
            if i == 0:
                constant = self.param("constant", nn.initializers.normal(1.0), (*size, features))
                x = jnp.broadcast_to(constant, (ws.shape[0], *constant.shape))
            else:
                x = Styled(features, True, clamp, dtype)(x, ws[:, 2 * i - 1], maps[2 * i - 1])
                image = resample.up(image)
            x = Styled(features, False, clamp, dtype)(x, ws[:, 2 * i], maps[2 * i])
            image = image + Colours(self.shape[2], clamp, dtype)(x, ws[:, 2 * i + 1])
            x, image = checkpoint_name(x, "block"), checkpoint_name(image, "block")
        return image


def noise_sizes(levels: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Heights and widths of the layers with noise: one at the base, two at each resolution above."""
    return [levels[0], *(size for size in levels[1:] for _ in range(2))]


def constant_noise(shape: tuple[int, ...]) -> jax.Array:
    """The noise that runs sampled with before it was one of their variables, a constant of its shape."""
    return jax.random.normal(jax.random.key(0, impl="threefry2x32"), shape, jnp.float32)


class Generator(nn.Module):
    """z (b, latent) -> images (b, *shape), within [-1, 1] where train = False.

    In training they are not clipped, as a clipped pixel would have no gradient. `map` and `synthesise` are the two
    halves. Beside its parameters the generator keeps "moving/w", the average of w towards which `psi` truncates,
    "path/mean", the average path length (`jaxgan.pathlength`), and "noise/constant", the noise of all images outside of
    training, drawn once. Weights of older runs, which lack it, are sampled with `constant_noise`.

    The average of w moves in the generator's own passes. In the authors' code it moves in the discriminator's too, so
    it follows a change of the weights in half as many steps. Noise and style mixing of training are drawn for each
    device and micro-batch: unlike everything else, they change with the number of devices.

    width: the most channels of a layer, and the dimension of w; the others are scaled with it.
    """

    shape: tuple[int, int, int]
    num_classes: int = 0
    latent: int = 512
    width: int = 512
    variant: str = "auto"
    dtype: Any = jnp.float32
    added: ClassVar[dict[str, Any]] = {"noise": constant_noise}

    def setup(self) -> None:
        self.plan = plan(self.variant, self.shape)
        self.mapping = Mapping(self.width, self.plan.mapping, self.num_classes)
        self.synthesis = Synthesis(self.shape, self.width, self.plan, self.dtype)
        self.average = self.variable("moving", "w", jnp.zeros, (self.width,))
        self.length = self.variable("path", "mean", jnp.zeros, ())
        self.pixels = sum(h * w for h, w in noise_sizes(sizes(self.shape)))
        if self.is_initializing():  # else it may be missing
            draw = nn.initializers.normal(1.0)
            self.variable("noise", "constant", lambda: draw(self.make_rng("params"), (self.pixels,), jnp.float32))

    def __call__(
        self, z: jax.Array, label: jax.Array | None = None, train: bool = False, psi: jax.Array | float | None = None
    ) -> jax.Array:
        image = self.synthesise(self.map(z, label, train, psi), train)
        return image if train else jnp.clip(image, -1, 1)

    # "highest": where a run is in bfloat16, what stays in float32 would otherwise get products in TF32.
    @jax.default_matmul_precision("highest")
    def map(
        self, z: jax.Array, label: jax.Array | None = None, train: bool = False, psi: jax.Array | float | None = None
    ) -> jax.Array:
        """z (b, latent) -> the style of every layer (b, 2 resolutions, width).

        train: a share of the images gets the styles of a second latent from a random layer on (arXiv:1812.04948, 3.1),
          each image on its own; and the average of w moves.
        psi: outside of training, w goes to psi times its distance from that average: below 1, less variety and fewer
          failures (arXiv:1812.04948, appendix B).
        """
        n = 2 * len(sizes(self.shape))
        w = self.mapping(z, label)
        ws = jnp.repeat(w[:, None], n, axis=1)
        if not train:
            return ws if psi is None else self.average.value + psi * (ws - self.average.value)
        if not self.is_initializing():
            self.average.value += (1 - AVERAGE) * (jax.lax.stop_gradient(w.mean(0)) - self.average.value)
        if self.plan.mixing:
            z_key, mix_key, layer_key = jax.random.split(self.make_rng("noise"), 3)
            other = self.mapping(jax.random.normal(z_key, z.shape), label)
            mixed = jax.random.bernoulli(mix_key, self.plan.mixing, (len(z), 1))
            first = jax.random.randint(layer_key, (len(z), 1), 1, n)
            ws = jnp.where((mixed & (jnp.arange(n) >= first))[:, :, None], other[:, None], ws)
        return ws

    @jax.default_matmul_precision("highest")
    def synthesise(self, ws: jax.Array, train: bool = False) -> jax.Array:
        """Styles (b, 2 resolutions, width) -> images (b, *shape), not clipped."""
        if train:
            return self.synthesis(ws, None)
        stored = self.has_variable("noise", "constant")
        return self.synthesis(ws, self.get_variable("noise", "constant") if stored else constant_noise((self.pixels,)))


class Discriminator(nn.Module):
    """images (b, *shape) -> logits (b,). Labels enter by projection (arXiv:1802.05637) on a mapping of their own."""

    shape: tuple[int, int, int]
    num_classes: int = 0
    width: int = 512
    variant: str = "auto"
    dtype: Any = jnp.float32
    mixes_batch: ClassVar[bool] = True

    @nn.compact
    @jax.default_matmul_precision("highest")
    def __call__(self, x: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        config, levels = plan(self.variant, self.shape), sizes(self.shape)
        features = [channels(config, self.width, size) for size in levels]
        for i in reversed(range(1, len(levels))):
            dtype, clamp = precision(self.dtype, i, len(levels))
            if i == len(levels) - 1:
                x = leaky(EqualConv(features[i], 1, dtype=dtype)(x), clamp)
            y = leaky(EqualConv(features[i], dtype=dtype)(x), clamp)
            y = leaky(EqualConv(features[i - 1], down=True, dtype=dtype)(y), clamp)
            if config.residual:  # divided by sqrt(2), which keeps the variance
                y = (y + EqualConv(features[i - 1], 1, False, True, dtype)(x)) * math.sqrt(0.5)
            x = checkpoint_name(y, "block")
        dtype, clamp = precision(self.dtype, 0, len(levels))  # that of the base is never half
        x = minibatch_std(x.astype(dtype), config.group)
        x = leaky(EqualConv(features[0], dtype=dtype)(x), clamp)
        x = leaky(EqualDense(features[0])(x.reshape(x.shape[0], -1)))
        if label is None:
            return EqualDense(1)(x)[:, 0]
        classes = Mapping(features[0], num_classes=self.num_classes)(None, label)
        return jnp.sum(EqualDense(features[0])(x) * classes, -1) / math.sqrt(features[0])
