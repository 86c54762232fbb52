"""The game of a generator and a discriminator: their two losses, joined from networks, a loss, penalties, augmentation.

A network is a Flax module of the form

    Generator(shape, num_classes, ...)(z (b, latent), label (b,) or None, train) -> images (b, h, w, c)
    Discriminator(shape, num_classes, ...)(images, label or None, train) -> logits (b,)

(or (b, 1 + classes), with class logits, where it is to tell the class instead of seeing it: `Pair.auxiliary`),
with an attribute `latent` on the generator and `mixes_batch` on the discriminator: whether a logit depends on the other
images of its batch (batch normalisation, minibatch statistics), so that real and generated images need separate passes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import erf, erfinv

from jaxgan import collectives, contracts
from jaxgan.augment import Adaptive, Augment, Signs, adapt
from jaxgan.errors import InputError, unknown
from jaxgan.game import Batch, Game, Move, Optimizer, Player, State
from jaxgan.losses import Loss
from jaxgan.penalties import Penalty, at_real
from jaxgan.regularisers import Regulariser, View, logit
from jaxgan.schedule import at


def image_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    """One key for each image: a function of its row in the global batch, whichever device holds it."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(rows)


def latents(key: jax.Array, rows: jax.Array, dimension: int) -> jax.Array:
    """z ~ N(0, I): (b, dimension), each row drawn from its image's own key."""
    return jax.vmap(lambda k: jax.random.normal(k, (dimension,), jnp.float32))(image_keys(key, rows))


