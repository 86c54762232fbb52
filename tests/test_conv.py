"""Convolutions with hand-written derivatives against those of lax."""

import functools

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from jax import lax

from jaxgan.layers import Conv, ConvTranspose, same_padding
from jaxgan.layers.conv import CPU, GPU, XLA, backend, conv, conv_transpose, plain
from jaxgan.layers.conv import maps as layers_maps

# Programs that are compiled for one example each: twice as fast without the optimiser, and more faithful to the source.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def reference(x, w, stride, pads):
    return lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def reference_transpose(y, w, stride, pads, size):
    x = jax.ShapeDtypeStruct((len(y), *size, w.shape[2]), y.dtype)
    return jax.linear_transpose(lambda x: reference(x, w, stride, pads), x)(y)[0]


@st.composite
def geometry(draw):
    """(b, h, w, c, d, kernel, stride, pads), pads of 'SAME', of 'VALID', or any that leave the kernel within them."""
    h, w = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    kernel, stride = draw(st.sampled_from((1, 3, 4, 5))), draw(st.integers(1, 3))
    side = st.integers(0, kernel)
    kind = draw(st.sampled_from(("same", "valid", "any")))
    pads = {
        "same": same_padding((h, w), kernel, stride),
        "valid": ((0, 0), (0, 0)),
        "any": ((draw(side), draw(side)), (draw(side), draw(side))),
    }[kind]
    assume(h + sum(pads[0]) >= kernel and w + sum(pads[1]) >= kernel)
    return draw(st.integers(1, 3)), h, w, draw(st.integers(1, 3)), draw(st.integers(1, 3)), kernel, stride, pads


def operands(b, h, w, c, d, kernel, stride, pads):
    """Normal x (b, h, w, c), kernel (k, k, c, d) and y (b, oh, ow, d); the kernel keeps their scale."""
    out = tuple((n + sum(p) - kernel) // stride + 1 for n, p in zip((h, w), pads, strict=True))
    rng = np.random.default_rng([b, h, w, c, d, kernel, stride])
    shapes = (b, h, w, c), (kernel, kernel, c, d), (b, *out, d)
    scales = 1, (kernel * kernel * max(c, d)) ** -0.5, 1
    return tuple(jnp.float32(rng.normal(scale=s, size=shape)) for s, shape in zip(scales, shapes, strict=True))


SAME_4_2 = (2, 6, 7, 2, 3, 4, 2, same_padding((6, 7), 4, 2))
LEFTOVER = (1, 9, 8, 2, 1, 3, 3, ((0, 0), (0, 0)))  # a last row and column that no tap reaches
GAPS = (2, 8, 5, 1, 2, 1, 3, ((0, 0), (0, 0)))  # pixels between taps that none reaches
WIDE = (2, 11, 12, 17, 18, 4, 2, same_padding((11, 12), 4, 2))  # Winograd's and XLA's ways
WIDER = (1, 5, 8, 256, 17, 3, 1, same_padding((5, 8), 3, 1))  # Winograd's alone


def orders(function, x, w):
    """`function(x, w)`, its gradients by each operand, and the gradients of a function of those."""

    def first(x, w, v):
        y, pull = jax.vjp(function, x, w)
        return pull(v), y

    def second(x, w, v):
        (by_x, by_w), y = first(x, w, v)
        return jnp.sum(jnp.sin(by_x)) + jnp.sum(jnp.sin(by_w)) + jnp.sum(jnp.sin(y))

    y = function(x, w)
    v = jnp.cos(y)
    return y, first(x, w, v)[0], jax.grad(second, argnums=(0, 1, 2))(x, w, v)


def assert_near(given, wanted):
    for g, w in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5 * max(1, np.abs(w).max()))


@settings(max_examples=5)
@given(geometry())
@example(SAME_4_2)
@example(LEFTOVER)
@example(GAPS)
@example(WIDE)
@example(WIDER)
def test_conv_and_its_derivatives(shape):
    *_, stride, pads = shape
    x, w, y = operands(*shape)

    @quick
    def both(x, w):
        mine = orders(lambda x, w: conv(x, w, stride, pads), x, w)
        return mine, orders(lambda x, w: reference(x, w, stride, pads), x, w)

    mine, wanted = both(x, w)
    assert mine[0].shape == y.shape
    assert_near(mine, wanted)


