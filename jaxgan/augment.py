"""Differentiable augmentation: what the discriminator sees of real and of generated images, in both players' losses.

    augment = Augment(policy("diffaugment"))                                      # always
    augment = Augment(policy("ada"), Adaptive(target=0.6))                        # as often as overfitting asks for
    augment = Augment(policy("r3gan"), schedule.anneal((0.0, 0.3), period=2e7))   # by a schedule of images seen
    seen = augment.apply(keys, images, p)

What happens to an image is a function of its own key, of p, and of nothing else in its batch. Its parameters are drawn
first (`draw_simple`, `draw`); what is then done with them is affine in the image.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgan import collectives
from jaxgan.errors import InputError, unknown
from jaxgan.layers import geometry, wavelet

# keys (b,), images (b, h, w, c) in [-1, 1], p >= 0 -> images, whose range is no longer bounded
Apply: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array | float], jax.Array]


class Adaptive(NamedTuple):
    """p follows the discriminator, at the speed of 0 to 1 in `images` images (arXiv:2006.06676, section 3).

    interval: passes of real images in the discriminator's loss between two adjustments of p.
    """

    target: float = 0.6
    images: float = 500_000.0
    interval: int = 4


class Augment(NamedTuple):
    """A family of augmentations and how often: p itself, a function of the images seen, or `Adaptive`."""

    apply: Apply
    probability: float | Callable[[jax.Array], jax.Array] | Adaptive = 1.0


class Signs(NamedTuple):
    """Signs of D(real) since the last adjustment of p, of an average device: their sum and number, and the passes."""

    total: jax.Array
    number: jax.Array
    passes: jax.Array

    @classmethod
    def none(cls) -> "Signs":
        return cls(*jnp.zeros(3))

    def with_logits(self, real_logits: jax.Array) -> "Signs":
        """Adds the signs of logits (b,) of this device."""
        total = collectives.mean(jnp.sum(jnp.sign(real_logits)))
        return self._replace(total=self.total + total, number=self.number + len(real_logits))


def adapt(
    adaptive: Adaptive, p: jax.Array, signs: Signs, real_logits: jax.Array, images: jax.Array | int
) -> tuple[jax.Array, Signs]:
    """p and the signs after a pass of real images with these logits (b,); every `interval` passes, p is adjusted.

    It then rises by `interval` * `images` / adaptive.images if r_t = E[sign(D(real))], over all signs since the last
    adjustment, is above its target, and falls by as much if below, to no less than 0 (arXiv:2006.06676, section 3).
    Above 1 it is not clipped, as in the authors' code: an augmentation of strength 1 is then applied to every image.

    images: of one pass, on all devices.
    """
    signs = signs.with_logits(real_logits)._replace(passes=signs.passes + 1)
    step = jnp.sign(signs.total / signs.number - adaptive.target) * (adaptive.interval * images / adaptive.images)
    due = signs.passes >= adaptive.interval
    p = jnp.where(due, jnp.maximum(p + step, 0.0), p)
    return p, jax.tree.map(lambda x: jnp.where(due, 0.0, x), signs)


# --- DiffAugment (arXiv:2006.10738)


class Simple(NamedTuple):
    """What DiffAugment draws for one image."""

    on: jax.Array  # whether any of it happens
    brightness: jax.Array  # added
    saturation: jax.Array  # factors of the distance from the mean
    contrast: jax.Array
    shift: jax.Array  # (2,), whole pixels down and right
    corner: jax.Array  # (2,), the first row and column that are cut out, negative where the square begins outside


def pixels(fraction: float, size: int) -> int:
    """A part of an axis in whole pixels, rounded as the authors of DiffAugment do."""
    return int(size * fraction + 0.5)


def draw_simple(
    key: jax.Array, p: jax.Array | float, shape: tuple[int, int], translation: float, cutout: float
) -> Simple:
    """The parameters of DiffAugment for an image of `shape` (h, w)."""
    color_key, shift_key, corner_key = jax.random.split(key, 3)
    on, brightness, saturation, contrast = jax.random.uniform(color_key, (4,), jnp.float32)
    reach, size = (np.array([pixels(fraction, n) for n in shape]) for fraction in (translation, cutout))
    # The centre of the square lies anywhere in the image, borders included, so that less of it may be cut out.
    centre = jax.random.randint(corner_key, (2,), 0, np.array(shape) + 1 - size % 2, jnp.int32)
    return Simple(
        on=on < p,
        brightness=brightness - 0.5,
        saturation=2 * saturation,
        contrast=contrast + 0.5,
        shift=jax.random.randint(shift_key, (2,), -reach, reach + 1, jnp.int32),
        corner=centre - size // 2,
    )


def opaque(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The colors (..., c) of an image and its alpha (..., 1), which is (..., 0) but for an image of four channels."""
    colors = 3 if image.shape[-1] == 4 else image.shape[-1]
    return image[..., :colors], image[..., colors:]


