"""A small convolutional classifier, whose last hidden layer serves as features for metrics of small image sets."""

import flax.linen as nn
import jax

from jaxgan.layers import Conv


class Classifier(nn.Module):
    """images (b, h, w, c) -> logits (b, num_classes), features (b, features)."""

    num_classes: int
    width: int = 32
    features: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        width = self.width
        if min(x.shape[1:3]) <= 8:
            x = nn.relu(Conv(width, 3)(x))
        while True:
            x = nn.relu(Conv(width, 3, 2)(x))
            if min(x.shape[1:3]) <= 7:
                break
            width = min(2 * width, 128)
        x = x.reshape(x.shape[0], -1)
        features = nn.relu(nn.Dense(self.features)(x))
        return nn.Dense(self.num_classes)(features), features