@settings(max_examples=5)
@given(geometry())
@example(SAME_4_2)
@example(LEFTOVER)
@example(GAPS)
@example(WIDE)
@example(WIDER)
def test_conv_transpose_and_its_derivatives(shape):
    _, h, width, *_, stride, pads = shape
    x, w, y = operands(*shape)

    @quick
    def both(y, w):
        mine = orders(lambda y, w: conv_transpose(y, w, stride, pads, (h, width)), y, w)
        return mine, orders(lambda y, w: reference_transpose(y, w, stride, pads, (h, width)), y, w)

    mine, wanted = both(y, w)
    assert mine[0].shape == x.shape
    assert_near(mine, wanted)


@pytest.mark.parametrize("shape", [SAME_4_2, LEFTOVER, GAPS, WIDE])
def test_the_maps_of_a_gpu(shape):
    """Those of a TPU too, where the output is larger than the kernel."""
    _, h, width, *_, stride, pads = shape
    x, w, y = operands(*shape)

    @quick
    def both(x, w, y):
        with backend("gpu"):
            mine = orders(lambda x, w: conv(x, w, stride, pads), x, w)
            mine += orders(lambda y, w: conv_transpose(y, w, stride, pads, (h, width)), y, w)
        wanted = orders(lambda x, w: reference(x, w, stride, pads), x, w)
        return mine, wanted + orders(lambda y, w: reference_transpose(y, w, stride, pads, (h, width)), y, w)

    assert_near(*both(x, w, y))


def test_every_backend_has_its_maps():
    assert layers_maps() is CPU
    with backend("gpu"):
        assert layers_maps() is GPU
        with plain():
            assert layers_maps() is XLA
    with backend("tpu"):
        assert layers_maps() is XLA
    assert layers_maps() is CPU


@pytest.mark.parametrize("size", [8, 32])  # outputs of 4x4, no larger than the kernel, and of 16x16
def test_a_gpu_compiler_knows_the_weight_gradients(size):
    """What makes XLA take a weight gradient for a convolution with a huge kernel: a result that is turned, and a
    gradient no larger than the kernel. Then the moments of Adam have another layout than the weights, too."""
    pads = same_padding((size, size), 4, 2)
    y, w, x = jnp.ones((2, size // 2, size // 2, 5)), jnp.ones((4, 4, 3, 5)), jnp.ones((2, size, size, 3))

    def by_w(function, x, w):
        y, pull = jax.vjp(lambda w: function(x, w), w)
        return pull(y)

    with backend("gpu"):
        traced = [
            jax.make_jaxpr(functools.partial(by_w, lambda y, w: conv_transpose(y, w, 2, pads, (size, size))))(y, w),
            jax.make_jaxpr(functools.partial(by_w, lambda x, w: conv(x, w, 2, pads)))(x, w),
        ]
    for jaxpr in traced:
        convolutions = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "conv_general_dilated"]
        results = {e.outvars[0] for e in convolutions}
        assert not any(e.primitive.name == "rev" and e.invars[0] in results for e in equations(jaxpr.jaxpr))
        gradients = [e for e in convolutions if e.outvars[0].aval.size == w.size]
        assert len(gradients) == (size == 32)


@pytest.mark.parametrize("size", [8, 32])
def test_derivatives_keep_the_precision_of_the_call(size):
    """Float32 parts of a bfloat16 network ask for it, where others would get TF32."""
    pads = same_padding((size, size), 4, 2)
    x, w = jnp.ones((2, size, size, 3)), jnp.ones((4, 4, 3, 5))

    def function(x, w):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(conv_transpose(conv(x, w, 2, pads), w, 2, pads, (size, size)) ** 2)

    with backend("gpu"), jax.default_matmul_precision(None):
        traced = jax.make_jaxpr(jax.grad(lambda *a: jnp.sum(jax.grad(function)(*a) ** 2), argnums=(0, 1)))(x, w)
    products = [e for e in equations(traced.jaxpr) if e.primitive.name in ("conv_general_dilated", "dot_general")]
    assert len(products) > 8
    assert {e.params["precision"] for e in products} == {(lax.Precision.HIGHEST, lax.Precision.HIGHEST)}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@settings(max_examples=12)
@given(geometry())
@example(LEFTOVER)
def test_transpose_is_the_adjoint(shape):
    """<x * w, y> = <x, y *ᵀ w>, in float64 sums of float32 products."""
    *_, stride, pads = shape
    x, w, y = operands(*shape)
    both = quick(lambda x, w, y: (conv(x, w, stride, pads), conv_transpose(y, w, stride, pads, x.shape[1:3])))
    convolved, transposed = both(x, w, y)
    there, back = np.vdot(np.float64(convolved), np.float64(y)), np.vdot(np.float64(x), np.float64(transposed))
    assert there == pytest.approx(back, rel=1e-5, abs=1e-5 * float(np.linalg.norm(x) * np.linalg.norm(y)))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 7), st.integers(1, 4))