def diffaugment(
    brightness: bool = True,
    saturation: bool = True,
    contrast: bool = True,
    translation: float = 1 / 8,
    cutout: float = 1 / 2,
) -> Apply:
    """DiffAugment: colour, translation and cutout in this order, together, with probability p an image.

    translation: reach, and cutout: length of the square's side, as parts of the image's height and width; 0: none.
    Of RGBA images colour changes the first three channels; what translation and cutout leave empty is 0 in all four.
    """

    def one(key: jax.Array, image: jax.Array, p: jax.Array | float) -> jax.Array:
        h, w, _ = image.shape
        draws = draw_simple(key, p, (h, w), translation, cutout)
        x, alpha = opaque(image.astype(jnp.float32))
        if brightness:
            x = x + draws.brightness
        if saturation:
            grey = x.mean(-1, keepdims=True)
            x = (x - grey) * draws.saturation + grey
        if contrast:
            mean = x.mean()
            x = (x - mean) * draws.contrast + mean
        x = jnp.concatenate([x, alpha], -1)
        if translation:
            x = geometry.translate(x, draws.shift)
        if cutout:
            rows, columns = (jnp.arange(n) - first for n, first in zip((h, w), draws.corner, strict=True))
            inside = [(i >= 0) & (i < pixels(cutout, n)) for i, n in ((rows, h), (columns, w))]
            x = jnp.where((inside[0][:, None] & inside[1])[..., None], 0.0, x)
        return jnp.where(draws.on, x, image)

    return jax.vmap(one, (0, 0, None))


# --- ADA (arXiv:2006.06676, appendix B)


class Strengths(NamedTuple):
    """The probability of each transformation of ADA, in multiples of p."""

    # Pixel blits
    xflip: float = 0.0
    rotate90: float = 0.0
    xint: float = 0.0
    # General geometric transformations
    scale: float = 0.0
    rotate: float = 0.0
    aniso: float = 0.0
    xfrac: float = 0.0
    # Colour
    brightness: float = 0.0
    contrast: float = 0.0
    lumaflip: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    # Filtering and corruption of the image
    imgfilter: float = 0.0
    noise: float = 0.0
    cutout: float = 0.0


BLIT = {"xflip": 1.0, "rotate90": 1.0, "xint": 1.0}
GEOM = {"scale": 1.0, "rotate": 1.0, "aniso": 1.0, "xfrac": 1.0}
COLOR = {"brightness": 1.0, "contrast": 1.0, "lumaflip": 1.0, "hue": 1.0, "saturation": 1.0}
REACH = 1 / 8  # of integer translations, uniform; the standard deviation of fractional ones; parts of the image
SIDE = 1 / 2  # of the square that is cut out
POWER = np.array([10, 1, 1, 1]) / 13  # of the four frequency bands in natural images


class Draws(NamedTuple):
    """What ADA draws for one image. Neutral: 0 for what is added or turned by, 1 for what is multiplied by."""

    flip: jax.Array  # 0 or 1
    quarters: jax.Array  # turns by 90 degrees, 0 to 3
    shift: jax.Array  # (2,), to the right and down, a part of the image
    scale: jax.Array
    before: jax.Array  # angle of the rotation before the anisotropic scaling
    aniso: jax.Array
    after: jax.Array  # and after it
    move: jax.Array  # (2,), as `shift`
    brightness: jax.Array
    contrast: jax.Array
    lumaflip: jax.Array  # 0 or 1
    hue: jax.Array  # angle
    saturation: jax.Array
    bands: jax.Array  # (4,), gains of the octaves before their normalisation
    noise: jax.Array  # standard deviation
    noise_key: jax.Array
    cutout: jax.Array  # side of the square, a part of the image
    centre: jax.Array  # (2,), x and y, parts of the image


