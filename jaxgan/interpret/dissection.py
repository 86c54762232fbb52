"""What a unit does: the image without it. GAN dissection (arXiv:1811.10597, section 3.2), the effect measured on the
whole image and by the class that a classifier sees, as there is no segmentation of small images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgan import numerics
from jaxgan.interpret.probe import affine_layers, edited, observed
from jaxgan.interpret.spaces import Space


class Ablation(NamedTuple):
    units: np.ndarray  # (k,) channels of what the layer sees, the one with the most effect first
    change: np.ndarray  # (k,) root mean square difference of pixels in [-1, 1]
    images: np.ndarray  # (k, n, h, w, c) without the unit
    before: np.ndarray  # (n, h, w, c)
    maps: np.ndarray  # (k, n, height, width) the unit's activations; of a dense layer 1x1
    channels: int  # of the layer, of which at most `most` were tried


@numerics.fixed()
def layers(space: Space, dimension: int, label: int | None) -> dict[str, tuple[int, ...]]:
    """The layers with units to ablate, in order: those that see what is not affine in the point, by what they see
    (..., channels)."""
    render = space.at(label)
    _, later = affine_layers(render, dimension)
    shapes = jax.eval_shape(observed(render), jnp.zeros((2, dimension)))[1]
    return {name: shapes[name].inputs.shape[1:] for name in later}


@numerics.fixed()
def ablate(space: Space, points: np.ndarray, labels: np.ndarray | None, layer: str, most: int = 128) -> Ablation:
    """Each unit of `layer` set to zero at points (n, d); of more than `most` those with the largest activations."""
    at = space.at(labels)

    @jax.jit
    def look(points: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, seen = observed(at)(points)
        return images, seen[layer].inputs

    @jax.jit
    def without(points: jax.Array, mask: jax.Array) -> jax.Array:
        return edited(at, layer, lambda x: x * mask.astype(x.dtype))(points)

    at_points = jnp.asarray(points)
    before, activations = jax.device_get(look(at_points))
    channels = activations.shape[-1]
    spatial = activations.reshape(len(points), *(activations.shape[1:-1] or (1, 1)), channels).astype(np.float32)
    strength = np.abs(spatial).mean((0, 1, 2))
    units = np.argsort(-strength)[:most]
    images = np.stack(
        [np.asarray(without(at_points, np.ones(channels, np.float32) - np.eye(channels)[u])) for u in units]
    )
    change = np.sqrt(np.square(images - before).mean((1, 2, 3, 4)))
    order = np.argsort(-change)
    units = units[order]
    maps = np.moveaxis(spatial[..., units], -1, 0)
    return Ablation(units, change[order], images[order], before, maps, channels)
