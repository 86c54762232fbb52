"""How `experiments.transfer` plays: the networks, the game and the first state of each method.

Every method plays the source run's own game on the target's images; they differ in who moves and where they start.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from experiments import image
from jaxgan import (
    adversarial,
    checkpoint,
    correspondence,
    critic,
    data,
    files,
    flags,
    layerwise,
    lookup,
    models,
    numerics,
    schedule,
)
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.game import Game, Move, Optimizer, Player, State
from jaxgan.graft import Change, graft
from jaxgan.metrics import classify
from jaxgan.models.mined import Generator as Mined
from jaxgan.trained import load as load_generator
from jaxgan.trained import network

SAMPLES = 100  # of a class of the source, which are told by their mean

# The methods, and the flags that only they know.
METHODS: dict[str, tuple[str, ...]] = {
    "scratch": (),
    "finetune": (),
    "freezed": ("frozen_layers",),
    "minegan": ("mining_steps", "miner_width"),
    "cdc": ("cdc_weight", "cdc_batch", "anchors"),
}


@dataclasses.dataclass(frozen=True)
class Config(image.Config):
    """The flags of one run: the source's game on the target's images, and how it differs."""

    method: str = option("scratch", "how it starts and who moves", tuple(METHODS))
    source_run: str = option("", "directory of the run to start from; empty: one is trained first, WORKDIR/source")
    source_step: int | None = option(None, "its checkpoint; none: the newest")
    test_split: str = option("", "of the target's held-out images; empty: every other image of --split")
    from_classes: tuple[int, ...] = option(
        (), "where a conditional source has more or fewer, which of its classes each starts from; empty: the nearest"
    )
    num_images: int = option(0, "of the target's, to train on; 0: all")
    frozen_layers: int = option(1, "freezed: layers of the discriminator that stand still, from the image on")
    mining_steps: int = option(50, "minegan: steps in which the generator stands still behind its miner")
    miner_width: int = option(128, "minegan: hidden units of the miner")
    cdc_weight: float = option(100.0, "cdc: weight of the consistency of distances, a mean over layers")
    cdc_batch: int = option(16, "cdc: latents among which distances are taken")
    anchors: int = option(10, "cdc: places of the latent space whose images are judged whole, at most one a real image")


@dataclasses.dataclass(frozen=True)
class Origin:
    """The run that is started from: its flags, its two networks and, once it is trained, what its players own."""

    config: image.Config
    generator: Any
    discriminator: Any
    players: dict[str, Any] | None = None


def origin(run: epath.PathLike, step: int | None, allow: bool) -> Origin:
    """The two players of a run of `experiments.image`. Raises InputError for a run of another kind, or none."""
    directory = files.reach(run)
    gan = load_generator(directory, step=step, allow=allow)
    judge = critic.load(directory, step=step, allow=allow)
    known = {field.name for field in dataclasses.fields(image.Config)}
    try:
        lines = (directory / "flags.txt").read_text().splitlines()
        names = [line.removeprefix("--").partition("=")[0] for line in lines]
        for missing in sorted({"conditional", "disc_steps", "optimizer"} - {n.removeprefix("no") for n in names}):
            raise ValueError(f"it lacks --{missing}")
        own = [x for x, name in zip(lines, names, strict=True) if {name, name.removeprefix("no")} & known]
        config = flags.parse(image.Config, {}, own, typed=())
    except (OSError, ValueError) as error:
        raise InputError(f"the flags.txt of {str(run)!r} is not that of a run of experiments.image: {error}") from None
    if ":" in config.loss and not allow:
        raise InputError(
            f"the loss of {str(run)!r} is {config.loss!r}, code from outside jaxgan; to run it: --allow_code"
        )
    if isinstance(gan.generator, Mined):
        raise InputError(f"the generator of {str(run)!r} is behind a miner; expected a run that it can be mined from")
    players = checkpoint.read(directory / "checkpoints", step)["players"]
    return Origin(config, gan.generator, judge.discriminator, players)


class Target(NamedTuple):
    """What the images are like that are trained on."""

    shape: tuple[int, int, int]
    classes: int


@dataclasses.dataclass(frozen=True)
class Method:
    """A pair to sample from, the game that it plays, and its first state."""

    pair: adversarial.Pair
    game: Game
    discriminator: nn.Module  # as others load it
    begin_from: Callable[[State], State]
    told: dict[str, str]  # what became of those leaves of the source that are no copies


def pair_of(origin: Origin, config: Config, target: Target) -> adversarial.Pair:
    """The source's networks, for the target's classes and channels."""
    conditional, number = config.conditional, target.classes if config.conditional else 0
    h, w, c = target.shape
    judge = {"auxiliary": False} if getattr(origin.discriminator, "auxiliary", False) and not conditional else {}
    return adversarial.Pair(
        origin.generator.clone(shape=target.shape, num_classes=number),
        origin.discriminator.clone(shape=(h, w, c * config.pack), num_classes=number, **judge),
        conditional=conditional,
        auxiliary=config.auxiliary > 0,
        augment=image.augmentation(config, c),
        noise=image.annealed(config, config.instance_noise or (0.0,)),
        pack=config.pack,
        remat=config.remat,
    )


def nearest(run: epath.PathLike, step: int | None, allow: bool, source: data.Source) -> tuple[int, ...]:
    """For each class of `source` that of the run whose samples it is nearest to: by the means of what the last layer of
    the run's discriminator sees; a class without images has the mean of all.

    A new class starts from what is known of an old one (arXiv:2102.06696).
    """
    gan, judge = load_generator(run, step=step, allow=allow), critic.load(run, step=step, allow=allow)
    k, c = gan.generator.num_classes, gan.generator.shape[2]

    def features(images: np.ndarray) -> np.ndarray:
        return judge.features(images, 0 if judge.sees_class else None)

    known = data.read_all(source)
    images, label = classify.scaled(known["image"]), known["label"]
    if images.shape[-1] != c:
        images = np.repeat(images.mean(-1, keepdims=True), c, -1)
    try:
        seen = features(images)
    except InputError as error:  # a discriminator of no dense layer
        raise InputError(f"{error}; name them with --from_classes") from None
    made = features(gan.sample(numerics.key(0), SAMPLES * k)).reshape(SAMPLES, k, -1).mean(0)
    wanted = [seen[label == j].mean(0) if np.any(label == j) else seen.mean(0) for j in range(source.num_classes)]
    return tuple(int(np.argmin(np.sum(np.square(made - x), -1))) for x in wanted)


def method(origin: Origin, config: Config, target: Target, like: tuple[int, ...] = ()) -> Method:
    """What --method names. like: the source's class that each of the target's starts from (`graft.Change`).

    Raises InputError where these networks cannot do it.
    """
    name = config.method
    pair = pair_of(origin, config, target)
    discriminator = pair.discriminator
    if name == "minegan":
        pair = dataclasses.replace(pair, generator=mined(pair.generator, config.miner_width))
    game = image.make_game(config, pair)
    if name == "freezed":
        game = with_optimizer(game, "disc", freezing(game, pair, config.frozen_layers, target))
    elif name == "minegan":
        game = with_optimizer(game, "gen", mining(game, config.mining_steps * config.batch_size))
    elif name == "cdc":
        game = corresponding(config, pair, target)
    if name == "scratch":
        return Method(pair, game, discriminator, lambda state: state, {})
    began = functools.partial(transplanted, origin, (pair.generator.shape[2], pair.generator.num_classes), like)
    told: dict[str, str] = {}
    if origin.players is not None:
        state = jax.eval_shape(game.init, numerics.key(0), example_of(target))
        players = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state.players)
        told = began(players)[1]
    return Method(pair, game, discriminator, lambda state: state.replace(players=began(state.players)[0]), told)


def example_of(target: Target, examples: int = 1) -> dict[str, Any]:
    """A batch for its shapes."""
    row = np.arange(examples)
    return {"image": np.zeros((examples, *target.shape), np.float32), "label": 0 * row.astype(np.int32), "row": row}


def transplanted(
    origin: Origin, now: tuple[int, int], like: tuple[int, ...], players: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Players with what the source's own: weights, what goes with them, and the generator's average.

    now: the channels and classes of their networks. like: see `method`. Optimizers start anew. A player "source" is the
    source's averaged generator.
    """
    there = origin.players
    assert there is not None, "the source is not trained yet"
    here: dict[str, Any] = {}
    told: dict[str, str] = {}
    was = origin.generator.shape[2], origin.generator.num_classes
    for name, player in players.items():
        own = there["disc" if name == "disc" else "gen"]
        average = own.get("ema") or own["params"]
        change = Change((was[0], now[0]), (was[1], now[1]), like, sees=name == "disc")
        first = average if name == "source" else own["params"]
        params, changed = graft(first, jax.device_get(player.params), change)
        variables, _ = graft(own.get("variables", {}), jax.device_get(player.variables), change)
        ema = player.ema if player.ema is None else graft(average, jax.device_get(player.ema), change)[0]
        here[name] = player.replace(params=params, variables=variables, ema=ema)
        told |= {f"{name}/{leaf}": words for leaf, words in changed.items() if name != "source"}
    return here, told


