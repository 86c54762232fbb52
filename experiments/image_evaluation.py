"""What `experiments.image` measures of a state during training: --metrics on the averaged generator, and --diagnose."""

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from jaxgan import data, files, flags, hosts, loop, memory, numerics
from jaxgan.errors import InputError, unknown
from jaxgan.game import State
from jaxgan.metrics import coverage, embed, measure
from jaxgan.metrics import judge as quality
from jaxgan.metrics.diagnose import Diagnosis
from jaxgan.metrics.measure import METRICS
from jaxgan.metrics.reference import Reference, reference
from jaxgan.models import inception as published
from jaxgan.trained import Trained

# --metrics, and the figure that tells the best checkpoint by each; None: it cannot.
BEST: dict[str, str | None] = {"distance": "distance", "modes": "reverse_kl"}
BEST |= {name: metric.best for name, metric in METRICS.items()}


def with_features(config: Any) -> Any:
    """The config with what --features=auto stands for: what the run in --workdir began with, or what is there now.

    Inception, where the file of its weights is there. Else the data set's own classifier, in whose features a distance
    is no FID: `distance` takes its place among --metrics.
    """
    if config.features != "auto":
        return config
    with hosts.together():
        inception = hosts.agree(_takes_inception, config)
    if inception:
        return dataclasses.replace(config, features="inception")
    metrics = tuple("distance" if name == "fid" else name for name in config.metrics)
    return dataclasses.replace(config, features="classifier", metrics=metrics)


def _takes_inception(config: Any) -> bool:
    with contextlib.suppress(OSError, InputError):  # no run yet, or one that `flags.check_same` says more of
        if config.workdir:
            return flags.read(files.reach(config.workdir))["config"].get("features") == "inception"
    place = published.file(config.inception_weights or None, loop.cache_dir())
    if config.inception_weights or (place and place.exists()):
        return True
    if config.eval_every and "fid" in config.metrics:
        hosts.tell(
            f"Inception's weights are not at {place}: distance is measured in place of FID, and chooses the best "
            "checkpoint; the file is in the release fid_weights of the pytorch-fid project",
            sys.stderr,
        )
    return False


def figure_of(name: str) -> str | None:
    """The figure of a metric that tells the best checkpoint."""
    return BEST[name] if name in BEST else measure.metric(name).best


def check(config: Any, source: data.Source) -> None:
    """Raises InputError for what the first evaluation could not measure, an hour into the training.

    source: the images that are trained on.
    """
    if not (config.eval_every and config.metrics):
        return
    if config.features not in embed.FEATURES and ":" not in config.features:
        raise unknown("features", config.features, embed.FEATURES, "or your own: pkg.module:name")
    first = config.metrics[0]
    if figure_of(first) is None:
        raise InputError(f"--metrics={','.join(config.metrics)}: {first} does not tell a best checkpoint; not first")
    for name in config.metrics:
        least = measure.metric(name).least if measure.is_of_features(name) else 2
        if config.eval_samples < least:
            raise InputError(f"--eval_samples={config.eval_samples}: expected at least {least} for {name}")
    if "accuracy" in config.metrics and not (config.conditional and config.features == "classifier"):
        raise InputError("--metrics=accuracy needs --conditional and --features=classifier")
    if "is" in config.metrics and config.features == "pixels":
        raise InputError("--metrics=is needs classes, which --features=pixels do not tell")
    if "is" in config.metrics and config.features == "classifier" and source.num_classes < 2:
        raise InputError(f"--metrics=is needs labels of two classes or more; {config.dataset} has none")
    if "modes" in config.metrics:
        try:
            coverage.classes_of(source)
        except InputError as error:
            raise InputError(f"--metrics=modes: {error}") from None
    for name in config.metrics:
        least = measure.metric(name).least if measure.is_of_features(name) else 2
        if name == "distance" or (measure.is_of_features(name) and config.features == "classifier"):
            least = max(least, quality.LEAST)
        if source.num_examples < least:
            raise InputError(
                f"--metrics={name} needs at least {least} real images; --dataset={config.dataset} has "
                f"{source.num_examples}; --eval_every=0 trains without evaluations"
            )


