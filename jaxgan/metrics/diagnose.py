"""How a GAN in training is doing, in numbers and in a word: healthy, collapsing, diverging, or the discriminator wins.

    train, held = held_out(source, split, load)
    diagnosis = Diagnosis.of(pair, train, held, game=game)
    scores = diagnosis(state)                  # {"diagnose_accuracy": 0.71, ...}, and a line on stderr
    diagnose(diagnosis.history)                # Verdict("healthy", ...)

The numbers are those of the players as they are in the game, in training mode and without averaged weights: what the
discriminator makes of images that it has learnt from, of others, and of generated ones; how large the gradients of the
moves are; and how much generated images differ from each other, beside as many real ones.
"""

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from jaxgan import numerics
from jaxgan.data import to_float
from jaxgan.errors import InputError
from jaxgan.sources import Source, like

SAMPLES = 512  # images of each kind, at most
BATCH = 64  # images of one pass: what a batch norm or a minibatch statistic sees at once
NEAR = 0.01  # the share of real images whose nearest other one counts as a duplicate
SPLITS = ("test", "validation", "val")  # where held-out images are looked for, in this order
EVERY = 10  # where there are none, every so manieth image is held out

# Where a verdict changes. The figures beside are of trainings of 2,000 steps on 8x8 digits, two on MNIST: 13 healthy
# (dense pairs and DCGAN, six losses, with R1 and without) and 12 ruined by their rates, or by 270 images to learn from.
# Left out are the first 200 steps, and of DCGAN 700, in which its discriminator wins and its samples are alike.
STEEP = 10.0  # logits a pixel distance: at most 0.4 in healthy runs, 5.4 where D wins, 17 to 14,000 where they diverge
GROWN = 100.0  # times a gradient's median so far: at most 7 in healthy runs, 37 where D wins
WINS = 0.95  # accuracy: below 0.95 in healthy runs (but for one evaluation, 0.91), 0.96 to 1 where D is too fast
MEMORY = 0.75  # at most 0.63 in healthy runs, 0.93 for 270 images
DUPLICATES = 0.1  # at most 0.055 in healthy runs, 0.48 to 1 where G is too fast or D does not learn
DIVERSITY = 0.4  # at least 0.57 in healthy runs, 0.09 where D does not learn
FADED = 0.7  # of the best diversity: at least 0.93 in healthy runs, 0.61 where D moves five times a step, and too fast


class Verdict(NamedTuple):
    word: str  # "healthy", "collapsing", "diverging" or "discriminator wins"
    reason: str


def diagnose(history: Sequence[Mapping[str, float]]) -> Verdict:
    """A verdict on the last of the evaluations `history`, which begins with the oldest: the scores of `Diagnosis`.

    A score that is missing says nothing. A run that diverges has other symptoms too, and one whose discriminator wins
    may end in collapse, so the first that applies, in this order, is the verdict. Winning once can be an early phase,
    which DCGAN passes through, so it takes the last two evaluations, where there are two.
    """
    now, before = history[-1], history[:-1]

    def share(name: str) -> float:
        return now.get(name, math.nan)  # which is on neither side of any threshold

    broken = [name for name, value in now.items() if not math.isfinite(value)]
    if broken:
        return Verdict("diverging", f"not finite: {', '.join(broken)}")
    if share("steepness") > STEEP:
        return Verdict(
            "diverging", f"D rises by {now['steepness']:.3g} per unit of distance between images, over {STEEP:g}"
        )
    for name in now:
        earlier = [row[name] for row in before if name in row]
        if name.startswith("gradient_") and earlier and now[name] > GROWN * float(np.median(earlier)) > 0:
            times = now[name] / float(np.median(earlier))
            return Verdict(
                "diverging", f"{name} {now[name]:.3g} is {times:.0f} times its median so far, over {GROWN:g}"
            )
    if all(row.get("accuracy", 0) >= WINS for row in history[-2:]):
        return Verdict(
            "discriminator wins",
            f"it tells {now['accuracy']:.1%} of unseen and generated images apart, at least {WINS:.0%}: "
            "a lower rate or more regularisation for it, or a higher rate for the generator",
        )
    if share("memory") >= MEMORY:
        return Verdict(
            "discriminator wins",
            f"by heart: it prefers an image it has learnt from to another real one with chance {now['memory']:.2f}, at "
            f"least {MEMORY}: more data, augmentation, or a penalty",
        )
    if share("duplicates") >= DUPLICATES:
        return Verdict(
            "collapsing",
            f"{now['duplicates']:.0%} of the samples have a twin, at least {DUPLICATES:.0%} ({NEAR:.0%} of real images "
            f"do), as many as if it drew from {now.get('support', math.nan):.0f} images",
        )
    if share("diversity") < DIVERSITY:
        return Verdict(
            "collapsing", f"samples lie {now['diversity']:.2f} times as far apart as real ones, under {DIVERSITY}"
        )
    # Not of the first one: what a generator makes that has barely begun is diverse noise.
    best = max((row.get("diversity", 0.0) for row in before[1:]), default=0.0)
    if share("diversity") < FADED * best:
        return Verdict(
            "collapsing", f"diversity fell from {best:.2f} to {now['diversity']:.2f}, under {FADED} of its best"
        )
    shown = [f"{name} {now[name]:.2f}" for name in ("accuracy", "memory", "diversity", "duplicates") if name in now]
    return Verdict("healthy", ", ".join(shown))