def with_optimizer(game: Game, player: str, optimizer: Optimizer) -> Game:
    changed = dataclasses.replace(game.players[player], optimizer=optimizer)
    return dataclasses.replace(game, players={**game.players, player: changed})


# --- FreezeD


def freezing(game: Game, pair: adversarial.Pair, layers: int, target: Target) -> Optimizer:
    """The discriminator's optimizer, under which its lowest layers stand still (arXiv:2002.10964, section 3)."""
    batch = example_of(target, pair.pack)
    params, variables = jax.eval_shape(pair.init_discriminator, numerics.key(0), batch)
    seen = jax.ShapeDtypeStruct((1, *pair.discriminator.shape), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32) if pair.conditional and not pair.auxiliary else None
    depths = layerwise.depths(pair.discriminator, {"params": params, **variables}, seen, label)
    top = max(depths.values())
    if not 0 < layers < top:
        kind = type(pair.discriminator).__name__
        raise InputError(f"--frozen_layers={layers}: this {kind} has {top} layers; expected 1 to {top - 1} of them")

    def part(path: Any, _: Any) -> str:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return "stay" if depths[name] <= layers else "move"

    parts = jax.tree_util.tree_map_with_path(part, params)
    inner: Any = game.players["disc"].optimizer
    return lambda images: optax.partition({"move": schedule.at(inner, images), "stay": optax.set_to_zero()}, parts)


