"""Inception-v3 as the Fréchet Inception distance knows it: the graph that TensorFlow published on 2015-12-05.

Architecture: arXiv:1512.00567; its use: arXiv:1606.03498 (Inception score, from the logits) and arXiv:1706.08500 (FID,
from the features). Published figures were measured with its weights and with what sets it apart from the paper: means
of 3x3 pixels leave out the padding, the last block takes their maximum instead, there are 1,008 logits, and the score
takes them without their bias. The weights are those of the pytorch-fid project, converted from that graph.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxgan import numerics, tensorfile
from jaxgan.errors import InputError
from jaxgan.layers.conv import conv, same_padding
from jaxgan.layers.resize import Resizing, resize, tensorflow

SIZE, FEATURES, CLASSES = 299, 2048, 1008
FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # its name has the first 8 digits
EPSILON = 1e-3  # of its batch norms


# --- the network as a table


@dataclasses.dataclass(frozen=True)
class Unit:
    """A convolution with the batch norm behind it, and ReLU. Padded to keep the size, or not at all."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


@dataclasses.dataclass(frozen=True)
class Block:
    """Branches from one image, one after another in the channels."""

    name: str
    branches: tuple["Steps", ...]


Steps = tuple["Unit | Block | tuple[Unit, ...] | Callable[[jax.Array], jax.Array]", ...]  # a tuple of units is a fork


def mean_pool(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False).astype(x.dtype)


def max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def halve(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2))


def _unit(name: str, features: int, height: int = 1, width: int | None = None) -> Unit:
    return Unit(name, features, (height, width or height))


def _down(name: str, features: int) -> Unit:
    return Unit(name, features, (3, 3), 2, "VALID")


def _block_a(name: str, pooled: int) -> Block:
    """35x35 -> 64 + 64 + 96 + pooled channels."""
    return Block(name, (
        (_unit("branch1x1", 64),),
        (_unit("branch5x5_1", 48), _unit("branch5x5_2", 64, 5)),
        (_unit("branch3x3dbl_1", 64), _unit("branch3x3dbl_2", 96, 3), _unit("branch3x3dbl_3", 96, 3)),
        (mean_pool, _unit("branch_pool", pooled)),
    ))  # fmt: skip


def _block_c(name: str, inner: int) -> Block:
    """17x17 -> 4 x 192 channels."""
    return Block(name, (
        (_unit("branch1x1", 192),),
        (_unit("branch7x7_1", inner), _unit("branch7x7_2", inner, 1, 7), _unit("branch7x7_3", 192, 7, 1)),
        (_unit("branch7x7dbl_1", inner), _unit("branch7x7dbl_2", inner, 7, 1), _unit("branch7x7dbl_3", inner, 1, 7),
         _unit("branch7x7dbl_4", inner, 7, 1), _unit("branch7x7dbl_5", 192, 1, 7)),
        (mean_pool, _unit("branch_pool", 192)),
    ))  # fmt: skip


def _block_e(name: str, pool: Callable[[jax.Array], jax.Array]) -> Block:
    """8x8 -> 320 + 2 x 384 + 2 x 384 + 192 channels."""
    return Block(name, (
        (_unit("branch1x1", 320),),
        (_unit("branch3x3_1", 384), (_unit("branch3x3_2a", 384, 1, 3), _unit("branch3x3_2b", 384, 3, 1))),
        (_unit("branch3x3dbl_1", 448), _unit("branch3x3dbl_2", 384, 3),
         (_unit("branch3x3dbl_3a", 384, 1, 3), _unit("branch3x3dbl_3b", 384, 3, 1))),
        (pool, _unit("branch_pool", 192)),
    ))  # fmt: skip


