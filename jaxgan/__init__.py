"""jaxgan: generative adversarial networks in pure JAX, built for speed."""

__version__ = "0.2.0"


def load(run, **options):
    """The trained generator of a run directory: `jaxgan.load("runs/digits").sample(jax.random.key(0), 64)`."""
    from jaxgan import trained  # imported here: `import jaxgan` alone loads nothing

    return trained.load(run, **options)