def best(config: Any) -> str | None:
    """The figure whose best checkpoint is kept."""
    if not (config.eval_every and config.metrics):
        return None
    sign, colon, name = (figure_of(config.metrics[0]) or "").rpartition(":")
    name = measure.frechet_name(config.features) if name == "fid" else name
    return f"{sign}{colon}eval/{name}"


def evaluation(
    config: Any,
    sampler: Callable[[State], Trained],
    diagnosis: Callable[[], Diagnosis] | None,
    source: data.Source,
    devices: list[jax.Device],
) -> Callable[[State], dict[str, float]]:
    """state -> figures, of `config.eval_samples` samples; classifiers are trained, or found, when first needed.

    Whatever only has to be read from a file is read here, so that it is known to be there.
    """
    check(config, source)
    if config.eval_every:
        nbytes = 4 * config.eval_samples * math.prod(source.shape)
        memory.check(nbytes, f"--eval_samples={config.eval_samples} of {source.shape}", "expected fewer")
    cache = loop.cache_dir()
    own = [device for device in devices if device.process_index == jax.process_index()]

    classes = functools.cache(functools.partial(quality.classes, source, config.eval_samples))

    @functools.cache
    def judge() -> quality.Judge:
        judge = quality.train(source, config.eval_samples, cache)
        tell("labels" if judge.labels is not None else "rotations", judge.accuracy)
        return judge

    @functools.cache
    def modes() -> coverage.Coverage:
        modes = coverage.train(source, cache)
        tell("digits", modes.accuracy)
        return modes

    others = [name for name in config.metrics if measure.is_of_features(name)]
    network = functools.cache(functools.partial(named, config, source, judge, cache))
    if others and config.eval_every and config.features != "classifier":
        check_logits(config, network(), source)

    @functools.cache
    def real() -> Reference:
        return reference(network(), source, 0, cache, own)

    @functools.cache  # said once
    def warn(samples: int, dimensions: int) -> None:
        if few := measure.few_samples(samples, dimensions):
            hosts.tell(f"--eval_samples={samples}: {few}", sys.stderr)

    diagnosed = functools.cache(diagnosis) if diagnosis else None

    def evaluate(state: State) -> dict[str, float]:
        scores: dict[str, float] = {}
        if config.metrics:
            labels = classes() if config.conditional else None
            images = sampler(state).sample(numerics.key(config.seed + 1), config.eval_samples, labels)
            scores |= judge()(images) if "distance" in config.metrics else {}
            scores |= modes()(images) if "modes" in config.metrics else {}
            if others:
                seen = embed.embed(network(), [images], own)
                if {"fid", "frechet"} & set(others):
                    warn(*seen.features.shape)
                scores |= measure.measure(others, real(), seen, network(), labels)
        return scores | (diagnosed()(state) if diagnosed else {})

    return evaluate


def named(config: Any, source: data.Source, judge: Callable[[], quality.Judge], cache: epath.PathLike) -> embed.Network:
    """The network of --features."""
    return embed.named(config.features, source, judge, cache, config.inception_weights)


def check_logits(config: Any, network: embed.Network, source: data.Source) -> None:
    """Raises InputError for --metrics=is of features, a fork's own, without classes beside them."""
    if "is" in config.metrics:
        images = jax.ShapeDtypeStruct((1, *source.shape), jnp.float32)
        if jax.eval_shape(network.function, network.params, images)[1] is None:
            raise InputError(f"--metrics=is needs classes, which --features={config.features} do not tell")


def tell(what: str, accuracy: float) -> None:
    hosts.tell(f"a classifier tells the {what} of held-out real images with {accuracy:.1%} accuracy", sys.stderr)
