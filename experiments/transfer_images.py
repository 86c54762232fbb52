"""The images of `experiments.transfer`: those to train on, those held out, and the distance from them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import image
from jaxgan import data, loop, sources
from jaxgan.errors import InputError
from jaxgan.metrics import classify, frechet, judge


class Images(NamedTuple):
    """The target's: those to choose from for training, those held out, and all that the judge is trained on."""

    train: data.Source
    test: data.Source
    everything: data.Source

    def in_order(self, names: Sequence[str]) -> "Images":
        """With the target's classes in this order, if these are its classes."""
        if sorted(names) != sorted(sources.names_of(self.train)):
            return self
        return self._replace(train=self.train.in_order(names), test=self.test.in_order(names))


TENTH = ("9",)  # the target of the demonstration, which goes from nine digits to the tenth


def target_classes(config: Any) -> tuple[str, ...]:
    """--classes; where it is not given, the tenth digit of the demonstration, and all of any other data."""
    return config.classes if config.classes is not None else TENTH if config.dataset == "digits" else ()


def load(config: Any, shape: tuple[int, int, int], names: Sequence[str] = ()) -> Images:
    """The target's images in the source's height and width.

    names: of the classes in the order of a run that began before; otherwise they are in that of the data.
    """
    h, w, c = shape
    options: tuple[str, ...] = ("dataset", "split", "data_dir", "manual_dir", "crop", "skip_bad_images")
    given = {name: getattr(config, name) for name in options}
    wanted = image.Config(**given, size=f"{h}x{w}", channels=config.channels or c)
    whole = image.load(wanted, config.split)
    if config.test_split:
        test = sources.held_out(functools.partial(image.whole, wanted), whole, config.split, config.test_split)
    elif whole.num_examples < 4:
        raise InputError(
            f"{config.dataset} has {whole.num_examples} images; expected at least 4, half of them held out"
        )
    else:
        whole, test = (whole.subset(np.arange(first, whole.num_examples, 2)) for first in (0, 1))
    judge.check(whole)
    chosen_classes = target_classes(config)
    train, held = (part.only(chosen_classes) if chosen_classes else part for part in (whole, test))
    if names:
        train, held = (sources.as_begun(part, names, config.workdir) for part in (train, held))
    for part, name in ((train, "to train on"), (held, "held out")):
        if part.num_examples < 2:
            raise InputError(f"{config.dataset} has {part.num_examples} images {name}; expected at least 2")
    return Images(train, held, whole)


def chosen(source: data.Source, n: int, seed: int) -> data.Source:
    """n images at random, as equally many of each class as there are; a larger choice begins with the smaller one."""
    if not n:
        return source
    order = np.random.default_rng(seed).permutation(source.num_examples)
    labels = data.labels(source)[order]
    turn = np.zeros(len(order), np.int64)  # the how manieth of its class each one is
    for k in np.unique(labels):
        turn[labels == k] = np.arange(np.sum(labels == k))
    return source.subset(order[np.argsort(turn, kind="stable")[:n]])


def balanced(source: data.Source) -> data.Source:
    """As many images of each class as its rarest has, for `chosen` ones are too: of ten images of ten digits none can
    learn how frequent each digit is."""
    if source.num_classes < 2:
        return source
    counts = np.bincount(data.labels(source))
    present = counts[counts > 0]
    return chosen(source, len(present) * int(present.min()), 0)


def measurer(config: Any, images: Images, conditional: bool) -> tuple[Callable[[np.ndarray], float], dict[str, Any]]:
    """Samples (n, h, w, c) in [-1, 1] -> Fréchet distance from held-out images; and what it is measured by.

    They are equally many of each class, as a conditional run's samples are; but where runs without classes take all
    images as they come.

    Features are those of `metrics.judge`'s classifier of all training images, of all classes.
    """
    found = judge.train(images.everything, config.eval_samples, loop.cache_dir())

    def moments(seen: np.ndarray) -> frechet.Moments:
        return frechet.moments(classify.look(found.classifier, found.params, seen)[0])

    def of(source: data.Source) -> frechet.Moments:
        rows = np.random.default_rng(0).permutation(source.num_examples)[: judge.REFERENCE]
        return moments(classify.scaled(source.read(rows)["image"]))

    held, train = (balanced(x) if conditional or all(config.num_images) else x for x in (images.test, images.train))
    reference = of(held)
    what = "labels" if found.labels is not None else "rotations"
    about = {
        "features": f"classifier of {what} of {images.everything.name}",
        "accuracy": found.accuracy,
        "held_out": held.num_examples,
        "real": frechet.distance(reference, of(train)),
    }
    return lambda samples: frechet.distance(reference, moments(samples)), about
