"""EGBAD (arXiv:1802.06222) for tables: of ALAD's discriminators (see `alad`) only that of (x, E(x)) and (G(z), z).

The score is α |x - G(E(x))| + (1 - α) |f(x, E(x)) - f(G(E(x)), E(x))|, sums, f the discriminator's features (section 3,
feature matching). (`bigan` is the same for images.)
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgan.anomaly import alad
from jaxgan.anomaly.parts import Networks, Residuals, Weights

ALPHA = 0.9

game = alad.game


def networks(shape: Sequence[int], width: int, latent: int, dtype: Any) -> dict[str, Any]:
    return alad.networks(shape, width, latent, dtype, pairs=("xz",))


def residuals(networks: Networks, weights: Weights, images: jax.Array) -> Residuals:
    found = networks["enc"].apply(weights["enc"], images)
    again = networks["gen"].apply(weights["gen"], found)
    seen = [networks["xz"].apply(weights["xz"], x, found)[1] for x in (images, again)]
    row, feature = (jnp.sum(jnp.abs(x - y), -1) for x, y in ((images, again), seen))
    return Residuals({"egbad": ALPHA * row + (1 - ALPHA) * feature}, again)
