"""Runs of version 0.1, whose residual networks and presets were others: they load, resume and sample as they were."""

import contextlib
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from experiments import image, transfer_methods
from experiments.image_presets import EARLIER, PRESETS, PUBLISHED
from jaxgan import critic, flags, lookup, models, trained
from jaxgan.errors import InputError
from jaxgan.models import resnet
from tests.runs import QUIET, compile_quickly, here, same_run

__all__ = ["compile_quickly"]  # a fixture

# The networks of a run of version 0.1 as its config.json has them.
OLD = {
    "generator": {
        "path": "jaxgan.models.resnet:Generator",
        "arguments": {
            "shape": [48, 48, 3], "num_classes": 0, "latent": 8, "width": 4, "variant": "sngan", "dtype": "float32",
        },
    },
    "discriminator": {
        "path": "jaxgan.models.resnet:Discriminator",
        "arguments": {"shape": [48, 48, 3], "num_classes": 0, "width": 4, "variant": "sngan", "dtype": "float32"},
    },
}  # fmt: skip


def shapes(network):
    params = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, *network.shape), np.float32))["params"]
    return jax.tree.map(lambda leaf: leaf.shape, params)


def test_networks_of_an_old_config_are_built_as_they_were():
    generator, discriminator = trained.build(OLD["generator"]), trained.build(OLD["discriminator"])
    assert (generator.revision, discriminator.revision) == (1, 1)
    old, new = shapes(discriminator), shapes(discriminator.clone(revision=2))
    # The second block, 4 -> 8 channels: its first convolution was 4 -> 8, and is 4 -> 4.
    assert (old["Conv_3"]["kernel"], old["Conv_4"]["kernel"]) == ((3, 3, 4, 8), (3, 3, 8, 8))
    assert (new["Conv_3"]["kernel"], new["Conv_4"]["kernel"]) == ((3, 3, 4, 4), (3, 3, 4, 8))
    assert shapes(discriminator.clone(shape=(32, 32, 3)))["Dense_0"].keys() == {"kernel", "bias"}
    # Stored again, by a run that resumed, they stay what they are; those of today come back as they are.
    for network in (generator, discriminator, resnet.Generator((32, 32, 1)), resnet.Discriminator((32, 32, 1))):
        stored = json.loads(json.dumps(trained.network(network)))
        assert trained.build(stored) == network and stored["arguments"]["revision"] == network.revision
    mined = transfer_methods.mined(generator, 4)
    stored = json.loads(json.dumps(trained.network(mined)))
    stored["arguments"]["arguments"] = [pair for pair in stored["arguments"]["arguments"] if pair[0] != "revision"]
    assert trained.build(stored).bind({}).mined.revision == 1


def test_what_networks_did_not_store_are_arguments_of_theirs():
    for name in lookup.names(models):
        for network in vars(lookup.module("model", name, models, ())).values():
            unstored = getattr(network, "unstored", {}) if isinstance(network, type) else {}
            defaults = {field.name: field.default for field in dataclasses.fields(network)} if unstored else {}
            assert all(type(defaults[key]) is type(value) for key, value in unstored.items())


def test_an_old_run_resumes_bit_exactly(tmp_path, capfd, monkeypatch):
    """Four steps at once and two and two of them, the second two by the code of today from the old config.json."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 1), np.uint8)
    np.savez(tmp_path / "data.npz", image=pixels)
    argv = ("--model=resnet", f"--dataset=npz:{tmp_path / 'data.npz'}", "--width=1", "--latent=4", *QUIET)
    argv += ("--batch_size=4", "--steps_per_call=2", "--checkpoint_every=2", "--loss=hinge")

    def steps(run, n):
        code, _, err = here(capfd, *argv, f"--steps={n}", f"--workdir={tmp_path / run}")
        assert code == 0, err

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(monkeypatch.context())
        networks = image.networks

        def before(*arguments):
            pair = networks(*arguments)
            old = {name: getattr(pair, name).clone(revision=1) for name in ("generator", "discriminator")}
            return dataclasses.replace(pair, **old)

        patch.setattr(image, "networks", before)
        steps("whole", 4)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "4")
    config = json.loads((tmp_path / "parts" / "config.json").read_text())
    for network in config["networks"].values():
        assert network["arguments"].pop("revision") == 1
    del config["config"]["dequantize"]
    (tmp_path / "parts" / "config.json").write_text(json.dumps(config))
    judge = critic.load(tmp_path / "parts")
    assert judge.discriminator.revision == 1 and "bias" in judge.params["Dense_0"]
    steps("parts", 4)
    same_run(tmp_path / "whole", tmp_path / "parts")
    stored = json.loads((tmp_path / "parts" / "config.json").read_text())["networks"]
    assert [network["arguments"]["revision"] for network in stored.values()] == [1, 1]

    config["networks"]["discriminator"]["arguments"]["revision"] = "two"
    (tmp_path / "parts" / "config.json").write_text(json.dumps(config))
    code, _, err = here(capfd, *argv, "--steps=8", f"--workdir={tmp_path / 'parts'}")
    assert code == 2 and "revision='two'" in err and "expected int" in err and err.count("\n") == 1


@pytest.mark.parametrize("preset", PUBLISHED)
def test_the_command_of_an_old_published_run_resumes_it(preset, tmp_path):
    """Its preset is another today; what it began with stays, but for what somebody types."""
    row = {name: value for name, value in PRESETS[preset].items() if name not in ("dequantize", "features")}
    old = image.Config(**row | {"workdir": str(tmp_path), "dtype": "bfloat16"})
    if preset != "r3gan_stacked_mnist":
        old = dataclasses.replace(old, eval_samples=1000, metrics=("distance",))
    flags.write(old, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["config"]["dequantize"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    argv = [f"--preset={preset}", f"--workdir={tmp_path}"]
    config = image.with_features(flags.parse(image.Config, PRESETS, argv))
    assert config == old and flags.check_same(config, tmp_path)
    assert flags.parse(image.Config, PRESETS, [*argv, "--dtype=float32"]).dtype == "float32"
    typed = image.with_features(flags.parse(image.Config, PRESETS, [*argv, "--metrics=kid"]))
    with pytest.raises(InputError, match=r"metrics is '(distance|modes)' there, 'kid' here"):
        flags.check_same(typed, tmp_path)
    elsewhere = flags.parse(image.Config, PRESETS, [argv[0], f"--workdir={tmp_path / 'new'}"])
    assert elsewhere.dtype == PRESETS[preset].get("dtype", "float32")


def test_earlier_values_are_of_presets_and_flags():
    for name, row in EARLIER.items():
        assert name in PRESETS
        image.Config(**row)
