"""Compiling for chips that are not here, for which the devices of this process stand."""

import re

import jax
import pytest

from experiments import ahead, image
from jaxgan import flags, topology
from jaxgan.errors import InputError
from jaxgan.layers import conv

SMALL = ["--width=8", "--batch_size=8", "--shape=8x8x1", "--steps_per_call=3"]


def said(capsys, *argv):
    flags.main(ahead.Config, ahead.PRESETS, ahead.main, [*SMALL, *argv])
    return capsys.readouterr().out


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as ended:
        flags.main(ahead.Config, ahead.PRESETS, ahead.main, [*SMALL, *argv])
    assert ended.value.code == 2
    return capsys.readouterr().err


def nbytes(printed):
    size, unit = re.fullmatch(r"([\d,.]+) (\w+)", printed).groups()
    return float(size.replace(",", "")) * {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


def parameters():
    """Of both players, by the networks themselves."""
    config = flags.parse(ahead.Config, ahead.PRESETS, SMALL)
    source = ahead.absent(config)
    game = image.make_game(config, image.networks(config, source.shape, source.num_classes))
    state = jax.eval_shape(game.init, jax.random.key(0), image.example_of(source))
    return sum(x.size for p in state.players.values() for x in jax.tree.leaves(p.params)), state


def test_what_a_step_takes(capsys):
    """Of memory: parameters, their average and moments, and the data; of the network: both players' gradients."""
    weights, state = parameters()
    printed = said(capsys, "--devices=2", "--examples=1000")
    assert "2 x cpu, 4 images each" in printed
    held = sum(x.size * 4 for x in jax.tree.leaves(state) if x.dtype != state.key.dtype) + 1000 * (64 + 4)
    kept, beside = re.search(r"memory +(.*?) of state and data and (.*?) to", printed).groups()
    assert nbytes(kept) == pytest.approx(held, rel=0.05)
    assert nbytes(beside) > 4 * weights  # the gradients at the least
    reduced = nbytes(re.search(r"reduced +(.*?) over", printed)[1])
    assert 4 * weights <= reduced < 4 * weights + 4000  # beside them, batch statistics and metrics
    assert "reduced" not in said(capsys, "--devices=1")


def test_wrong_chips_and_shapes(capsys):
    assert "did you mean 'v5e'" in refused(capsys, "--topology=5e:2x2")
    assert "sides of a slice, for example v4:2x2x1" in refused(capsys, "--topology=v4:0x2")
    assert "a number of GPUs, for example h100:8" in refused(capsys, "--topology=h100:no")
    assert "for example 64x64x3" in refused(capsys, "--shape=64x64")
    assert "--num_classes=0: expected 2" in refused(capsys, "--conditional")
    assert "--devices=3, but here has 2" in refused(capsys, "--devices=3")
    assert "nearest: 8 or 10" in refused(capsys, "--devices=2", "--batch_size=9")


def test_a_compiler_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(topology, "installed", lambda module: False)
    for name, hint in (("v5e", "pip install libtpu"), ("h200:8", "jax\\[cuda13\\]")):
        with pytest.raises(InputError, match=hint):
            topology.chips(name)


def test_what_does_not_fit_is_refused():
    class Program:
        def memory_analysis(self):
            return type("Sizes", (), {"argument_size_in_bytes": 2e9, "temp_size_in_bytes": 7e9})

    class Lowered:
        def compile(self):
            return Program()

    class TooLarge:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory on HBM, total memory (56.07G) exceeds available HBM (30.75G)."
            )

    ahead.compile_or_refuse(Lowered(), topology.Chips([], "gpu", 10 * 10**9))
    with pytest.raises(InputError, match=r"9\.0 GB of the 9\.5 GB"):
        ahead.compile_or_refuse(Lowered(), topology.Chips([], "gpu", int(9.5e9)))
    with pytest.raises(InputError, match=r"56\.07G of the 30\.75G.*--accumulate=2"):
        ahead.compile_or_refuse(TooLarge(), topology.Chips([], "tpu"))


def test_operations_are_those_of_the_largest_loop():
    hlo = """HloModule jit_f

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%body (s: (f32[3,4], bf16[2])) -> (f32[3,4], bf16[2]) {
  %s = (f32[3,4]{1,0}, bf16[2]{0}) parameter(0)
  %x = f32[3,4]{1,0} get-tuple-element(%s), index=0
  %y = bf16[2]{0} get-tuple-element(%s), index=1
  %r = (f32[3,4]{1,0}, bf16[2]{0}) all-reduce(%x, %y), to_apply=%sum
  %t = ((f32[5]{0}), f32[5]{0}) all-reduce-start(%z), to_apply=%sum
  %u = f32[5]{0} all-reduce-done(%t)
  %v = f32[3,4]{1,0} fusion(%x), kind=kLoop, calls=%sum
  ROOT %w = (f32[3,4]{1,0}, bf16[2]{0}) tuple(%v, %y)
}

ENTRY %main (p: f32[3,4]) -> f32[3,4] {
  %p = f32[3,4]{1,0} parameter(0)
  %l = (f32[3,4]{1,0}, bf16[2]{0}) while(%p), condition=%cond, body=%body
  ROOT %o = f32[3,4]{1,0} get-tuple-element(%l), index=0
}
"""
    assert ahead.operations(hlo) == (4, 4 * 12 + 2 * 2 + 4 * 5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "device"), [("v5e:2x2", "TPU v5 lite"), ("h100:4", "NVIDIA H100")])
def test_compilers_of_chips(name, device, capsys):
    """Where they are installed: the same bytes go over the chips, and convolutions are XLA's own."""
    pytest.importorskip("libtpu" if name.startswith("v") else "jax_plugins.xla_cuda13")
    printed = said(capsys, f"--topology={name}")
    assert f"4 x {device}" in printed
    weights, _ = parameters()
    assert 4 * weights <= nbytes(re.search(r"reduced +(.*?) over", printed)[1]) < 4 * weights + 4000
    with conv.backend(topology.chips(name).backend):
        assert not conv.by_hand()