class Spread(NamedTuple):
    """How far apart the images of a set lie."""

    mean: float  # distance of two of them
    nearest: np.ndarray  # (n,) distance of each from the nearest other one
    distances: np.ndarray  # (n (n - 1) / 2,) of all pairs


def spread(x: np.ndarray) -> Spread:
    """Of points (n, ...), n >= 2: Euclidean distances of their flattened coordinates, in float64."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    x = x - x.mean(0)  # a common offset would cost digits below
    squares = np.einsum("nd,nd->n", x, x)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0))
    np.fill_diagonal(distances, np.inf)
    pairs = distances[np.triu_indices(len(x), 1)]
    return Spread(float(pairs.mean()), distances.min(0), pairs)


def reach(real: Spread) -> float:
    """The distance below which two images are twins: only `NEAR` of the real ones have another as close.

    At least a thousandth of the mean distance, for a set that holds an image twice.
    """
    return max(float(np.quantile(real.nearest, NEAR)), 1e-3 * real.mean)


class Birthday(NamedTuple):
    batch: float  # images among which a twin is as likely as not
    support: float  # of the uniform distribution with as many twins


def birthday(distances: np.ndarray, reach: float) -> Birthday:
    """The birthday test (arXiv:1706.08224, section 3): how large a support has a sampler whose images repeat so often?

    There, batches of growing size s are searched until one holds twins, and the support is about s². Here all pairs
    (n (n - 1) / 2,) of one sample are: two draws from the uniform distribution over N images are the same with chance
    q = 1 / N (in general N is 1 / Σ p²), and s is where (1 - q)^(s (s - 1) / 2) = 1/2, so N = s (s - 1) / (2 ln 2)
    nearly. A sample without twins counts as one with a single pair: `support` is then what it exceeds.
    """
    q = max(int(np.count_nonzero(distances < reach)), 1) / len(distances)
    tries = math.log(0.5) / math.log1p(-min(q, 0.5))  # s (s - 1) / 2, for two images at least
    return Birthday(0.5 + math.sqrt(0.25 + 2 * tries), 1 / q)


def judged(logits: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What logits of "real" (learnt from), "held" (real too, not learnt from; may be absent) and "fake" say of D.

    gap: mean D(real) - mean D(fake), and held_gap: mean D(real) - mean D(held).
    accuracy: the mean share of held reals and of fakes on their own side of the middle between mean D(real) and mean
      D(fake), whatever threshold the loss has in mind.
    memory: the chance that a real image has a larger logit than a held one, 1/2 where D knows nothing by heart.
    """
    real, fake = (np.asarray(logits[name], np.float64).ravel() for name in ("real", "fake"))
    held = np.asarray(logits.get("held", real), np.float64).ravel()
    middle = (real.mean() + fake.mean()) / 2
    accuracy = (np.mean(held > middle) + np.mean(fake < middle)) / 2
    scores = {"gap": float(real.mean() - fake.mean()), "accuracy": float(accuracy)}
    if "held" in logits:
        wins = np.mean(np.sign(real[:, None] - held))
        scores |= {"held_gap": float(real.mean() - held.mean()), "memory": float((1 + wins) / 2)}
    return scores


def held_out(source: Source, split: str, load: Callable[[str], Source]) -> tuple[Source, Source]:
    """(to train on, held out): `source` and another split of its data set; or nine tenths of `source` and the rest.

    load: the name of a split -> the same data set's images of it; raises InputError where there is none.
    """
    for name in SPLITS:
        if name not in split:  # also `train+test[:50%]`
            try:
                other = load(name)
                other = like(other, source) if other.num_classes else other
            except InputError:  # no such split, or one of other classes
                continue
            if other.shape == source.shape:
                return source, other
    if source.num_examples < 2 * EVERY:
        raise InputError(
            f"{source.name} has {source.num_examples} images and no split {', '.join(SPLITS)}; one in {EVERY} is "
            f"then held out for a diagnosis, of at least {2 * EVERY}"
        )
    rows = np.arange(source.num_examples)
    kept = rows % EVERY != 0
    return source.subset(rows[kept]), source.subset(rows[~kept])


