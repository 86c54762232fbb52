"""A generator with its weights: what a run leaves behind, and what a running game samples from.

    gan = jaxgan.load("runs/digits")
    images = gan.sample(jax.random.key(0), 64)          # (64, h, w, c) in [-1, 1]

Loading runs no code from outside jaxgan, unless the caller allows it.
"""

import dataclasses
import functools
import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxgan import adversarial, checkpoint, files, flags, lookup, memory, models, numerics
from jaxgan.errors import InputError

BATCH = 128  # images of one compiled call
MOST = 2**20  # of any whole number among the arguments of a network, so that a damaged one is known by it
DTYPES = ("float32", "bfloat16", "float16", "float64")


@numerics.fixed()
@functools.partial(jax.jit, static_argnums=0)
def _generate(generator: nn.Module, params, variables, z, label, psi=None):
    style = {} if psi is None else {"psi": psi}
    with jax.default_matmul_precision("highest"):  # the same images from a script, a notebook and the run itself
        return generator.apply({"params": params, **variables}, z, label, train=False, **style)


@numerics.fixed()
@functools.partial(jax.jit, static_argnums=0)
def _standing(generator: nn.Module, params, variables, key, truncation=None):
    classes = generator.num_classes
    label_of = (lambda key, n: jax.random.randint(key, (n,), 0, classes, jnp.int32)) if classes else None
    with jax.default_matmul_precision("highest"):
        return adversarial.standing(generator, params, variables, key, label_of, truncation=truncation)


_latents = numerics.fixed()(jax.jit(adversarial.latents, static_argnums=2))
_truncated = numerics.fixed()(jax.jit(adversarial.truncated))


