"""Minibatch standard deviation (arXiv:1710.10196, section 3): a discriminator that sees how much images differ."""

import jax
import jax.numpy as jnp


def minibatch_std(x: jax.Array, group: int = 4) -> jax.Array:
    """(b, h, w, c) -> (b, h, w, c + 1): one more feature, the same at all places and for all images of a group.

    It is the standard deviation over the `group` images, averaged over places and channels. Image i belongs to group
    i mod (b / group); a batch that `group` does not divide is one group. The batch is that of this device alone, as in
    the authors' code: groups over all devices would need the features of all of them.
    """
    b = x.shape[0]
    size = group if b % group == 0 else b
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(size, b // size, *x.shape[1:])
    y = jnp.sqrt(jnp.mean(jnp.square(y - y.mean(0)), 0) + 1e-8)  # (groups, h, w, c); the root has a slope at zero
    feature = jnp.tile(y.mean((1, 2, 3)), size)  # (b,)
    feature = jnp.broadcast_to(feature[:, None, None, None], (*x.shape[:-1], 1))
    return jnp.concatenate([x, feature.astype(x.dtype)], axis=-1)
