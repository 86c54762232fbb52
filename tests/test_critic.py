"""A run's discriminator, loaded: its verdicts, and the features that they are made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgan import critic, models
from jaxgan.errors import InputError
from jaxgan.layers.conv import plain
from jaxgan.lookup import names
from tests.runs import compile_quickly
from tests.weights import drawn

__all__ = ["compile_quickly"]  # a fixture


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(
    "model", [n for n in names(models) if hasattr(__import__(f"jaxgan.models.{n}", fromlist=[n]), "Discriminator")]
)
def test_every_discriminator_has_features_of_the_image(model, classes):
    """What its last dense layer sees varies over images of one class."""
    module = __import__(f"jaxgan.models.{model}", fromlist=[model])
    fields = {f.name for f in dataclasses.fields(module.Discriminator)}
    shape = (32, 32, 1) if model in ("resnet", "biggan", "stylegan2", "r3gan") else (16, 16, 1)
    own = {"width": 8} if "width" in fields else {}
    disc = module.Discriminator(shape=shape, num_classes=classes, **own)
    x = jax.random.normal(jax.random.key(1), (4, *shape))
    label = jnp.ones(4, jnp.int32) if classes else None

    @jax.jit
    def judged(variables):
        return critic.seen_by_last(disc, variables, x, label, train=False)[1]

    with plain():
        features = judged(drawn(disc, x, label, train=False))
    assert features.shape[0] == 4 and np.prod(features.shape[1:]) > 3
    assert np.ptp(np.asarray(features, np.float32), axis=0).max() > 0  # of the images, not of the class


def test_features_of_dcgan_give_its_logits():
    from jaxgan.models.dcgan import Discriminator

    disc = Discriminator((16, 16, 1), width=8, batch_norm=False)
    x = np.asarray(jax.random.normal(jax.random.key(1), (130, 16, 16, 1)))
    params = drawn(disc, x[:1])["params"]
    judge = critic.Critic(disc, params, {})
    dense = params["Dense_0"]
    expected = judge.features(x) @ np.asarray(dense["kernel"])[:, 0] + np.asarray(dense["bias"])[0]
    np.testing.assert_allclose(judge.logits(x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(judge.logits(x), jax.jit(disc.apply)({"params": params}, x), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="judges images"):
        judge.logits(np.zeros((2, 8, 8, 1), np.float32))
    with pytest.raises(InputError, match="sees none"):
        judge.logits(x, np.zeros(130, np.int32))
