"""Where one moves about in to change an image: the latent, or what a generator makes of it first.

StyleGAN's style w, the same for all layers, and InfoGAN's codes are less entangled than z, and their first layers are
affine in them; for other generators the space is z itself.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgan.trained import BATCH, Trained

Render = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Space:
    """Points (n, d) of a generator, and the images that they stand for.

    enter: (variables, z (n, latent), label) -> points. render: (variables, points, label) -> images (n, h, w, c), in
    [-1, 1]; to be differentiated, watched and edited.
    """

    name: str
    gan: Trained
    enter: Callable[[Any, jax.Array, Any], jax.Array]
    render: Callable[[Any, jax.Array, Any], jax.Array]

    @classmethod
    def of(cls, gan: Trained) -> "Space":
        """Of a generator in bfloat16 that of its weights in float32: what is affine shows in no fewer digits."""
        gan = gan.precise
        apply: Callable[..., Any] = gan.generator.apply
        if hasattr(gan.generator, "synthesise"):

            def style(variables: Any, z: jax.Array, label: Any) -> Any:
                return apply(variables, z, label, method="map")[:, 0]

            def synthesise(variables: Any, w: jax.Array, label: Any) -> jax.Array:
                ws = jnp.broadcast_to(w[:, None], (len(w), layers, w.shape[-1]))
                images: Any = apply(variables, ws, method="synthesise")
                return jnp.clip(images, -1, 1)

            z = jax.ShapeDtypeStruct((1, gan.generator.latent), jnp.float32)
            label = jax.ShapeDtypeStruct((1,), jnp.int32) if gan.generator.num_classes else None
            variables = {"params": gan.params, **gan.variables}
            layers = jax.eval_shape(lambda *a: apply(*a, method="map"), variables, z, label).shape[1]
            return cls("w", gan, style, synthesise)
        if getattr(gan.generator, "categorical", 0) or getattr(gan.generator, "continuous", 0):
            return cls(
                "codes",
                gan,
                lambda variables, z, label: gan.generator.codes(z),
                lambda variables, codes, label: apply(variables, codes, label, method="from_codes"),
            )
        return cls("z", gan, lambda variables, z, label: z, apply)

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.gan.params, **self.gan.variables}

    def points(self, key: jax.Array, n: int, label: Any = None) -> jax.Array:
        """(n, d) of latents as `Trained.sample` draws them."""
        return self.enter(self.variables, self.gan.latents(key, n), label)

    def at(self, label: Any = None) -> Render:
        """points (n, d) -> images, at classes (n,) or one for all; to be traced, with the weights as constants."""

        def render(points: jax.Array) -> jax.Array:
            of_all = None if label is None else jnp.broadcast_to(jnp.asarray(label, jnp.int32), len(points))
            return self.render(self.variables, points, of_all)

        return render

    @functools.cached_property
    def _images(self) -> Callable[..., jax.Array]:
        return jax.jit(self.render)

    def images(self, points: Any, label: Any = None) -> np.ndarray:
        """(n, h, w, c) of any number of points."""
        return np.concatenate(list(self.batches(points, label)))

    def batches(self, points: Any, label: Any = None) -> Iterator[np.ndarray]:
        """`images` in parts of at most `BATCH`, all made in one shape."""
        points, n = np.asarray(points), len(points)
        size = min(BATCH, n)
        for start in range(0, n, size):
            rows = np.minimum(np.arange(start, start + size), n - 1)
            part = self._images(self.variables, points[rows], None if label is None else np.asarray(label)[rows])
            yield np.asarray(part)[: n - start]
