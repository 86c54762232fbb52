"""What can be wrong with the flags of `experiments.image`, in their own words, before any image is read."""

from typing import Any

from jaxgan import parallel
from jaxgan.config import NEEDS as COMMON
from jaxgan.config import check_decays, check_least
from jaxgan.errors import InputError
from jaxgan.flags import Need, written
from jaxgan.metrics.measure import is_of_features

# Flags of one value, or start,end over --anneal_images; the others may be empty.
NEEDED = ("learning_rate", "beta2", "augment_probability")
PENALTIES = ("r1", "r2", "wgan_gp", "dragan")
# Of a fork's flags see `image.Config.penalty_flags`.
SCHEDULES = (*NEEDED, "gen_learning_rate", "gen_beta2", *PENALTIES, "instance_noise", "ema")
LARGEST, UNROLLED = 2**30, 1000  # of whole numbers, which traced code takes as 32 bits; of moves that are all kept

ONES = ("disc_steps", "penalty_every", "path_every", "accumulate", "pack")
ZEROS = ("width", "latent", "unroll", "lecam", "orthogonal", "path_length", "ada_target", "auxiliary", "ema_ramp")
# A negative weight would reward what it is to punish; a rate of 0 leaves a player as it is, which has its uses.
RATES = ("learning_rate", "gen_learning_rate", "clip_gradients", "clip_weights", "instance_noise", "ema")

MOVING = Need(
    lambda c: any(len(getattr(c, name)) > 1 for name in SCHEDULES),
    "without a start,end pair, for example --learning_rate=2e-4,5e-5",
)
NEEDS = COMMON | {
    "diagnose": Need(lambda c: c.eval_every > 0, "without --eval_every, the steps between diagnoses"),
    "features": Need(
        lambda c: any(is_of_features(name) for name in c.metrics),
        "without a metric of features, for example --metrics=fid: distance and modes have classifiers of their own",
    ),
    "inception_weights": Need(lambda c: c.features in ("inception", "auto"), "without --features=inception"),
    "augment_probability": Need(
        lambda c: c.augment and not c.ada_target, "without --augment, or with --ada_target, which adapts it"
    ),
    "ada_target": Need(lambda c: c.augment, "without --augment, for example --augment=ada"),
    "ada_images": Need(lambda c: c.ada_target, "without --ada_target, for example --ada_target=0.6"),
    "penalty_every": Need(
        lambda c: any(getattr(c, name) for name in penalties_of(c)),
        "without a penalty: --r1, --r2, --wgan_gp or --dragan, or a flag of your own that Config.penalty_flags names",
    ),
    "path_every": Need(lambda c: c.path_length, "without --path_length"),
    "ema_ramp": Need(lambda c: c.ema, "without --ema"),
    "anneal": MOVING,
    "anneal_images": MOVING,
    "beta1": Need(lambda c: c.optimizer == "adam", "without --optimizer=adam"),
    "beta2": Need(lambda c: c.optimizer == "adam", "without --optimizer=adam"),
    "gen_beta2": Need(lambda c: c.optimizer == "adam", "without --optimizer=adam"),
}


def penalties_of(config: Any) -> tuple[str, ...]:
    """The flags that weigh a penalty of the gradient, with a fork's own."""
    return tuple(getattr(config, "penalty_flags", PENALTIES))


def check(config: Any, devices: int) -> None:
    """Raises InputError."""
    own = tuple(name for name in penalties_of(config) if name not in PENALTIES)
    for name in (*SCHEDULES, "consistency", *own):
        values = getattr(config, name)
        if not isinstance(values, tuple):
            raise InputError(
                f"--{name} is in Config.penalty_flags; expected `{name}: tuple[float, ...] = option((), ...)`"
            )
        if len(values) > 2 or (name in NEEDED and not values):
            raise InputError(f"--{name}={written(values)}: expected one value, or start,end")
    check_least(config, dict.fromkeys(ONES, 1) | dict.fromkeys((*ZEROS, *RATES, *PENALTIES, "consistency", *own), 0))
    check_decays(config, ("beta1", "beta2", "gen_beta2"))
    for name in (*ONES, *ZEROS):
        most = UNROLLED if name == "unroll" else LARGEST
        if getattr(config, name) > most:
            raise InputError(f"--{name}={getattr(config, name)}: expected at most {most:,}")
    for name in ("anneal_images", "ada_images"):
        if getattr(config, name) <= 0:
            raise InputError(f"--{name}={getattr(config, name)}: expected more than 0")
    for name in ("augment_probability", "ada_target"):
        values = getattr(config, name) if name == "augment_probability" else (config.ada_target,)
        if not all(0 <= value <= 1 for value in values):
            raise InputError(f"--{name}={written(values)}: expected numbers from 0 to 1")
    if config.auxiliary and not config.conditional:
        raise InputError(f"--auxiliary={config.auxiliary} needs classes to tell; expected --conditional with it")
    if config.conditional and config.pack > 1:
        raise InputError(f"--pack={config.pack} with --conditional: images judged together have no common class")
    share = config.batch_size // devices
    parallel.check_divides("accumulate", config.accumulate, share, "images of a device")
    parallel.check_divides("pack", config.pack, share // config.accumulate, "images of a pass")
