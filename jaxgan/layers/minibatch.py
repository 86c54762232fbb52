"""Minibatch standard deviation (arXiv:1710.10196, section 3): a discriminator that sees how much images differ."""

import jax
import jax.numpy as jnp

from jaxgan import collectives


def minibatch_std(x: jax.Array, group: int = 4) -> jax.Array:
    """(b, h, w, c) -> (b, h, w, c + 1): one more feature, the same at all places and for all images of a group.

    It is the standard deviation over the `group` images, averaged over places and channels. A group is `group`
    consecutive rows of the global batch, so the groups are the same for any number of devices: where a device holds
    only a part of a group, the moments are averaged over the devices that hold the rest. What `group` does not divide
    in either way is one group per device. (The authors' code groups the images of one GPU, with a stride.) With
    gradient accumulation a group lies within one micro-batch of each device.
    """
    b, devices = x.shape[0], collectives.size()
    size = group if b % group == 0 else b
    span = group // b  # devices that share a group
    if not (span > 1 and group % b == 0 and devices % span == 0):
        span = 1
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(b // size, size, *x.shape[1:])
    mean = collectives.neighbors_mean(y.mean(1, keepdims=True), span)
    variance = collectives.neighbors_mean(jnp.mean(jnp.square(y - mean), 1), span)
    y = jnp.sqrt(variance + 1e-8)  # (groups, h, w, c); the root has a slope at zero
    feature = jnp.repeat(y.mean((1, 2, 3)), size)  # (b,)
    feature = jnp.broadcast_to(feature[:, None, None, None], (*x.shape[:-1], 1))
    return jnp.concatenate([x, feature.astype(x.dtype)], axis=-1)