def test_same_padding(h, w, kernel, stride):
    """As lax has it: ceil(n / stride) outputs, the odd pixel of padding at the end."""
    wanted = lax.padtype_to_pads((h, w), (kernel, kernel), (stride, stride), "SAME")
    assert same_padding((h, w), kernel, stride) == tuple(wanted)


@pytest.mark.parametrize("shape", [SAME_4_2, LEFTOVER, GAPS, WIDE], ids=str)
def test_half_precision_stays(shape):
    """The sums of bfloat16 operands, strided ones too, rounded once or, in a few ways, once a tap."""
    *_, stride, pads = shape
    x, w, y = (a.astype(jnp.bfloat16) for a in operands(*shape))

    def everything(x, w, y):
        z, pull = jax.vjp(lambda x, w: conv(x, w, stride, pads), x, w)
        return z, *pull(y), conv_transpose(y, w, stride, pads, x.shape[1:3])

    with plain():
        expected = jax.jit(everything)(*(jnp.float32(a) for a in (x, w, y)))
    for got, wanted in zip(jax.jit(everything)(x, w, y), expected, strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(got), wanted, rtol=2**-7, atol=2**-7 * float(jnp.std(wanted)))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(4, 2, "SAME"), (3, 1, "SAME"), (5, 2, "VALID")])
def test_module_against_flax(kernel, stride, padding):
    x = jnp.float32(np.random.default_rng(0).normal(size=(2, 9, 6, 3)))
    mine = Conv(5, kernel, stride, padding, bias := padding == "SAME")
    theirs = nn.Conv(5, (kernel, kernel), (stride, stride), padding, use_bias=bias)

    @quick
    def both(x):
        params = mine.init(jax.random.key(0), x)
        params = jax.tree.map(lambda p: p + 0.1, params)  # a bias that is not zero
        return params, theirs.init(jax.random.key(0), x), mine.apply(params, x), theirs.apply(params, x)

    params, their_params, y, wanted = both(x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, their_params)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (8, 5)])
def test_transposed_module(size):
    """(b, ceil(h/2), ceil(w/2), c) -> (b, h, w, f); on even sizes, what lax calls a transposed convolution."""
    y = jnp.float32(np.random.default_rng(0).normal(size=(2, 4, 3, 3)))
    module = ConvTranspose(5, 4, 2, size)
    params = jax.tree.map(lambda p: p + 0.1, quick(module.init)(jax.random.key(0), y))
    x = quick(module.apply)(params, y)
    w, bias = params["params"]["kernel"], params["params"]["bias"]
    assert x.shape == (2, *size, 5) and w.shape == (4, 4, 5, 3)
    np.testing.assert_allclose(x - bias, reference_transpose(y, w, 2, same_padding(size, 4, 2), size), atol=1e-4)
    if size == (8, 6):
        np.testing.assert_allclose(x - bias, lax.conv_transpose(y, w, (2, 2), "SAME", transpose_kernel=True), atol=1e-4)


def test_transposed_module_without_a_size():
    """(b, 1, 1, c) -> (b, k, k, f): one matrix product."""
    y = np.float32(np.random.default_rng(0).normal(size=(2, 1, 1, 3)))
    module = ConvTranspose(5, 4, 1, use_bias=False)
    found, params = quick(module.init_with_output)(jax.random.key(0), y)
    wanted = np.einsum("bc,uvfc->buvf", y[:, 0, 0], params["params"]["kernel"])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert jax.eval_shape(module.apply, params, jnp.ones((2, 3, 2, 3))).shape == (2, 6, 5, 5)


@pytest.mark.parametrize("kernel", [1, 3, pytest.param(5, marks=pytest.mark.slow)])
def test_resampling_is_part_of_the_convolution(kernel):
    x = np.float32(np.random.default_rng(0).normal(size=(2, 6, 8, 3)))
    same, larger, smaller = (Conv(4, kernel, **way) for way in ({}, {"up": True}, {"down": True}))

    @quick
    def everything(x, enlarged):
        params = same.init(jax.random.key(0), x)
        params = jax.tree.map(lambda p: p + 0.1, params)  # a bias that is not 0
        wanted = same.apply(params, enlarged), same.apply(params, x)
        return larger.apply(params, x), smaller.apply(params, x), wanted

    large, small, (wanted, whole) = everything(x, x.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(large, wanted, atol=1e-5)
    np.testing.assert_allclose(small, np.asarray(whole).reshape(2, 3, 2, 4, 2, 4).mean((2, 4)), atol=1e-5)