NETWORK: Steps = (
    _down("Conv2d_1a_3x3", 32),  # (b, 149, 149, 32)
    Unit("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
    _unit("Conv2d_2b_3x3", 64, 3),
    halve,  # (b, 73, 73, 64)
    _unit("Conv2d_3b_1x1", 80),
    Unit("Conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
    halve,  # (b, 35, 35, 192)
    _block_a("Mixed_5b", 32),
    _block_a("Mixed_5c", 64),
    _block_a("Mixed_5d", 64),
    Block("Mixed_6a", (
        (_down("branch3x3", 384),),
        (_unit("branch3x3dbl_1", 64), _unit("branch3x3dbl_2", 96, 3), _down("branch3x3dbl_3", 96)),
        (halve,),
    )),  # (b, 17, 17, 768)
    _block_c("Mixed_6b", 128),
    _block_c("Mixed_6c", 160),
    _block_c("Mixed_6d", 160),
    _block_c("Mixed_6e", 192),
    Block("Mixed_7a", (
        (_unit("branch3x3_1", 192), _down("branch3x3_2", 320)),
        (_unit("branch7x7x3_1", 192), _unit("branch7x7x3_2", 192, 1, 7), _unit("branch7x7x3_3", 192, 7, 1),
         _down("branch7x7x3_4", 192)),
        (halve,),
    )),  # (b, 8, 8, 1280)
    _block_e("Mixed_7b", mean_pool),
    _block_e("Mixed_7c", max_pool),  # (b, 8, 8, 2048)
)  # fmt: skip


# --- what it sees


def quantise(images: jax.Array) -> jax.Array:
    """Images in [-1, 1] -> uint8, as if they had been written to files: what published figures are measured on."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def prepare(images: jax.Array, resizing: Resizing = tensorflow) -> jax.Array:
    """Images (b, h, w, c), uint8 or in [-1, 1] -> float32 (b, 299, 299, 3): bytes resized, less 128, over 128.

    c is 1, 3 or 4. RGBA images (4) are composited on white.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape[1:3]:
        raise InputError(f"Inception looks at images (b, h, w, 1, 3 or 4), given {tuple(images.shape)}")
    x = images.astype(jnp.float32)
    x = x if images.dtype == jnp.uint8 else (x + 1) * 127.5
    if x.shape[-1] == 4:
        x = 255 - x[..., 3:] / 255 * (255 - x[..., :3])
    x = resize(x, (SIZE, SIZE), resizing)
    x = (jnp.clip(x, 0, 255) - 128) / 128  # cubic weights overshoot; clean-fid clips too
    return jnp.repeat(x, 3 // x.shape[-1], axis=-1)


# --- the network


class Convolution(nn.Module):
    unit: Unit
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        unit = self.unit
        kernel = self.param("kernel", nn.initializers.he_normal(), (*unit.kernel, x.shape[-1], unit.features))
        bias = self.param("bias", nn.initializers.zeros, (unit.features,))
        x = _convolve(unit, x, kernel.astype(self.dtype))
        return nn.relu(x + bias.astype(self.dtype))


def _convolve(unit: Unit, x: jax.Array, kernel: jax.Array) -> jax.Array:
    # Two busy CPU cores take 16 to 18 s for 100 images, and 19 to 21 with XLA:CPU's own convolutions throughout.
    size, stride = unit.kernel[0], unit.stride
    if unit.kernel == (1, 1):
        return jnp.tensordot(x, kernel[0, 0], 1)
    if unit.kernel == (size, size) and stride == 1:
        pads = same_padding(x.shape[1:3], size, 1) if unit.padding == "SAME" else ((0, 0), (0, 0))
        return conv(x, kernel, 1, pads)
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), unit.padding, dimension_numbers=dimensions)


class Branches(nn.Module):
    branches: tuple[Steps, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([_walk(steps, x, self.dtype) for steps in self.branches], -1)


def _walk(steps: Steps, x: jax.Array, dtype: Any) -> jax.Array:
    for step in steps:
        if isinstance(step, Unit):
            x = Convolution(step, dtype, name=step.name)(x)
        elif isinstance(step, Block):
            x = Branches(step.branches, dtype, name=step.name)(x)
        elif isinstance(step, tuple):
            x = jnp.concatenate([_walk((unit,), x, dtype) for unit in step], -1)
        else:
            x = step(x)
    return x


class Inception(nn.Module):
    """images (b, h, w, 1, 3 or 4), uint8 or in [-1, 1] -> float32 features (b, 2048), logits (b, 1008) without bias.

    `dtype` is that of the convolutions. Batch norms are part of the kernels (`convert`): there is no training mode.
    """

    resizing: Resizing = tensorflow
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = prepare(images, self.resizing).astype(self.dtype)
        x = _walk(NETWORK, x, self.dtype)
        features = jnp.mean(x.astype(jnp.float32), (1, 2))
        return features, nn.Dense(CLASSES, use_bias=False, name="fc")(features)


# --- its weights


def file(path: epath.PathLike | None = None, cache: epath.PathLike | None = None) -> epath.Path | None:
    """The file of the weights, which need not exist: `path`, or else that in the folder `cache`/inception."""
    if path:
        return epath.Path(path).expanduser()
    return epath.Path(cache) / "inception" / FILE if cache else None


def weights(
    path: epath.PathLike | None = None, cache: epath.PathLike | None = None, sha256: str | None = SHA256
) -> Any:
    """{"params": ...} of the file `path`, or else of the folder `cache`/inception.

    sha256: of the file, 64 hex digits; None takes any file with the same entries. InputError: what is wrong with it.
    """
    place = file(path, cache)
    if place is None or not place.exists():
        hint = f"put it into {place.parent}" if place and not path else "name its path (--inception_weights)"
        raise InputError(
            f"no file {str(place or FILE)!r}: the Inception network's weights are {FILE}, which the pytorch-fid "
            f"project distributes on GitHub (release fid_weights, 95,628,359 bytes); " + hint
        )
    return convert(tensorfile.read(place, sha256), str(place))


def convert(tensors: dict[str, np.ndarray], name: str) -> Any:
    """The entries of the distributed file -> {"params": ...}, each batch norm folded into the kernel before it.

    InputError: entries that are missing, unknown, of another shape or not finite, by their names.
    """
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.uint8)
    params = jax.eval_shape(Inception().init, numerics.key(0), image)["params"]
    kernels = {
        tuple(key.key for key in path[:-1]): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "kernel"
    }
    expected: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, FEATURES), "fc.bias": (CLASSES,)}
    norm = ("weight", "bias", "running_mean", "running_var")
    for path, shape in kernels.items():
        if path != ("fc",):
            unit, features = ".".join(path), shape[-1:]
            expected[f"{unit}.conv.weight"] = (shape[3], shape[2], shape[0], shape[1])
            expected |= {f"{unit}.bn.{key}": features for key in norm}
    tensors = {key: value for key, value in tensors.items() if not key.endswith(".num_batches_tracked")}
    problems = [f"{key} is missing" for key in expected if key not in tensors]
    problems += [f"{key} is unknown" for key in tensors if key not in expected]
    for key, found in tensors.items():
        shape = expected.get(key, found.shape)
        if found.shape != shape:
            problems.append(f"{key} has shape {found.shape}, expected {shape}")
        elif not np.isfinite(found.astype(np.float32)).all():
            problems.append(f"{key} is not finite")
        elif key.endswith(".running_var") and (found < 0).any():
            problems.append(f"{key} is negative")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{name} does not hold the weights of this Inception network: {', '.join(problems[:3])}{more}")

    converted: dict[str, Any] = {"fc": {"kernel": tensors["fc.weight"].T.astype(np.float32)}}
    for path in kernels:
        if path == ("fc",):
            continue
        unit = ".".join(path)
        gain, shift, mean, var = (tensors[f"{unit}.bn.{key}"].astype(np.float64) for key in norm)
        scale = gain / np.sqrt(var + EPSILON)
        kernel = tensors[f"{unit}.conv.weight"].transpose(2, 3, 1, 0) * scale.astype(np.float32)
        bias = shift - mean * scale
        home = converted
        for part in path:
            home = home.setdefault(part, {})
        home |= {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    return {"params": converted}