# --- MineGAN


def mined(generator: Any, width: int) -> Mined:
    """`generator` behind a miner. Raises InputError for one that is not of jaxgan's own models."""
    stored = network(generator)
    home, _, name = stored["path"].rpartition(":")
    package, _, model = home.rpartition(".")
    if package != models.__name__ or model not in lookup.names(models) or name != "Generator":
        raise InputError(f"--method=minegan mines generators of jaxgan/models, not {stored['path']}; leave it out")
    own = {"shape", "num_classes", "latent", "dtype"}
    arguments = tuple((key, value) for key, value in stored["arguments"].items() if key not in own)
    return Mined(**{key: getattr(generator, key) for key in own}, model=model, arguments=arguments, miner_width=width)


def mining(game: Game, images: int) -> Optimizer:
    """The generator's optimizer: for so many images the miner alone moves, then all do (arXiv:1912.05270, 4.1)."""
    inner: Any = game.players["gen"].optimizer
    batch = {"image": np.zeros((1, 1, 1, 1), np.float32), "label": np.zeros(1, np.int32), "row": np.arange(1)}
    params, _ = jax.eval_shape(game.players["gen"].init, numerics.key(0), batch)
    parts = {name: "miner" if name == "miner" else "generator" for name in params}

    def optimizer(seen: jax.Array) -> optax.GradientTransformation:
        now = schedule.at(inner, seen)
        return optax.partition({"miner": now, "generator": waiting(now, seen >= images)}, parts)

    return optimizer