def draw(key: jax.Array, p: jax.Array | float, strengths: Strengths) -> Draws:
    """The parameters of ADA: each transformation is tossed for by itself, and neutral when it loses."""
    coin_key, uniform_key, normal_key, noise_key = jax.random.split(key, 4)
    # One call for all draws of a kind: each call compiles a hash function of its own.
    coins = iter(jax.random.uniform(coin_key, (19,), jnp.float32))
    u = jax.random.uniform(uniform_key, (10,), jnp.float32)
    z = jax.random.normal(normal_key, (12,), jnp.float32)

    def some(chance: jax.Array | float, drawn: jax.Array | float, neutral: float) -> jax.Array:
        return jnp.where(next(coins) < chance, drawn, neutral)

    s = Strengths(*(p * jnp.array(strengths)))
    rotate = 1 - jnp.sqrt(jnp.clip(1 - s.rotate, 0, 1))  # each of two, so that either happens with s.rotate
    return Draws(
        flip=some(s.xflip, jnp.floor(2 * u[0]), 0),
        quarters=some(s.rotate90, jnp.floor(4 * u[1]), 0),
        shift=some(s.xint, REACH * (2 * u[2:4] - 1), 0),
        scale=some(s.scale, jnp.exp2(0.2 * z[0]), 1),
        before=some(rotate, jnp.pi * (2 * u[4] - 1), 0),
        aniso=some(s.aniso, jnp.exp2(0.2 * z[1]), 1),
        after=some(rotate, jnp.pi * (2 * u[5] - 1), 0),
        move=some(s.xfrac, REACH * z[2:4], 0),
        brightness=some(s.brightness, 0.2 * z[4], 0),
        contrast=some(s.contrast, jnp.exp2(0.5 * z[5]), 1),
        lumaflip=some(s.lumaflip, jnp.floor(2 * u[6]), 0),
        hue=some(s.hue, jnp.pi * (2 * u[7] - 1), 0),
        saturation=some(s.saturation, jnp.exp2(z[6]), 1),
        bands=jnp.stack([some(s.imgfilter, jnp.exp2(z[i]), 1) for i in (7, 8, 9, 10)]),
        noise=some(s.noise, 0.1 * jnp.abs(z[11]), 0),
        noise_key=noise_key,
        cutout=some(s.cutout, SIDE, 0),
        centre=u[8:10],
    )