def batches_of(pack: int, *sources: Source) -> tuple[int, int]:
    """How many batches a diagnosis takes of each source, and their size. Raises InputError where they are too small."""
    smallest = min(sources, key=lambda source: source.num_examples)
    size = min(BATCH, smallest.num_examples) // pack * pack
    if size < 2:
        raise InputError(
            f"a diagnosis of the {smallest.num_examples} images of {smallest.name}: expected at least {max(2, pack)}"
        )
    return min(SAMPLES, smallest.num_examples) // size, size


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Measures states of a game. A verdict looks at the history of this object, which begins anew in a resumed run.

    look: state -> generated images (n, h, w, c), logits {"real", "held", "fake"}, {"gradient_...": norm}.
    real: real images (n, h, w, c) in [-1, 1], as many, with which the generated ones are compared.
    embed: images -> points (n, ...), in which diversity is measured; the pixels by default.
    """

    look: Callable[[Any], tuple[jax.Array, Mapping[str, jax.Array], Mapping[str, jax.Array]]]
    real: np.ndarray
    embed: Callable[[np.ndarray], np.ndarray] = lambda images: images
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, pair: Any, train: Source, held: Source | None, *, game: Any = None, seed: int = 0, **options: Any):
        """For the players "disc" and "gen" of an `adversarial.Pair`.

        train: what D learns from. held: real images that it does not; None: what needs them is left out.
        game: its moves' gradients are measured, on one batch of `train`; None: they are not, and compile faster.
        options: `embed`.
        """
        sources = {"real": train} | ({"held": held} if held else {})
        count, size = batches_of(pair.pack, *sources.values())
        batches = {name: _batches(source, count, size, seed) for name, source in sources.items()}
        look = functools.partial(jax.jit(functools.partial(_look, pair, game)), numerics.key(seed), batches)
        real = batches["held" if held else "real"]["image"]
        return cls(look, np.asarray(to_float(jnp.asarray(real.reshape(-1, *real.shape[2:])))), **options)

    @functools.cached_property
    def apart(self) -> Spread:
        return spread(self.embed(self.real))

    @functools.cached_property
    def distance(self) -> float:
        """The mean distance of two real images, in pixels of [-1, 1]."""
        return spread(self.real).mean

    def __call__(self, state: Any) -> dict[str, float]:
        """Measures a state, adds it to the history, and says the verdict on stderr."""
        images, logits, gradients = jax.device_get(self.look(state))
        scores = judged(logits) | self.diversity(images) | {name: float(x) for name, x in gradients.items()}
        scores["steepness"] = abs(scores["gap"]) / self.distance
        self.history.append(scores)
        verdict = diagnose(self.history)
        with contextlib.suppress(OSError):  # whoever read it is gone
            tqdm.tqdm.write(f"step {int(state.step)}: {verdict.word} ({verdict.reason})", file=sys.stderr)
        return {f"diagnose_{name}": value for name, value in scores.items()}

    def diversity(self, images: np.ndarray) -> dict[str, float]:
        """Of generated images (n, h, w, c) in [-1, 1], with n that of the real ones.

        diversity: mean distance of two over that of two real ones. duplicates: share that has a twin (`reach`).
        birthday, support: see there.
        """
        fake, near = spread(self.embed(images)), reach(self.apart)
        born = birthday(fake.distances, near)
        return {
            "diversity": fake.mean / self.apart.mean,
            "duplicates": float(np.mean(fake.nearest < near)),
            "birthday": born.batch,
            "support": born.support,
        }


def _batches(source: Source, count: int, size: int, seed: int) -> dict[str, np.ndarray]:
    """Images uint8 (count, size, h, w, c), none twice, with labels and rows (count, size)."""
    rows = np.random.default_rng(seed).permutation(source.num_examples)[: count * size]
    data = source.read(rows) | {"row": np.arange(count * size, dtype=np.int32)}
    return {name: x.reshape(count, size, *x.shape[1:]) for name, x in data.items()}


@numerics.fixed()
def _look(pair: Any, game: Any, key: jax.Array, batches: Mapping[str, Any], state: Any):
    """Traced: a pass of each player over each batch, and the gradient of each move on the first."""
    disc, gen = state.players["disc"], state.players["gen"]

    def passes(x):
        key, kinds = x
        z_key, *keys = jax.random.split(key, 4)
        kinds = {name: batch | {"image": to_float(batch["image"])} for name, batch in kinds.items()}
        images, _ = pair.generate(gen.params, gen.variables, kinds["real"], z_key)
        kinds["fake"] = kinds["real"] | {"image": images}
        logits = {}
        for name, k in zip(sorted(kinds), keys, strict=False):
            logits[name], _ = pair.critic(disc.params, state, kinds[name], k)(disc.variables, kinds[name]["image"])
        return images, logits

    count = len(batches["real"]["row"])
    images, logits = jax.lax.map(passes, (jax.random.split(key, count), batches))
    first = {name: x[0] for name, x in batches["real"].items()}
    first["image"] = to_float(first["image"])
    gradients = {}
    for i, move in enumerate(game.moves if game else ()):
        params = {name: state.players[name].params for name in move.movers}
        found, _ = jax.grad(move.loss, has_aux=True)(params, state, first, jax.random.fold_in(key, i))
        gradients[f"gradient_{move.title}"] = optax.tree.norm(found)
    return images.reshape(-1, *images.shape[2:]), logits, gradients