def truncated(z: jax.Array, bound: jax.Array | float) -> jax.Array:
    """N(0, I) -> N(0, I) restricted to |z| <= bound, each element by its quantile: the same images, moved inwards."""
    inner = math.sqrt(2) * erfinv(erf(z / math.sqrt(2)) * erf(bound / math.sqrt(2)))
    return jnp.clip(inner, -bound, bound)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A generator, its discriminator, and what stands between them.

    conditional: both see the class label; generated images get the labels of the real ones drawn with them.
    auxiliary: the discriminator does not see the label, it tells it: its output holds class logits beside the first.
    augment: applied to whatever the discriminator sees, in both players' losses, after penalties took their gradient.
    noise: standard deviation of the normal noise that is then added (instance noise, arXiv:1610.04490, section 3): a
      number, or a function of the images seen. It gives both distributions the same support while it lasts.
    pack: the discriminator judges so many images at once, side by side in the channels (PacGAN, arXiv:1712.04086); its
      `shape` has as many times the channels.
    remat: keep of each pass only what the networks have named "block", and compute the rest again for its gradient:
      less memory for a second forward pass.
    """

    generator: nn.Module
    discriminator: nn.Module
    conditional: bool = False
    auxiliary: bool = False
    augment: Augment | None = None
    noise: float | Callable[[jax.Array], jax.Array] = 0.0
    pack: int = 1
    remat: bool = False

    def init_generator(self, key: jax.Array, batch: Batch) -> tuple[Any, Any]:
        z = latents(key, batch["row"], self.generator.latent)
        return _split(self.generator.init(key, z, self.label(batch), train=False))

    def init_discriminator(self, key: jax.Array, batch: Batch) -> tuple[Any, Any]:
        image = jnp.tile(batch["image"], self.pack)
        label = None if self.auxiliary else self.label(batch)
        params, variables = _split(self.discriminator.init(key, image, label, train=False))
        if self.adaptive:
            variables = {**variables, "augment": {"probability": jnp.zeros(())}, "signs": Signs.none()._asdict()}
        return params, variables

    @property
    def adaptive(self) -> Adaptive | None:
        """How the probability of augmentation adapts, if it does."""
        how = None if self.augment is None else self.augment.probability
        return how if isinstance(how, Adaptive) else None

    def label(self, batch: Batch) -> jax.Array | None:
        return batch["label"] if self.conditional else None

    def latents(self, batch: Batch, key: jax.Array) -> jax.Array:
        """Those (b, latent) that `generate` makes images of with this key."""
        return latents(jax.random.split(key)[0], batch["row"], self.generator.latent)

    def generate(self, params: Any, variables: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        """Training-mode images (b, h, w, c) and the generator's new variables."""
        z, noise_key = self.latents(batch, key), jax.random.split(key)[1]
        inputs = (z, self.label(batch))
        images, variables = _apply(self.generator, params, variables, noise_key, batch, *inputs, remat=self.remat)
        if "image" in batch:
            what = f"the output of the generator {contracts.name_of(type(self.generator))}"
            contracts.check_shape(what, images, batch["image"].shape, "that of the real images")
        return images, variables

    def critic(self, params: Any, state: State, batch: Batch, key: jax.Array, copies: int = 1) -> Callable:
        """(variables, images (copies * b, h, w, c)) -> its output, (copies * b / pack, ...), and new variables."""
        label, rows = None if self.auxiliary else self.label(batch), batch["row"]
        # Copies get keys of their own: row i of copy k is image k * 2^20 + i of this loss.
        rows = jnp.concatenate([rows + (k << 20) for k in range(copies)])
        label = None if label is None else jnp.tile(label, copies)
        aug_key, noise_key = jax.random.split(key)
        instance_key = jax.random.fold_in(key, 2)  # apart from the two of the split, which are those of 0 and 1

        def score(variables, images):
            if self.augment is not None:
                keys, shape = image_keys(aug_key, rows), images.shape
                images = self.augment.apply(keys, images, self.probability(variables, state))
                what = f"the output of the augmentation {contracts.name_of(self.augment.apply)}"
                contracts.check_shape(what, images, shape, "that of the images which it was given")
            if callable(self.noise) or self.noise:
                normal = jax.vmap(lambda k: jax.random.normal(k, images.shape[1:], jnp.float32))
                images = images + at(self.noise, state.seen) * normal(image_keys(instance_key, rows))
            images = packed(images, self.pack)
            inputs = (images, label)
            output, variables = _apply(
                self.discriminator, params, variables, noise_key, batch, *inputs, remat=self.remat
            )
            self.check_output(output, len(images))
            return output, variables

        return score

    def check_output(self, output: Any, count: int) -> None:
        """Raises InputError for what are no logits of `count` images."""
        what = f"the output of the discriminator {contracts.name_of(type(self.discriminator))}"
        if self.auxiliary:
            classes = getattr(self.discriminator, "num_classes", 0) or max(math.prod(jnp.shape(output)[1:2]) - 1, 1)
            shape = (count, 1 + classes)
            contracts.check_shape(what, output, shape, "a logit and class logits of each image (b, 1 + classes)")
        else:
            form = "logits (b,), one of each image"
            width = output.shape[1:] if getattr(output, "ndim", 0) == 2 else ()
            judged = getattr(output, "shape", ())[:1] or (count,)
            patches = max(judged[0] // count, 1)  # of an image, where it judges several
            contracts.check_shape(what, output, (patches * count, *width), form)

    def probability(self, variables: Any, state: State) -> jax.Array | float:
        """How likely an image is augmented: a number, a function of the images seen, or what overfitting made of it."""
        assert self.augment is not None
        how = self.augment.probability
        return variables["augment"]["probability"] if isinstance(how, Adaptive) else at(how, state.seen)

    def adapted(self, variables: Any, real_logits: jax.Array) -> Any:
        """The variables after a pass of real images in the discriminator's loss, for an adaptive probability."""
        if not self.adaptive:
            return variables
        images = real_logits.shape[0] * self.pack * collectives.size()
        signs = Signs(**variables["signs"])
        p, signs = adapt(self.adaptive, variables["augment"]["probability"], signs, real_logits, images)
        return {**variables, "augment": {"probability": p}, "signs": signs._asdict()}

    def counted(self, variables: Any, real_logits: jax.Array) -> Any:
        """The variables after a pass of real images in a penalty: its signs count, but p is not adjusted."""
        if not self.adaptive:
            return variables
        return {**variables, "signs": Signs(**variables["signs"]).with_logits(real_logits)._asdict()}


def packed(images: jax.Array, m: int) -> jax.Array:
    """(m b, ..., c) -> (b, ..., m c): every m images in a row become one of m times the channels."""
    if m == 1:
        return images
    groups = images.reshape(-1, m, *images.shape[1:])
    return jnp.moveaxis(groups, 1, -2).reshape(-1, *images.shape[1:-1], m * images.shape[-1])


def disc_loss(
    pair: Pair,
    loss: Loss,
    penalties: Sequence[Penalty],
    params,
    state: State,
    batch: Batch,
    key,
    regularisers: Sequence[Regulariser] = (),
):
    """The discriminator's loss and its penalties, which share the forward pass with it where their images allow it."""
    z_key, score_key, mix_key = jax.random.split(key, 3)
    disc, gen = state.players["disc"], state.players["gen"]
    real = batch["image"]
    fake, _ = pair.generate(gen.params, gen.variables, batch, z_key)
    critic = functools.partial(pair.critic, params["disc"], state, batch)
    mix_keys = image_keys(mix_key, batch["row"])
    points = [_points(penalty, mix_keys, real, fake) for penalty in penalties]
    real_points, fake_points = (any(x is images for x in points) for images in (real, fake))

    # Penalties at only one of the two would pay for the other's gradient in a common pass.
    if pair.discriminator.mixes_batch or real_points != fake_points:
        real_key, fake_key = jax.random.split(score_key)
        real_output, real_gradient, variables = _score(critic(real_key), disc.variables, real, real_points)
        fake_output, fake_gradient, variables = _score(critic(fake_key), variables, fake, fake_points)
    else:
        both = jnp.concatenate([real, fake])
        output, gradient, variables = _score(critic(score_key, copies=2), disc.variables, both, real_points)
        real_output, fake_output = jnp.split(output, 2)
        real_gradient, fake_gradient = (None, None) if gradient is None else jnp.split(gradient, 2)

    real_logits, fake_logits = logit(real_output), logit(fake_output)
    variables = pair.adapted(variables, real_logits)
    total = _mean_loss("disc", loss.disc, loss.disc(real_logits, fake_logits), real_logits)
    metrics = {"real": jnp.mean(real_logits), "fake": jnp.mean(fake_logits), "adversarial": total}
    if pair.augment is not None:
        metrics["augment"] = jnp.asarray(pair.probability(variables, state), jnp.float32)
    for i, (penalty, x) in enumerate(zip(penalties, points, strict=True)):
        if x is real:
            gradient = real_gradient
        elif x is fake:
            gradient = fake_gradient
        else:
            _, gradient, _ = _score(critic(jax.random.fold_in(mix_key, i)), disc.variables, x, True)
        value = _mean_penalty(penalty, packed(gradient, pair.pack))
        total += at(penalty.weight, state.seen) * value
        metrics[f"penalty_{i}" if i else "penalty"] = value
    seen, z = (real, fake, real_output, fake_output), pair.latents(batch, z_key)
    view = View(params["disc"], variables, *seen, pair.label(batch), mix_keys, critic, mix_key, z)
    extra, variables, terms = _regularised(regularisers, view, state)
    return total + extra, (metrics | terms, {"disc": variables})


def _mean_loss(name: str, function: Callable, values: Any, logits: jax.Array) -> jax.Array:
    what = f"the loss's {name} {contracts.name_of(function)}"
    contracts.check_shape(what, values, logits.shape, "one value for each logit, whose mean the caller takes")
    return jnp.mean(values)


def _points(penalty: Penalty, keys: jax.Array, real: jax.Array, fake: jax.Array) -> jax.Array:
    x = penalty.points(keys, real, fake)
    what = f"the images of the penalty {contracts.name_of(penalty.points)}"
    contracts.check_shape(what, x, real.shape, "as many as there are real images")
    return x


def _mean_penalty(penalty: Penalty, gradient: jax.Array) -> jax.Array:
    values = penalty.function(gradient)
    what = f"the penalty {contracts.name_of(penalty.function)}"
    contracts.check_shape(what, values, gradient.shape[:1], "one value for each gradient, whose mean the caller takes")
    return jnp.mean(values)


def _regularised(regularisers: Sequence[Regulariser], view: View, state: State):
    """The weighted sum of the regularisers, the variables after them, and their metrics."""
    total, metrics, variables = jnp.float32(0), {}, view.variables
    for i, regulariser in enumerate(regularisers):
        now = view._replace(key=jax.random.fold_in(view.key, 1000 + i), variables=variables)
        made, what = regulariser.function(now), f"the regulariser {regulariser.name!r}"
        if not (isinstance(made, tuple) and len(made) == 2):
            raise InputError(f"{what} returns a {type(made).__name__}; expected (scalar, view.variables)")
        value, variables = made
        contracts.check_shape(what, value, (), "a scalar: the mean over the batch")
        total += at(regulariser.weight, state.seen) * value
        metrics[regulariser.name] = value
    return total, variables, metrics


def penalty_loss(pair: Pair, penalties: Sequence[Penalty], every: int, params, state: State, batch: Batch, key):
    """Penalties alone, as a move to so many of the loss, with `every` times the weight (arXiv:1912.04958, 2.2)."""
    z_key, score_key, mix_key = jax.random.split(key, 3)
    disc, gen = state.players["disc"], state.players["gen"]
    fake = real = batch["image"]  # R1 looks at no generated image, and none is made for it
    if any(p.points is not at_real for p in penalties):
        fake, _ = pair.generate(gen.params, gen.variables, batch, z_key)
    total, metrics, variables = jnp.float32(0), {}, disc.variables
    for i, penalty in enumerate(penalties):
        x = _points(penalty, image_keys(mix_key, batch["row"]), real, fake)
        critic = pair.critic(params["disc"], state, batch, jax.random.fold_in(score_key, i))
        output, gradient, variables = _score(critic, variables, x, True)
        variables = pair.counted(variables, logit(output)) if x is real else variables
        value = _mean_penalty(penalty, packed(gradient, pair.pack))
        total += every * at(penalty.weight, state.seen) * value
        metrics[f"penalty_{i}" if i else "penalty"] = value
    return total, (metrics, {"disc": variables})


def gen_loss(pair: Pair, loss: Loss, params, state: State, batch: Batch, key, regularisers: Sequence[Regulariser] = ()):
    """The generator's loss; real images are looked at only where the loss pairs them."""
    z_key, fake_key, real_key = jax.random.split(key, 3)
    disc, gen = state.players["disc"], state.players["gen"]
    fake, variables = pair.generate(params["gen"], gen.variables, batch, z_key)
    critic = functools.partial(pair.critic, disc.params, state, batch)
    real_output = real_logits = None
    if loss.paired:
        real_output, _ = critic(real_key)(disc.variables, batch["image"])
        real_logits = logit(real_output)
    fake_output, _ = critic(fake_key)(disc.variables, fake)
    values = contracts.call_gen_loss(loss.gen, logit(fake_output), real_logits)
    total = _mean_loss("gen", loss.gen, values, logit(fake_output))
    keys = image_keys(real_key, batch["row"])
    seen, z = (batch["image"], fake, real_output, fake_output), pair.latents(batch, z_key)
    view = View(params["gen"], variables, *seen, pair.label(batch), keys, critic, real_key, z)
    extra, variables, terms = _regularised(regularisers, view, state)
    return total + extra, (terms, {"gen": variables})


def unrolled_loss(
    pair: Pair,
    loss: Loss,
    ahead: Callable,
    moves: int,
    optimizer: Optimizer,
    params,
    state: State,
    batch: Batch,
    key,
    regularisers=(),
):
    """`gen_loss` against the discriminator after `moves` more moves by the loss `ahead`, through which the gradient
    goes.

    Metz et al. 2016 (arXiv:1611.02163), eq. 9 to 11: a generator that sees the answer to its move does not rush to the
    one point that the discriminator of today likes best. The moves are lost afterwards.
    """
    unroll_key, key = jax.random.split(key)
    gen = state.players["gen"].replace(params=params["gen"])
    optimizer = optimizer if isinstance(optimizer, optax.GradientTransformation) else optimizer(state.seen)

    def move(disc, key):
        now = state.replace(players={"disc": disc, "gen": gen})
        gradients, (_, new) = jax.grad(ahead, has_aux=True)({"disc": disc.params}, now, batch, key)
        gradients = collectives.mean(gradients["disc"])
        updates, optimizer_state = optimizer.update(gradients, disc.optimizer, disc.params)
        moved = optax.apply_updates(disc.params, updates)
        return disc.replace(params=moved, optimizer=optimizer_state, variables=new["disc"]), None

    disc, _ = jax.lax.scan(jax.checkpoint(move), state.players["disc"], jax.random.split(unroll_key, moves))
    answered = state.replace(players=state.players | {"disc": disc})
    return gen_loss(pair, loss, params, answered, batch, key, regularisers)


def game(
    pair: Pair,
    loss: Loss,
    *,
    gen_optimizer: Optimizer,
    disc_optimizer: Optimizer,
    penalties: Sequence[Penalty] = (),
    penalty_every: int = 1,
    regularisers: Sequence[Regulariser] = (),
    disc_steps: int = 1,
    unroll: int = 0,
    accumulate: int = 1,
    ema: Any = None,
) -> Game:
    """Players "disc" and "gen"; the discriminator moves first, `disc_steps` times, then the generator.

    penalties: in the discriminator's loss, or with `penalty_every` > 1 in a move of their own.
    regularisers: each in the loss of its player.
    unroll: moves of the discriminator that the generator looks ahead.

    Raises InputError for a loss, penalty or regulariser that is none.
    """
    contracts.check_attributes(pair.generator, {"latent": "`latent: int = 64`, the dimension of z,"}, "generator")
    mixes = "`mixes_batch: ClassVar[bool] = False`, or True where a logit depends on other images of the batch,"
    contracts.check_attributes(pair.discriminator, {"mixes_batch": mixes}, "discriminator")
    contracts.check_type("the loss", loss, Loss, "losses.Loss(disc, gen), two functions of logits")
    for penalty in penalties:
        contracts.check_type("a penalty", penalty, Penalty, "penalties.Penalty(function, points, weight)")
    _check_regularisers(regularisers)
    lazy = bool(penalties) and penalty_every > 1
    now = () if lazy else tuple(penalties)
    terms = {name: [r for r in regularisers if r.player == name] for name in ("disc", "gen")}
    function = functools.partial(disc_loss, pair, loss, now, regularisers=terms["disc"])
    moves = [Move("disc", function, times=disc_steps, accumulate=accumulate)]
    if lazy:
        function = functools.partial(penalty_loss, pair, tuple(penalties), penalty_every * disc_steps)
        moves.append(
            Move("disc", function, every=penalty_every, draw=False, accumulate=accumulate, name="disc_penalty")
        )
    function = functools.partial(gen_loss, pair, loss, regularisers=terms["gen"])
    if unroll:  # with all that holds the discriminator back; what is lazy is looked ahead at in each move
        ahead = functools.partial(disc_loss, pair, loss, tuple(penalties), regularisers=terms["disc"])
        function = functools.partial(
            unrolled_loss, pair, loss, ahead, unroll, disc_optimizer, regularisers=terms["gen"]
        )
    # Only a paired loss or a conditional game looks at the generator's share of the data; else none is read for it.
    draw = loss.paired or pair.conditional or bool(unroll)
    moves.append(Move("gen", function, draw=draw, accumulate=accumulate))
    # A network may name collections of variables that its older version lacked; so does an adaptive probability.
    disc_added, gen_added = (getattr(network, "added", {}) for network in (pair.discriminator, pair.generator))
    disc_added = {**disc_added, "signs": functools.partial(np.zeros, dtype=np.float32)} if pair.adaptive else disc_added
    return Game(
        players={
            "disc": Player(_keeping(pair.init_discriminator, terms["disc"]), disc_optimizer, added=disc_added),
            "gen": Player(_keeping(pair.init_generator, terms["gen"]), gen_optimizer, ema, gen_added),
        },
        moves=tuple(moves),
    )


# Metrics of the two moves, whose names a regulariser cannot have.
TAKEN = ("loss", "real", "fake", "adversarial", "augment", "penalty")


def _check_regularisers(regularisers: Sequence[Regulariser]) -> None:
    names = []
    for term in regularisers:
        contracts.check_type("a regulariser", term, Regulariser, "regularisers.Regulariser(name, function)")
        what = f"the regulariser {term.name!r}"
        if term.player not in ("disc", "gen"):
            raise unknown(f"player of {what}:", term.player, ("disc", "gen"))
        if not isinstance(term.name, str) or term.name in TAKEN or "/" in term.name:
            raise InputError(f"{what} needs another name: its metric is 'move/name', and {', '.join(TAKEN)} are taken")
        if (term.player, term.name) in names:
            raise InputError(
                f"there are two regularisers {term.name!r} of {term.player!r}; give each a name of its own"
            )
        names.append((term.player, term.name))


def _keeping(init: Callable, regularisers: Sequence[Regulariser]) -> Callable:
    """`init` of a player, with the variables of its regularisers beside the network's."""

    def both(key: jax.Array, batch: Batch) -> tuple[Any, Any]:
        params, variables = init(key, batch)
        return params, dict(variables) | {name: tree for r in regularisers for name, tree in r.variables.items()}

    return both if any(r.variables for r in regularisers) else init


def standing(
    generator: nn.Module,
    params: Any,
    variables: Any,
    key: jax.Array,
    label_of: Callable | None,
    batches: int = 16,
    size: int = 128,
    truncation: jax.Array | float | None = None,
):
    """Variables whose batch statistics are the average over `batches` batches of these very parameters.

    Averaged weights produce activations that no training step has seen, so their running statistics are measured anew
    ("standing statistics", arXiv:1809.11096, appendix D), and so are the singular vectors of spectral normalisation.
    Other variables pass through.
    label_of: key -> labels (size,) for a conditional generator.
    truncation: the largest |z| of the images to come: they have statistics of their own.
    """
    if "batch_stats" not in variables:
        return variables
    fresh = dict(variables) | {"batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])}

    def body(variables, key):
        z_key, label_key, noise_key = jax.random.split(key, 3)
        rows = jnp.arange(size)
        z = latents(z_key, rows, generator.latent)
        z = z if truncation is None else truncated(z, truncation)
        label = None if label_of is None else label_of(label_key, size)
        _, new = _apply(generator, params, variables, noise_key, {"row": rows}, z, label)
        return dict(variables) | {n: new[n] for n in ("batch_stats", "spectral") if n in new}, None

    return jax.lax.scan(body, fresh, jax.random.split(key, batches))[0]


def _score(critic: Callable, variables: Any, images: jax.Array, with_gradient: bool):
    """The output, the gradient of the sum of its logits with respect to the images (or None), and new variables."""
    if not with_gradient:
        output, variables = critic(variables, images)
        return output, None, variables
    output, pull, variables = jax.vjp(functools.partial(critic, variables), images, has_aux=True)
    ones = jnp.ones_like(output) if output.ndim == 1 else jnp.zeros_like(output).at[:, 0].set(1)
    return output, pull(ones)[0], variables


def _apply(module: nn.Module, params, variables, key, batch: Batch, *inputs, remat: bool = False):
    """A training-mode pass: (output, new variables). Noise inside a network differs between devices, by their rows."""
    rngs = {"noise": jax.random.fold_in(key, batch["row"][0])}

    def apply(params, variables, rngs, *inputs):
        return module.apply({"params": params, **variables}, *inputs, train=True, mutable=list(variables), rngs=rngs)

    if remat:
        apply = jax.checkpoint(apply, policy=jax.checkpoint_policies.save_only_these_names("block"))
    return apply(params, variables, rngs, *inputs)


def _split(variables: Any) -> tuple[Any, Any]:
    variables = dict(variables)
    return variables.pop("params"), variables