def waiting(inner: optax.GradientTransformation, moves: jax.Array | bool) -> optax.GradientTransformation:
    """`inner` where `moves`; until then nothing moves, neither weights nor what `inner` remembers."""

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, later = inner.update(gradients, state, params)
        updates = jax.tree.map(lambda u: jnp.where(moves, u, jnp.zeros_like(u)), updates)
        return updates, jax.tree.map(lambda a, b: jnp.where(moves, a, b), later, state)

    return optax.GradientTransformation(inner.init, update)


# --- CDC


def corresponding(config: Config, pair: adversarial.Pair, target: Target) -> Game:
    """CDC: whole images are judged about the anchors, patches elsewhere, and distances are those of a player "source",
    who stands still (arXiv:2104.06820, eq. 4 to 6)."""
    batch = example_of(target, pair.pack)
    params, variables = jax.eval_shape(pair.init_discriminator, numerics.key(0), batch)
    seen = jax.ShapeDtypeStruct((1, *pair.discriminator.shape), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32) if pair.conditional and not pair.auxiliary else None
    layer = correspondence.patch_layer(pair.discriminator, {"params": params, **variables}, seen, label)
    if layer is None:
        kind = type(pair.discriminator).__name__
        raise InputError(f"--method=cdc judges patches, of which this {kind} knows none; leave it out")
    patched = correspondence.Patched(pair.discriminator, layer)
    anchored = correspondence.Anchored(
        pair.generator, min(config.num_images or config.anchors, config.anchors), seed=config.seed
    )
    bare = dataclasses.replace(config, auxiliary=0.0, lecam=0.0, consistency=(), orthogonal=0.0)
    whole = image.make_game(config, dataclasses.replace(pair, generator=anchored, discriminator=patched))
    parts = image.make_game(bare, dataclasses.replace(pair, discriminator=patched.clone(patches=True)))

    def both(first: Move, second: Move) -> Move:
        def loss(params, state, batch, key):
            one, (metrics, variables) = first.loss(params, state, batch, jax.random.fold_in(key, 0))
            two, (more, _) = second.loss(params, state, batch, jax.random.fold_in(key, 1))
            return one + two, (metrics | {f"patch_{name}": x for name, x in more.items()}, variables)

        return dataclasses.replace(first, loss=loss)

    moves = [both(*pair) for pair in zip(whole.moves, parts.moves, strict=True)]
    moves[-1] = dataclasses.replace(moves[-1], loss=consistent(moves[-1].loss, pair, config))
    still = Player(pair.init_generator, optax.set_to_zero(), added=parts.players["gen"].added)
    players = {"disc": whole.players["disc"], "gen": parts.players["gen"], "source": still}
    return Game(players, tuple(moves))


def consistent(loss: Callable, pair: adversarial.Pair, config: Config) -> Callable:
    """`loss` of the generator, plus --cdc_weight times its divergence from the player "source"."""

    def made(params: Any, variables: Any, z: jax.Array, label: jax.Array | None, key: jax.Array) -> dict:
        def call() -> Any:
            inputs = {"params": params, **variables}
            rngs = {"noise": key}
            return pair.generator.apply(inputs, z, label, train=True, mutable=list(variables), rngs=rngs)

        return layerwise.outputs(call, params)[1]

    def with_distances(params, state, batch, key):
        total, (metrics, variables) = loss(params, state, batch, key)
        z_key, noise_key = jax.random.split(jax.random.fold_in(key, 2))
        some = {name: x[: config.cdc_batch] for name, x in batch.items()}
        z, label = adversarial.latents(z_key, some["row"], pair.generator.latent), pair.label(some)
        source = state.players["source"]
        ours = made(params["gen"], state.players["gen"].variables, z, label, noise_key)
        theirs = made(source.params, source.variables, z, label, noise_key)
        distance = correspondence.mean_consistency(ours, theirs)
        return total + config.cdc_weight * distance, (metrics | {"distances": distance}, variables)

    return with_distances
