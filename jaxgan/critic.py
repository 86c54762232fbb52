"""A discriminator with its weights: what a run leaves behind beside its generator (`trained`).

critic = jaxgan.critic.load("runs/digits")
logits = critic.logits(images)              # (n,), of images (n, h, w, c) in [-1, 1]
features = critic.features(images)          # (n, d), what its last dense layer sees
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxgan import checkpoint, files, flags, numerics
from jaxgan.errors import InputError
from jaxgan.regularisers import logit
from jaxgan.trained import BATCH, build


def seen_by_last(module: nn.Module, variables: Any, images: jax.Array, *inputs: Any, **options: Any) -> tuple:
    """`module.apply(variables, images, ...)` of a discriminator, and what its last dense layer sees of the images.

    That is (b, ...), the features of its logits. Layers that see a class, one-hot, in place of images are passed over.
    """
    found: list[jax.Array] = []

    def look(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        dense = context.method_name == "__call__" and "Dense" in type(context.module).__name__
        if dense and args[0].shape[-1] != module.num_classes:
            found.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        output = module.apply(variables, images, *inputs, **options)
    if not found:
        raise InputError(f"{type(module).__name__} has no dense layer, and so no features before its logits")
    return output, found[-1]


@numerics.fixed()
@functools.partial(jax.jit, static_argnums=0)
def _judge(module: nn.Module, variables: Any, images: jax.Array, label: Any) -> tuple[jax.Array, jax.Array]:
    with jax.default_matmul_precision("highest"):
        output, features = seen_by_last(module, variables, images, label, train=False)
    return logit(output), features.reshape(images.shape[0], -1)


@dataclasses.dataclass(frozen=True)
class Critic:
    """A discriminator and its weights.

    auxiliary: it does not see the class of an image, it tells it (`adversarial.Pair.auxiliary`).
    """

    discriminator: Any
    params: Any
    variables: Any
    auxiliary: bool = False

    @property
    def sees_class(self) -> bool:
        return bool(self.discriminator.num_classes) and not self.auxiliary

    def logits(self, images: np.ndarray, label: Any = None) -> np.ndarray:
        """Verdicts (n,) on images (n, h, w, c) in [-1, 1]; `label` (n,) where it sees classes."""
        return self._judged(images, label)[0]

    def features(self, images: np.ndarray, label: Any = None) -> np.ndarray:
        """(n, d), what its last dense layer sees."""
        return self._judged(images, label)[1]

    def _judged(self, images: np.ndarray, label: Any) -> tuple[np.ndarray, np.ndarray]:
        n, shape = len(images), tuple(self.discriminator.shape)
        if not n or images.shape[1:] != shape:
            raise InputError(f"images {images.shape[1:]}, {n} of them: this discriminator judges images {shape}")
        if self.sees_class != (label is not None):
            raise InputError(f"this discriminator {'sees classes: expected labels' if label is None else 'sees none'}")
        label = None if label is None else np.broadcast_to(np.asarray(label, np.int32), n)
        parts = []
        for start in range(0, n, BATCH):
            rows = np.minimum(np.arange(start, start + min(BATCH, n)), n - 1)  # one compiled shape
            part = None if label is None else label[rows]
            found = _judge(self.discriminator, {"params": self.params, **self.variables}, images[rows], part)
            parts.append([x[: n - start] for x in jax.device_get(found)])
        first, second = (np.concatenate(x) for x in zip(*parts, strict=True))
        return first, second


def load(run: epath.PathLike, *, step: int | None = None, allow: bool = False) -> Critic:
    """The discriminator of a run directory; arguments and errors are those of `trained.load`."""
    run = files.reach(run)
    config = flags.read(run)
    networks = config.get("networks")
    if not isinstance(networks, dict) or "discriminator" not in networks:
        raise InputError(f"the config.json of {str(run)!r} names no discriminator")
    discriminator: Any = build(networks["discriminator"], allow)
    players = checkpoint.read(run / "checkpoints", step).get("players", {})
    player = players.get("disc") if isinstance(players, dict) else None
    if not isinstance(player, dict) or not isinstance(player.get("params"), dict):
        raise InputError(f"the checkpoint of {str(run)!r} has no player 'disc' with params, but {list(players)!s:.100}")
    params, variables = jax.device_put((player["params"], player.get("variables", {})))
    auxiliary = bool(getattr(discriminator, "auxiliary", False))
    critic = Critic(discriminator, params, variables, auxiliary)
    try:
        image = jax.ShapeDtypeStruct((1, *discriminator.shape), jnp.float32)
        label = jax.ShapeDtypeStruct((1,), jnp.int32) if critic.sees_class else None
        judge = functools.partial(_judge, discriminator)
        logits, _ = jax.eval_shape(judge, {"params": params, **variables}, image, label)
        assert logits.shape == (1,), f"its logits are {logits.shape}"
    except InputError:
        raise
    except Exception as error:  # whatever a network says to weights or arguments that are not its own
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"the checkpoint of {str(run)!r} does not fit the network of its config: {reason}") from error
    return critic
