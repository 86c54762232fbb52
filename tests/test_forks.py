"""What the README's "Fork it" names, written into one file of somebody else's; and what is said where it is wrong."""

import dataclasses
import importlib
import json
import sys
import textwrap
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import QUIET, here

from experiments import anomaly, evaluate, template
from jaxgan import adversarial, augment, contracts, flags, losses, penalties, regularisers
from jaxgan.config import Common
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.game import Game, Move, Player
from jaxgan.metrics import measure
from jaxgan.models import mlp

# One module with a part of each kind.
MINE = """
    import dataclasses
    from typing import Any, ClassVar

    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from experiments import image
    from jaxgan import adversarial, flags, losses, penalties, regularisers
    from jaxgan.anomaly import parts
    from jaxgan.flags import option
    from jaxgan.metrics.measure import Metric

    logistic = losses.Loss(lambda real, fake: jax.nn.softplus(-real) + jax.nn.softplus(fake),
                           lambda fake, real: jax.nn.softplus(real - fake), paired=True)
    pair = (logistic.disc, logistic.gen)
    unpaired = logistic._replace(paired=False)
    mean_loss = logistic._replace(disc=lambda real, fake: jnp.mean(fake - real))


    class Generator(nn.Module):
        shape: tuple[int, int, int]
        num_classes: int = 0
        latent: int = 4
        dtype: Any = jnp.float32

        @nn.compact
        def __call__(self, z, label=None, train=False):
            h, w, c = self.shape
            x = nn.relu(nn.Dense(h // 2 * (w // 2) * 4)(z)).reshape(-1, h // 2, w // 2, 4)
            return jnp.tanh(nn.ConvTranspose(c, (4, 4), strides=(2, 2))(x))


    class Discriminator(nn.Module):
        shape: tuple[int, int, int]
        num_classes: int = 0
        dtype: Any = jnp.float32
        mixes_batch: ClassVar[bool] = False

        @nn.compact
        def __call__(self, x, label=None, train=False):
            x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
            return nn.Dense(1)(x.reshape(len(x), -1))[:, 0]


    def steepness(weight):
        def function(gradient):
            return jnp.abs(gradient).sum((1, 2, 3))
        return penalties.Penalty(function, penalties.at_real, weight)


    def decay(weight):
        def function(view):
            return optax.tree.norm(view.params, squared=True), view.variables
        return regularisers.Regulariser("decay", function, "gen", weight)


    brightness = Metric(lambda sides: {"brightness": float(sides.fake.features.mean())}, "max:brightness")
    per_image = Metric(lambda sides: {"brightness": sides.fake.features.mean(1)}, None)


    @dataclasses.dataclass(frozen=True)
    class Config(image.Config):
        penalty_flags: ClassVar[Any] = image.Config.penalty_flags | {"steepness": steepness}
        regulariser_flags: ClassVar[Any] = {"decay": decay}

        steepness: tuple[float, ...] = option((), "weight of my own penalty")
        decay: float = option(0.0, "weight of my own regulariser")


    PRESETS: dict[str, dict[str, Any]] = {}
    main = image.main
"""
SMALL = ("--dataset=digits", "--batch_size=4", "--devices=1", "--steps=2", "--steps_per_call=2", *QUIET)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The module `mine`, as a fork has it in a folder of its own."""
    folder = tmp_path_factory.mktemp("fork")
    (folder / "mine.py").write_text(textwrap.dedent(MINE))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "mine", raising=False)  # another test's
        yield importlib.import_module("mine")
        sys.modules.pop("mine")


def test_one_file_adds_a_loss_a_network_a_penalty_a_regulariser_a_metric_and_an_experiment(mine, tmp_path, capfd):
    own = ("--model=mine", "--loss=mine:logistic", "--steepness=0.5", "--penalty_every=2", "--decay=0.1")
    measured = ("--eval_every=2", "--eval_samples=8", "--features=pixels", "--metrics=mine:brightness")
    dry = here(capfd, f"--workdir={tmp_path}/run", *SMALL, *own, *measured, "--dry_run", script=mine)
    assert dry[0] == 0 and "disc_penalty: 1 times every 2 steps" in dry[1] and not (tmp_path / "run").exists()
    code, _, err = here(capfd, f"--workdir={tmp_path}/run", *SMALL, *own, *measured, script=mine)
    assert code == 0, err
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["gen/decay"] > 0 and row["disc_penalty/penalty"] > 0 and -1 < row["eval/brightness"] < 1
    code, out, err = here(
        capfd,
        f"--run={tmp_path}/run",
        "--allow_code",
        "--num=8",
        "--reference_images=8",
        "--features=pixels",
        "--metrics=mine:brightness",
        script=evaluate,
    )
    assert code == 0 and "brightness" in out, err


WRONG = {
    "--loss=mine:pair": "mine:pair is a tuple; expected a jaxgan.losses.Loss: write pair = Loss(disc, gen, paired)",
    "--loss=mine:unpaired": "looks at real logits, which are None; write Loss(disc, gen, paired=True)",
    "--loss=mine:mean_loss": "has shape (); expected (4,), one value for each logit",
    "--metrics=mine:brigthness": "unknown metric 'brigthness'; did you mean 'brightness'?",
    "--steepness=0.5,1,2": "--steepness=0.5,1.0,2.0: expected one value, or start,end",
    "--steepness=-1": "--steepness=-1.0: expected",
}


@pytest.mark.parametrize("flag", WRONG)
def test_a_wrong_part_of_a_fork_is_one_line_at_dry_run(flag, mine, tmp_path, capfd):
    own = ("--model=mine", "--loss=mine:logistic", "--eval_every=2", "--eval_samples=8", "--features=pixels")
    own += () if flag.startswith("--metrics") else ("--metrics=mine:brightness",)
    code, _, err = here(capfd, f"--workdir={tmp_path}/run", *SMALL, *own, flag, "--dry_run", script=mine)
    assert code == 2 and WRONG[flag] in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_lazy_penalty_needs_some_penalty(mine, tmp_path, capfd):
    code, _, err = here(capfd, f"--workdir={tmp_path}/run", "--penalty_every=4", "--dry_run", script=mine)
    assert code == 2 and "--penalty_every=4 does nothing without a penalty: --r1" in err


def test_the_run_says_it_too_and_writes_nothing(mine, tmp_path, capfd):
    code, _, err = here(capfd, f"--workdir={tmp_path}/run", *SMALL, "--model=mine", "--loss=mine:unpaired", script=mine)
    assert code == 2 and "paired=True" in err
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.parametrize(
    "change, text",
    [
        ("latent: int = 4", "the generator mine_bad.Generator has no attribute 'latent'; write `latent: int = 64`"),
        (
            "mixes_batch: ClassVar[bool] = False",
            "the discriminator mine_bad.Discriminator has no attribute 'mixes_batch'; write `mixes_batch: ClassVar",
        ),
        ("num_classes: int = 0", "the Generator of mine_bad has no field 'num_classes'; write `num_classes: int = 0`"),
        ("class Generator(nn.Module)", "or a module of your own, pkg.mine_bad, with Generator and Discriminator"),
        ("[:, 0]", None),  # (b, 1) are logits too
        ("(2, 2)", "the output of the generator mine_bad.Generator has shape (4, 4, 4, 1); expected (4, 8, 8, 1)"),
        ("return jnp.tanh(", "the output of the generator mine_bad.Generator is int32; expected floating-point"),
        (
            "return nn.Dense(1)",
            "the output of the discriminator mine_bad.Discriminator has shape (8, 4, 4, 4); expected",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_one_line_at_dry_run(change, text, tmp_path, capfd, monkeypatch):
    new = {"class Generator(nn.Module)": "class Maker(nn.Module)", "(2, 2)": "(1, 1)"}
    new |= {"return jnp.tanh(": "return jnp.int32(", "return nn.Dense(1)": "return x\n            return nn.Dense(1)"}
    (tmp_path / "mine_bad.py").write_text(textwrap.dedent(MINE.replace(change, new.get(change, ""))))
    monkeypatch.syspath_prepend(tmp_path)
    try:
        code, _, err = here(capfd, f"--workdir={tmp_path}/run", *SMALL, "--model=mine_bad", "--dry_run")
    finally:
        sys.modules.pop("mine_bad", None)
    assert (code, err.count("\n")) == ((2, 1) if text else (0, 0)) and (text or "") in err
    assert not (tmp_path / "run").exists()


def test_the_template_says_it_at_dry_run(mine, tmp_path, capfd):
    code, _, err = here(capfd, f"--workdir={tmp_path}/run", "--loss=mine:unpaired", "--dry_run", script=template)
    assert code == 2 and "paired=True" in err and not (tmp_path / "run").exists()


# --- the same from Python

SHAPE = (4, 4, 1)
PAIR = adversarial.Pair(mlp.Generator(SHAPE, latent=2, widths=(3,)), mlp.Discriminator(SHAPE, widths=(3,)))


def step(pair=PAIR, loss=losses.hinge, draws=None, **options):
    """The shapes of a step: nothing is computed."""
    game = adversarial.game(pair, loss, gen_optimizer=optax.sgd(0.1), disc_optimizer=optax.sgd(0.1), **options)
    return shapes(game, draws)


def shapes(game, draws=None):
    example = {"image": np.zeros((1, *SHAPE), np.float32), "row": np.zeros(1, np.int32)}
    state = jax.eval_shape(game.init, jax.random.key(0), example)
    draws = game.draws if draws is None else draws
    return jax.eval_shape(
        game.step, state, {n: np.zeros((draws, 3, *x.shape[1:]), x.dtype) for n, x in example.items()}
    )


def penalty(function, points=penalties.at_real):
    return penalties.Penalty(function, points)


def term(function, name="mine", player="disc"):
    return regularisers.Regulariser(name, function, player)


GOOD = term(lambda view: (jnp.float32(0), view.variables))


@pytest.mark.parametrize(
    "options, text",
    [
        ({"draws": 0}, r"batch\['image'\] of a step has shape \(0, 3, 4, 4, 1\); expected \(1, b, ...\)"),
        ({"loss": (1, 2)}, r"the loss is a tuple, \(1, 2\); expected losses.Loss\(disc, gen\)"),
        ({"penalties": [penalty(jnp.mean)]}, r"the penalty .*mean has shape \(\); expected \(3,\), one value for each"),
        (
            {"penalties": [penalty(lambda g: g.sum((1, 2)))], "penalty_every": 2},
            r"the penalty test_forks\S+ has shape \(3, 1\); expected \(3,\)",
        ),
        ({"penalties": [penalties.zero_centred]}, "a penalty is a function, .*expected penalties.Penalty"),
        (
            {"penalties": [penalty(penalties.zero_centred, lambda k, x, y: x[:1])]},
            r"the images of the penalty \S+ has shape \(1, 4, 4, 1\); expected \(3, 4, 4, 1\)",
        ),
        (
            {"regularisers": [GOOD._replace(player="generator")]},
            "unknown player of the regulariser 'mine': 'generator'",
        ),
        ({"regularisers": [GOOD._replace(name="real")]}, "the regulariser 'real' needs another name"),
        ({"regularisers": [GOOD, GOOD]}, "there are two regularisers 'mine' of 'disc'"),
        ({"regularisers": [lambda view: 0]}, "a regulariser is a function, .*expected regularisers.Regulariser"),
        (
            {"regularisers": [term(lambda view: jnp.float32(0))]},
            r"the regulariser 'mine' returns a \w+; expected \(scalar, view.variables\)",
        ),
        (
            {"regularisers": [term(lambda view: (view.fake_output, view.variables))]},
            r"the regulariser 'mine' has shape \(3,\); expected \(\), a scalar",
        ),
        (
            {"pair": dataclasses.replace(PAIR, augment=augment.Augment(lambda keys, x, p: x[:, :2]))},
            r"the output of the augmentation \S+ has shape \(6, 2, 4, 1\); expected \(6, 4, 4, 1\)",
        ),
    ],
)
def test_a_part_that_does_not_fit_is_named(options, text):
    with pytest.raises(InputError, match=text):
        step(**options)


def test_an_augmentation_of_ones_own_is_applied():
    bright = augment.Augment(lambda keys, images, p: images + p, 0.5)
    assert step(pair=dataclasses.replace(PAIR, augment=bright))[1]["disc/augment"].shape == ()


@pytest.mark.parametrize(
    "made, text",
    [
        (lambda p: p, "the loss of move 'p' returns a dict; expected scalar, "),
        (
            lambda p: (p["p"]["w"], {}),
            r"returns \(\w+, dict\); expected scalar, \(\{name: scalar\}, \{player: variables\}\)",
        ),
        (lambda p: (p["p"]["w"], ({}, {})), r"the loss of move 'p' has shape \(2,\); expected \(\), a scalar"),
        (
            lambda p: (p["p"]["w"].sum(), ({"norm": p["p"]["w"]}, {})),
            r"metric 'norm' of move 'p' has shape \(2,\); expected a scalar",
        ),
        (
            lambda p: (p["p"]["w"].sum(), ({}, {"p": {"n": jnp.int32(0)}})),
            r"variables of 'p' with \['n'\] int32\[\]; expected float32\[\], as its init made it",
        ),
    ],
)
def test_a_move_whose_loss_returns_something_else_is_named(made, text):
    player = Player(lambda key, batch: ({"w": jnp.ones(2)}, {"n": jnp.float32(0)}), optax.sgd(0.1))
    with pytest.raises(InputError, match=text):
        shapes(Game({"p": player}, (Move("p", lambda params, state, batch, key: made(params)),)))


def test_a_player_whose_init_returns_parameters_alone_is_named():
    player = Player(lambda key, batch: {"w": jnp.ones(2)}, optax.sgd(0.1))
    loss = lambda params, state, batch, key: (params["p"]["w"].sum(), ({}, {}))  # noqa: E731
    with pytest.raises(InputError, match=r"init of player 'p' returns a dict; expected \(params, variables\)"):
        shapes(Game({"p": player}, (Move("p", loss),)))
    with pytest.raises(InputError, match=r"moves of \['q'\], but the players are \['p'\]"):
        Game({"p": player}, (Move("q", loss),))


def test_an_auxiliary_game_needs_class_logits():
    class Plain(nn.Module):
        num_classes: int = 3
        mixes_batch = False

        @nn.compact
        def __call__(self, x, label=None, train=False):
            return nn.Dense(1)(x.reshape(len(x), -1))[:, 0]

    pair = adversarial.Pair(PAIR.generator, Plain(), auxiliary=True)
    with pytest.raises(
        InputError, match=r"has shape \(6,\); expected \(6, 4\), a logit and class logits of each image"
    ):
        step(pair=pair)


def test_a_config_that_is_no_table_of_flags_is_named():
    class Bare(Common):
        mine: int = option(3, "not a field without the decorator")

    @dataclasses.dataclass(frozen=True)
    class Pairs:
        mine: tuple[int, int] = option((1, 2), "not a flag")

    @dataclasses.dataclass(frozen=True)
    class Taken:
        preset: str = option("", "another flag's name")

    for config, text in (
        (Bare, "Bare is no dataclass; write @dataclasses.dataclass"),
        (Pairs, r"Pairs.mine: no flag holds tuple\[int, int\]; expected str, int, .*such as tuple\[int, ...\]"),
        (Taken, "Taken.preset: every script has a flag of this name"),
    ):
        with pytest.raises(InputError, match=text):
            flags.parse(config, {}, [])


def test_a_metric_of_more_than_numbers_is_named(mine):
    sides = types.SimpleNamespace(fake=types.SimpleNamespace(features=np.ones((3, 2))))
    assert measure.score("mine:brightness", sides) == {"brightness": 1.0}
    with pytest.raises(
        InputError, match=r"figure 'brightness' of metric 'mine:per_image' is an array \(3,\); expected"
    ):
        measure.score("mine:per_image", sides)
    with pytest.raises(InputError, match="unknown metric"):
        measure.score("mine:nothing", sides)
    for value in (np.ones(2), [1.0], "3", None):
        with pytest.raises(InputError, match=r"is an? .*; expected a number"):
            contracts.number("it", value)
    assert contracts.number("it", jnp.float32(2)) == 2.0


def test_a_method_of_anomaly_detection_in_one_file(tmp_path, capfd, monkeypatch):
    (tmp_path / "my_method.py").write_text("from jaxgan.anomaly.ganomaly import *\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = ("--method=my_method", "--dataset=digits", "--normal=0", "--dry_run")
    code, _, err = here(capfd, f"--workdir={tmp_path}/run", *own, script=anomaly)
    assert code == 0, err
    (tmp_path / "half_method.py").write_text("def networks(shape, width, latent, dtype): ...\n")
    code, _, err = here(capfd, f"--workdir={tmp_path}/run", "--method=half_method", *own[1:], script=anomaly)
    assert code == 2 and "unknown method 'half_method'" in err
