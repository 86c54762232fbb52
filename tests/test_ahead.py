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


@pytest.mark.parametrize(
    ("flags_", "disc", "gen"),
    [(["--steps_per_call=1"], 1, 1), (["--disc_steps=3"], 3, 1), (["--r1=1", "--penalty_every=4"], 2, 1)],
)
def test_every_move_reduces_its_gradients(flags_, disc, gen, capsys):
    """A step that is no loop, loops in it, and branches of it, of which the larger counts."""
    _, state = parameters()
    sizes = {name: sum(x.size for x in jax.tree.leaves(p.params)) for name, p in state.players.items()}
    printed = said(capsys, "--devices=2", *flags_)
    reduced = nbytes(re.search(r"reduced +(.*?) over", printed)[1])
    wanted = 4 * (disc * sizes["disc"] + gen * sizes["gen"])
    assert wanted <= reduced < wanted + 4000


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--topology=5e:2x2", "did you mean 'v5e'"),
        ("--topology=v4:0x2", "3 sides of a slice of at most 256 chips, for example v4:2x2x1"),
        ("--topology=v5e:2x2x2", "2 sides"),
        ("--topology=v5e:99x99", "at most 256 chips"),
        ("--topology=h100:no", "1 to 999 GPUs, for example h100:8"),
        ("--topology=here:2", "--devices takes fewer"),
        ("--shape=64x64", "for example 64x64x3"),
        ("--shape=99999999x8x1", "expected at most 16,384"),
        ("--examples=0", "--examples=0: expected a number from 1"),
        ("--num_classes=-1", "--num_classes=-1: expected a number from 0"),
        ("--conditional", "--num_classes=0: expected 2"),
        ("--shape= --num_classes=10", "--num_classes without --shape: the images of --dataset=digits have their own"),
        ("--shape= --examples=9", "--examples without --shape"),
        ("--classes=1,2", "expected --num_classes instead"),
        ("--size=16", "--size=16 does nothing with --shape"),
        ("--crop=foo", "--crop=foo does nothing with --shape"),
        ("--channels=3", "--channels=3 does nothing with --shape"),
        ("--devices=3", "--devices=3: expected 0 (all) to 2 of here"),
        ("--batch_size=9", "--batch_size=9 does not divide over 2 devices; nearest: 8 or 10"),
        ("--steps_per_call=-2", "--steps_per_call=-2: expected at least 1"),
        ("--width=100000000", "too large for any memory"),
    ],
)
def test_wrong_values(flag, message, capsys):
    assert message in refused(capsys, *flag.split())


def test_a_compiler_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(topology, "installed", lambda module: False)
    for name, hint in (("v5e", "pip install libtpu"), ("h200:8", "jax\\[cuda13\\]")):
        with pytest.raises(InputError, match=hint):
            topology.chips(name)


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)

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

    ahead.compile_or_refuse(Lowered(), topology.Chips([], "gpu", 13 * 10**9))
    with pytest.raises(InputError, match=r"9\.0 GB of the 7\.5 GB that JAX takes .*=0\.75"):
        ahead.compile_or_refuse(Lowered(), topology.Chips([], "gpu", 10**10))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".95")
    ahead.compile_or_refuse(Lowered(), topology.Chips([], "gpu", 10**10))
    with pytest.raises(InputError, match=r"60\.2 GB of the 33\.0 GB.*--accumulate=2"):
        ahead.compile_or_refuse(TooLarge(), topology.Chips([], "tpu"))


HLO = """HloModule jit_f

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%often (i: s32[]) -> s32[] {
  %i = s32[] parameter(0)
  %r = f32[7]{0} all-reduce(%q), to_apply=%sum
  ROOT %j = s32[] add(%i, %one)
}

%rarely (i: s32[]) -> s32[] {
  ROOT %i = s32[] parameter(0)
}

%five (i: s32[]) -> pred[] {
  %i = s32[] parameter(0)
  %n = s32[]{:T(128)} constant(5)
  ROOT %k = pred[] compare(%i, %n), direction=LT
}

%body (s: (f32[3,4], bf16[2])) -> (f32[3,4], bf16[2]) {
  %s = (f32[3,4]{1,0}, bf16[2]{0}) parameter(0)
  %x = f32[3,4]{1,0} get-tuple-element(%s), index=0
  %y = bf16[2]{0} get-tuple-element(%s), index=1
  %r = (f32[3,4]{1,0}, bf16[2]{0}) all-reduce(%x, %y), to_apply=%sum
  %t = ((f32[5]{0}), f32[5]{0}) all-reduce-start(%z), to_apply=%sum
  %u = f32[5]{0} all-reduce-done(%t)
  %v = f32[3,4]{1,0} fusion(%x), kind=kLoop, calls=%sum
  %l = s32[] while(%i), condition=%five, body=%often
  %m = s32[] conditional(%p, %i, %i), branch_computations={%rarely, %often}
  ROOT %w = (f32[3,4]{1,0}, bf16[2]{0}) tuple(%v, %y)
}

ENTRY %main (p: f32[3,4]) -> f32[3,4] {
  %p = f32[3,4]{1,0} parameter(0)
  %d = f32[3,4]{1,0} fusion(%p), kind=kLoop, calls=%sum
  %l = (f32[3,4]{1,0}, bf16[2]{0}) while(%d), body=%body, backend_config={"known_trip_count":{"n":"50"}}
  ROOT %o = f32[3,4]{1,0} get-tuple-element(%l), index=0
}
"""


def test_operations_of_a_step():
    """One all-reduce, one that starts and ends, one fusion; a loop of five times two, a branch of two."""
    reduced = 4 * 12 + 2 * 2 + 4 * 5
    assert ahead.operations(HLO, 50) == (3 + 5 * 2 + 2, reduced + 6 * 4 * 7)
    assert ahead.operations(HLO, 1) == (1 + 50 * 15, 50 * (reduced + 6 * 4 * 7))


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