def placement(draws: Draws, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Where each place (x, y) of the transformed image comes from: linear (2, 2) and offset (2,) of `geometry.warp`.

    shape: (h, w). The image is flipped, turned by quarters, shifted by whole pixels, scaled, turned, scaled by aniso
    along x and 1 / aniso along y, turned, and shifted by parts of a pixel: inverted here, from the last to the first.
    """
    size = np.array(shape[::-1], np.float32)
    sin, cos = (jnp.array(x)[draws.quarters.astype(jnp.int32)] for x in ([0.0, 1, 0, -1], [1.0, 0, -1, 0]))
    blit = jnp.array([[cos, -sin], [sin, cos]]) * jnp.stack([1 - 2 * draws.flip, jnp.ones(())])[:, None]
    squeeze = jnp.stack([1 / draws.aniso, draws.aniso]) / draws.scale
    smooth = geometry.product(geometry.turn(draws.before) * squeeze, geometry.turn(draws.after))
    linear = geometry.product(blit, smooth)
    whole = geometry.product(blit, jnp.round(draws.shift * size))
    return linear, -geometry.product(linear, draws.move * size) - whole


def recolor(image: jax.Array, draws: Draws) -> jax.Array:
    """Brightness, contrast, luma flip, hue and saturation of an image (h, w, c) of 1, 3 or 4 channels.

    The authors multiply 4x4 matrices. All five respect the grey axis: along it, colours are moved, multiplied and
    flipped; around it, they are turned and multiplied. Written so, grey images need no case of their own. Of RGBA
    images, which theirs does not take, alpha stays as it is.
    """
    image, alpha = opaque(image)
    luma = image.mean(-1, keepdims=True)
    chroma = draws.contrast * draws.saturation
    kept, turned = chroma * jnp.cos(draws.hue), chroma * jnp.sin(draws.hue) / 3**0.5
    across = jnp.roll(image, 1, -1) - jnp.roll(image, -1, -1)  # sqrt(3) times the cross product with the grey axis
    grey = draws.contrast * (1 - 2 * draws.lumaflip) * (luma + draws.brightness)
    return jnp.concatenate([kept * image + turned * across + (grey - kept * luma), alpha], -1)


def equalize(images: jax.Array, gains: jax.Array) -> jax.Array:
    """Multiplies the octaves of images (b, h, w, c) by gains (b, 4), normalised so that the expected power stays 1."""
    power = jnp.prod(1 + POWER * (jnp.square(gains) - 1), -1, keepdims=True)
    normal = gains * lax.rsqrt(power)
    rows, columns = (jnp.einsum("bk,koi->boi", normal, wavelet.bands(n)) for n in images.shape[1:3])
    planes = images.transpose(0, 3, 1, 2)
    planes = geometry.product(rows[:, None], geometry.product(planes, columns[:, None].mT))
    changed = jnp.any(gains != 1, 1)
    return jnp.where(changed[:, None, None, None], planes.transpose(0, 2, 3, 1), images)


def erase(image: jax.Array, side: jax.Array, centre: jax.Array) -> jax.Array:
    """Image (h, w, c) with zeros in a rectangle of `side` times its size around `centre` (x, y), a part of its size."""
    h, w, _ = image.shape
    columns, rows = (jnp.abs((jnp.arange(n) + 0.5) / n - c) < side / 2 for n, c in ((w, centre[0]), (h, centre[1])))
    return jnp.where((rows[:, None] & columns)[..., None], 0.0, image)


def transform(images: jax.Array, draws: Draws, strengths: Strengths) -> jax.Array:
    """Images (b, h, w, c) as `draws` (b, ...) have it; what `strengths` leave out is not computed.

    All geometric transformations are one `warp`, so that an image is resampled once.
    """
    _, h, w, c = images.shape

    def any_of(names: Iterable[str]) -> bool:
        return any(getattr(strengths, name) for name in names)

    images = images.astype(jnp.float32)
    if any_of((*BLIT, *GEOM)):
        images = geometry.warp(images, *jax.vmap(functools.partial(placement, shape=(h, w)))(draws))
    if any_of(COLOR):
        check_colors(c)
        images = jax.vmap(recolor)(images, draws)
    if strengths.imgfilter:
        images = equalize(images, draws.bands)
    if strengths.noise:
        normal = jax.vmap(lambda key: jax.random.normal(key, (h, w, c), jnp.float32))(draws.noise_key)
        images = images + draws.noise[:, None, None, None] * normal
    if strengths.cutout:
        images = jax.vmap(erase)(images, draws.cutout, draws.centre)
    return images


def ada(strengths: Strengths) -> Apply:
    """The pipeline of ADA, each transformation with its strength times p.

    Raises InputError when an image has not 1, 3 or 4 channels and `strengths` has any of colour. The authors advise
    p below 0.8: closer to 1, generated images learn some augmentations themselves (arXiv:2006.06676, section 2).
    """

    def apply(keys: jax.Array, images: jax.Array, p: jax.Array | float) -> jax.Array:
        return transform(images, jax.vmap(lambda key: draw(key, p, strengths))(keys), strengths)

    return apply


def check_colors(channels: int) -> None:
    if channels not in (1, 3, 4):
        raise InputError(
            f"ADA changes colours of images of 1, 3 or 4 channels, not {channels}; nearest without colours: 'bg'"
        )


# --- by name

# The authors' names; "ada" is what they recommend, "r3gan" from the training configuration of arXiv:2501.05441.
ADA = {
    "blit": Strengths(**BLIT),
    "geom": Strengths(**GEOM),
    "bg": Strengths(**BLIT, **GEOM),
    "bgc": Strengths(**BLIT, **GEOM, **COLOR),
    "bgcf": Strengths(**BLIT, **GEOM, **COLOR, imgfilter=1),
    "bgcfn": Strengths(**BLIT, **GEOM, **COLOR, imgfilter=1, noise=1),
    "bgcfnc": Strengths(**BLIT, **GEOM, **COLOR, imgfilter=1, noise=1, cutout=1),
    "ada": Strengths(**BLIT, **GEOM, **COLOR),
    "r3gan": Strengths(**BLIT, **GEOM, **dict.fromkeys(COLOR, 0.5), cutout=1),
}
DIFFAUGMENT = ("color", "translation", "cutout")
POLICIES = (*ADA, "diffaugment", *DIFFAUGMENT)


def policy(name: str, channels: int = 3) -> Apply:
    """The augmentation of a name in `ADA`, "diffaugment", or some of `DIFFAUGMENT`, separated by commas.

    Raises InputError for any other name, and for one that changes colours of images that have none.
    """
    if name in ADA:
        if any(getattr(ADA[name], color) for color in COLOR):
            check_colors(channels)
        return ada(ADA[name])
    parts = DIFFAUGMENT if name == "diffaugment" else tuple(name.split(","))
    for part in parts:
        if part not in DIFFAUGMENT:
            raise unknown("augmentation", part, POLICIES)
    color = "color" in parts
    translation = 1 / 8 if "translation" in parts else 0.0
    cutout = 1 / 2 if "cutout" in parts else 0.0
    return diffaugment(color, color, color, translation, cutout)
