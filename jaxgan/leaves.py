"""A state as named arrays of the host, as checkpoints store it, and such arrays as a state."""

import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Manifest = dict[str, list]  # name of a leaf -> [dtype, shape, CRC-32 of its bytes]


def names(tree: Any) -> list[tuple[str, Any]]:
    """The leaves with their names, `players/gen/params/Dense_0/kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.dtype(np.float32)), jax.dtypes.prng_key)


def manifest_of(tree: Any) -> Manifest:
    """Without checksums: [dtype, shape] of each leaf."""
    leaves = ((name, leaf if hasattr(leaf, "dtype") else np.asarray(leaf)) for name, leaf in names(tree))
    return {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves}


def to_host(state: Any) -> tuple[dict[str, np.ndarray], Manifest]:
    """Copies every leaf: on a CPU `np.asarray` would look into the buffer that is about to be donated."""
    manifest = manifest_of(state)
    data = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for _, leaf in names(state)]
    # Orbax joins names by dots: two leaves of one name would be written over each other.
    assert len({name.replace("/", ".") for name in manifest}) == len(data), "two leaves have the same name"
    with ThreadPoolExecutor() as pool:  # copies and checksums both release the interpreter's lock
        arrays = list(pool.map(np.array, data))
        for entry, check in zip(manifest.values(), pool.map(crc, arrays), strict=True):
            entry.append(check)
    return dict(zip(manifest, arrays, strict=True)), manifest


def crc(value: np.ndarray | Manifest) -> int:
    if isinstance(value, np.ndarray):
        return zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def place(array: np.ndarray, like: Any) -> Any:
    """`array` as the leaf that `like` is: on its devices, or a NumPy array, or a Python number."""
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return array if isinstance(like, np.ndarray | np.generic) else type(like)(array.item())
    if _is_key(like):
        key = jax.random.wrap_key_data(jnp.asarray(array), impl=_impl(like))
        return jax.device_put(key, like.sharding)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def _impl(like: Any) -> Any:
    """The kind of random key that an array stands for, or only its shape, of which `key_impl` knows nothing."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), like)
    return found[0]


def nest(leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        assert last not in node, f"two leaves are named {name}"
        node[last] = leaf
    return tree