@dataclasses.dataclass(frozen=True)
class Trained:
    """A generator and the weights to sample with (the moving average, where the game kept one)."""

    generator: nn.Module
    params: Any
    variables: Any
    truncation: float | None = None

    @classmethod
    def of(cls, generator: nn.Module, params: Any, variables: Any, truncation: float | None = None) -> "Trained":
        """Measures the batch statistics of these weights, once (`adversarial.standing`)."""
        bound = None if "moving" in variables else truncation  # ψ moves styles, and no latent
        return cls(generator, params, _standing(generator, params, variables, numerics.key(0), bound), truncation)

    def truncated(self, truncation: float | None) -> "Trained":
        """The same generator with less variety and more typical images; None: with all of it.

        truncation: the largest |z| (arXiv:1809.11096, section 3.1); for one that keeps an average of its styles, ψ,
          the share of a style's distance from it that is kept (arXiv:1812.04948, appendix B): at 0 the mean image.
        """
        if truncation is not None and self.styled and not truncation >= 0:
            raise InputError(f"truncation {truncation}: expected ψ of 0 (the mean image) or more, 1 for all variety")
        if truncation is not None and not self.styled and not truncation > 0:
            raise InputError(f"truncation {truncation}: expected a number above 0, the largest |z|")
        if truncation == self.truncation:
            return self
        return self.of(self.generator, self.params, self.variables, truncation)

    @property
    def precise(self) -> "Trained":
        """The same weights, computed with in float32 at least: for differences that bfloat16 would round away."""
        dtype = getattr(self.generator, "dtype", None)
        if dtype is None or jnp.dtype(dtype).itemsize >= 4:
            return self
        return dataclasses.replace(self, generator=self.generator.clone(dtype=jnp.float32))

    @property
    def styled(self) -> bool:
        return "moving" in self.variables

    def latents(self, key: jax.Array, n: int) -> jax.Array:
        """(n, latent), row i a function of the key and i alone."""
        if n < 1:
            raise InputError(f"{n} images: expected at least 1")
        # Whole batches of them, as the program takes seconds to compile and hardly any time to run.
        return _latents(key, jnp.arange(-(-n // BATCH) * BATCH), self.generator.latent)[:n]

    def sample(self, key: jax.Array, n: int, label: Any = None, truncation: float | None = None) -> np.ndarray:
        """n images (n, h, w, c), float32 in [-1, 1]; image i depends on the key and i, not on n.

        label: classes (n,) or one for all, for a conditional generator; by default they take turns.
        truncation: see `truncated`, which is worth calling once where this is called often.
        """
        gan = self if truncation is None else self.truncated(truncation)
        return gan.images(gan.latents(key, n), label)

    def images(self, z: jax.Array, label: Any = None) -> np.ndarray:
        """Latents (n, latent) -> images (n, h, w, c)."""
        return np.concatenate(list(self.batches(z, label)))

    def batches(self, z: jax.Array, label: Any = None) -> Iterator[np.ndarray]:
        """`images` in parts of at most `BATCH`, for more of them than memory holds."""
        n, z = len(z), jnp.asarray(z, jnp.float32)  # NumPy's own are float64
        label = self.labels(label, n)
        psi = self.truncation if self.styled else None
        if self.truncation is not None and not self.styled:
            z = _truncated(z, self.truncation)
        for start in range(0, n, BATCH):
            # The last batch is filled up, so that every call has one compiled shape.
            rows = np.minimum(np.arange(start, start + min(BATCH, n)), n - 1)
            part = None if label is None else label[rows]
            images = _generate(self.generator, self.params, self.variables, z[rows], part, psi)
            yield np.asarray(images)[: n - start]

    def labels(self, label: Any, n: int) -> np.ndarray | None:
        """int32 (n,) for a conditional generator, else None. Raises InputError for classes that it does not have."""
        classes = self.generator.num_classes
        if not classes:
            if label is not None:
                raise InputError("a class was asked for, but this generator is unconditional")
            return None
        label = np.arange(n) % classes if label is None else np.asarray(label)
        if label.shape not in ((), (n,)) or not np.issubdtype(label.dtype, np.integer):
            raise InputError(f"labels {label.dtype} {label.shape}: expected one integer, or {n}")
        for wrong in label[(label < 0) | (label >= classes)].flat:
            raise InputError(f"class {wrong}: this generator has the classes 0 to {classes - 1}")
        return np.broadcast_to(label, n).astype(np.int32)


def network(module: nn.Module) -> dict[str, Any]:
    """A network as its path and arguments, for config.json; `build` is the inverse."""
    arguments = {name: getattr(module, name) for name in _fields(type(module))}
    if "dtype" in arguments:
        arguments["dtype"] = jnp.dtype(arguments["dtype"]).name
    for name, value in arguments.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise InputError(
                f"{type(module).__name__}({name}={value!r}): a run stores its networks' arguments as JSON; expected "
                "numbers, text, booleans, None, or tuples of them"
            ) from None
    return {"path": f"{_home(type(module))}:{type(module).__qualname__}", "arguments": arguments}


def build(stored: dict[str, Any], allow: bool = False) -> nn.Module:
    """The network that `network` described, a class of `jaxgan.models`; only if `allow`, one of any module.

    An argument that is younger than the run has the value that its class names in `unstored`, {name: value}: that of
    the network as it was before there was this argument. Importing a module runs its code, and whoever wrote a
    config.json chose the path in it.
    """
    try:
        (home, name), arguments = stored["path"].split(":"), dict(stored["arguments"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{str(stored)[:60]!r} is no network; expected a path pkg.module:name and arguments") from None
    package, _, module = home.rpartition(".")
    if not allow and not (package == models.__name__ and module in lookup.names(models)):
        raise InputError(f"{stored['path']!r} lies outside {models.__name__}; to run it: --allow_code, allow=True")
    try:
        found = vars(importlib.import_module(home)).get(name)
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot import {home!r} for the network: {error}") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == home):
        raise InputError(f"{home!r} defines no network {name!r}")
    try:
        for argument in arguments.keys() - _fields(found):
            raise TypeError(f"it has no argument {argument!r}")
        for name, value in arguments.items():
            for number in jax.tree.leaves(value):
                if isinstance(number, int) and abs(number) > MOST:
                    raise TypeError(f"its {name} is {number:,}; expected at most {MOST:,}")
        if "dtype" in arguments:
            if arguments["dtype"] not in DTYPES:
                raise TypeError(f"its dtype is {arguments['dtype']!r}; expected one of {', '.join(DTYPES)}")
            arguments["dtype"] = jnp.dtype(arguments["dtype"])
        arguments = {**getattr(found, "unstored", {}), **arguments}
        return found(**{key: _frozen(value) for key, value in arguments.items()})
    except TypeError as error:
        raise InputError(f"cannot build the network {stored['path']!r}: {error!s:.200}") from None


def as_stored(module: nn.Module, stored: Any) -> nn.Module:
    """`module`, which resumes a run, with the arguments of its class's `unstored` as that run has them.

    stored: what `network` described when the run began, or None for one that has yet to begin.
    """
    if not isinstance(stored, dict) or not isinstance(stored.get("arguments"), dict):
        return module
    unstored: dict[str, Any] = getattr(type(module), "unstored", {})
    values = {name: stored["arguments"].get(name, value) for name, value in unstored.items()}
    for name, value in values.items():
        if type(value) is not type(unstored[name]):
            kind = type(unstored[name]).__name__
            raise InputError(f"the config.json of this run has {name}={value!r:.60} of a network; expected {kind}")
    return module.clone(**values)


def load(run: epath.PathLike, *, step: int | None = None, allow: bool = False) -> Trained:
    """The generator of a run directory, from its newest checkpoint or that of `step`.

    allow: whether a network outside jaxgan may be imported, which runs its code.
    Raises InputError for what is no run, has no generator, or holds weights that are not those of its network.
    """
    run = files.reach(run)
    networks = flags.read(run).get("networks")
    if not isinstance(networks, dict) or "generator" not in networks:
        raise InputError(f"the config.json of {str(run)!r} names no generator")
    generator = build(networks["generator"], allow)
    if np.shape(shape := getattr(generator, "shape", ())) != (3,):
        raise InputError(f"the generator of {str(run)!r} does not fit images: its shape is {shape}, not (h, w, c)")
    players = checkpoint.read(run / "checkpoints", step).get("players", {})
    player = players.get("gen") if isinstance(players, dict) else None
    if not isinstance(player, dict) or not isinstance(player.get("params"), dict):
        raise InputError(f"the checkpoint of {str(run)!r} has no player 'gen' with params, but {list(players)!s:.100}")
    player = jax.device_put(player)
    params, variables = player.get("ema") or player["params"], player.get("variables", {})
    try:
        z = jax.ShapeDtypeStruct((1, generator.latent), jnp.float32)
        label = jax.ShapeDtypeStruct((1,), jnp.int32) if generator.num_classes else None
        image = jax.eval_shape(functools.partial(_generate, generator), params, variables, z, label)
        assert image.shape == (1, *generator.shape), f"its images are {image.shape[1:]}, not {generator.shape}"
    except Exception as error:  # whatever a network says to weights or arguments that are not its own
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"the checkpoint of {str(run)!r} does not fit the network of its config: {reason}") from error
    memory.check(BATCH * 4 * math.prod(generator.shape), f"{BATCH} images {generator.shape} of {str(run)!r}")
    return Trained.of(generator, params, variables)


def _fields(cls: type[nn.Module]) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.init and f.name not in ("parent", "name")]


def _home(cls: type) -> str:
    """The name under which another process imports the module of `cls`: a script is `__main__` only while it runs."""
    main = sys.modules["__main__"]
    if cls.__module__ != "__main__" or not hasattr(main, "__file__"):
        return cls.__module__
    return main.__spec__.name if main.__spec__ else Path(str(main.__file__)).stem


def _frozen(value: Any) -> Any:
    """Lists, which JSON has made of tuples, as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
