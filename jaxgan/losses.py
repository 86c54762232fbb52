"""Adversarial losses: pairs of functions of logits, for the discriminator and for the generator.

Each function maps logits (b,) to losses (b,), which their player minimises; the mean is taken by the caller. Raw logits
go in: no discriminator of jaxgan ends in a sigmoid. A loss of your own is a `Loss` anywhere, `--loss=pkg.module:name`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu, softplus


class Loss(NamedTuple):
    """disc(real, fake) and gen(fake, real) of logits (b,). `paired`: the generator's looks at real logits too."""

    disc: Callable[[jax.Array, jax.Array], jax.Array]
    gen: Callable[[jax.Array, Any], jax.Array]  # real is None unless `paired`
    paired: bool = False


def _cross_entropy(real, fake):
    """-log D(x) - log(1 - D(G(z))), D the sigmoid of the logit."""
    return softplus(-real) + softplus(fake)


# Goodfellow et al. 2014 (arXiv:1406.2661), eq. 1: the zero-sum game; the generator minimises log(1 - D(G(z))).
minimax = Loss(_cross_entropy, lambda fake, real: -softplus(fake))

# Ibid., section 3: the generator maximises log D(G(z)) instead, whose gradient does not vanish while it loses.
non_saturating = Loss(_cross_entropy, lambda fake, real: softplus(-fake))

# Mao et al. 2016 (arXiv:1611.04076), eq. 9: targets 0 for fakes, 1 for reals, 1 for the generator; halves as printed.
least_squares = Loss(
    lambda real, fake: 0.5 * jnp.square(real - 1) + 0.5 * jnp.square(fake),
    lambda fake, real: 0.5 * jnp.square(fake - 1),
)

# Arjovsky et al. 2017 (arXiv:1701.07875), eq. 2 and 3. Needs a Lipschitz critic: weight clipping or a gradient penalty.
wasserstein = Loss(lambda real, fake: fake - real, lambda fake, real: -fake)

# Lim and Ye 2017 (arXiv:1705.02894), Miyato et al. 2018 (arXiv:1802.05957), eq. 16 and 17.
hinge = Loss(lambda real, fake: relu(1 - real) + relu(1 + fake), lambda fake, real: -fake)

# Jolicoeur-Martineau 2018 (arXiv:1807.00734), Huang et al. 2024 (arXiv:2501.05441), eq. 2: f(t) = -log(1 + e^-t) of the
# difference between a fake's logit and that of the real image it is paired with.
relativistic = Loss(lambda real, fake: softplus(fake - real), lambda fake, real: softplus(real - fake), paired=True)
