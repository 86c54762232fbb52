"""The types and random numbers of JAX, whatever the environment asks for: a seed gives the same images everywhere.

`JAX_ENABLE_X64=1` makes float64 of every number without a type and draws other random numbers for it; another default
generator (`JAX_DEFAULT_PRNG_IMPL=rbg`) makes other keys of the same seed. Neither is to change a run.

    key = numerics.key(0)
    with numerics.fixed():
        ...                     # traced with 32 bits, as it is by default
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from jaxgan.errors import InputError

PRNG = "threefry2x32"
SETTINGS = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": PRNG,
    "jax_threefry_partitionable": True,
    "jax_numpy_dtype_promotion": "standard",
}


def key(seed: Any) -> jax.Array:
    """The key of a seed, of one generator whatever the default is."""
    return jax.random.key(seed, impl=PRNG)


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """What JAX traces in here, in this thread, has the types and random numbers of `SETTINGS`. A decorator, too."""
    with (
        jax.enable_x64(False),
        jax.default_prng_impl(PRNG),
        jax.threefry_partitionable(True),
        jax.numpy_dtype_promotion("standard"),
    ):
        yield


def fix() -> None:
    """The same for the whole process: what scripts do."""
    for name, value in SETTINGS.items():
        jax.config.update(name, value)


def start() -> list[jax.Device]:
    """The devices. Raises InputError, saying why, where JAX cannot start: a platform that is not here, or is none."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that some backend was found
        wanted = getattr(jax.config, "jax_platforms", None) or ""
        given = f"JAX_PLATFORMS={wanted}" if wanted else "JAX"
        reason = " ".join(str(error).split()) or "none of these platforms has a device here"
        raise InputError(
            f"{given} cannot start: {reason.partition(' (set JAX_PLATFORMS')[0]:.300}; expected a platform of this "
            "machine, for example JAX_PLATFORMS=cpu, or JAX_PLATFORMS= for the best that is there"
        ) from None
