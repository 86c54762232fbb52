"""The order of a run, and the placement of its images."""

import contextlib
import dataclasses
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxgan import data, sources
from jaxgan.errors import InputError

with contextlib.suppress(RuntimeError):  # another test file was first to ask for the devices
    jax.config.update("jax_num_cpu_devices", 2)

seeds = st.integers(-(2**40), 2**40)


# --- order


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 5000), seed=seeds, epoch=st.integers(0, 2**32 - 1))
def test_every_epoch_is_a_permutation(n, seed, epoch):
    order = data.permute(seed, np.full(n, epoch, np.uint32), np.arange(n, dtype=np.uint32), n)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@settings(max_examples=12, deadline=None)
@given(n=st.integers(1, 2**31 - 1), seed=seeds)
def test_numpy_and_jax_agree(n, seed):
    rng = np.random.default_rng(n)
    epoch = rng.integers(0, 2**32, 64, np.uint32)
    position = rng.integers(0, n, 64).astype(np.uint32)
    expected = data.permute(seed, epoch, position, n)
    assert expected.dtype == np.uint32 and (expected < n).all()
    with jax.disable_jit():
        np.testing.assert_array_equal(data.permute(seed, jnp.array(epoch), jnp.array(position), n, jnp), expected)
        flips = data.flips(seed, jnp.array(epoch), jnp.array(position), jnp)
    np.testing.assert_array_equal(flips, data.flips(seed, epoch, position))


@pytest.mark.parametrize("n", [5, 7, 12, 23])
def test_pairs_of_places_get_every_pair_of_examples_equally_often(n):
    epoch = np.arange(100_000, dtype=np.uint32)
    first, second = (data.permute(1, epoch, np.full_like(epoch, i), n).astype(int) for i in (0, 1))
    counts = np.bincount(first * n + second, minlength=n * n).reshape(n, n)[~np.eye(n, dtype=bool)]
    expected = len(epoch) / len(counts)
    chi2, freedom = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_batches_are_mixed_and_epochs_and_seeds_differ():
    n = 60_000
    orders = [
        data.permute(s, np.full(n, e, np.uint32), np.arange(n, dtype=np.uint32), n) for s, e in ((0, 0), (0, 1), (1, 0))
    ]
    for i, order in enumerate(orders):
        counts = np.stack([np.bincount(batch * 10 // n, minlength=10) for batch in order.astype(int).reshape(100, 600)])
        assert 0.85 < ((counts - 60) ** 2 / 60).sum() / 900 < 1.15  # a class-sorted data set is mixed in every batch
        steps = np.bincount(np.diff(order.astype(int)) % n * 100 // n, minlength=100)
        assert abs(((steps - n / 100) ** 2 / (n / 100)).sum() - 99) < 5 * np.sqrt(2 * 99)
        for other in orders[:i]:
            assert (order == other).sum() < 10  # one is expected by chance


# --- placement


def numbered(n=50, shape=(3, 2, 1)):
    """Image i is filled with the number i."""
    image = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, *shape)).copy()
    image[..., 0, :] += 100  # left and right differ, so that a flip shows
    return sources.from_arrays("numbered", image, np.arange(n))


def collect(source, devices=1, first=0, last=13, per_call=4, **options):
    """Every batch of the steps in order: {name: (steps, draws, batch, ...)}."""
    devices = jax.devices()[:devices]
    feed = data.place(source, devices=devices, **options)
    traces = []

    def chunk(resident, x):
        traces.append(1)
        return lax.scan(lambda c, x: (c, feed.draw(resident, x)), None, x)[1]

    chunk = jax.pmap(chunk, axis_name="data", in_axes=(None, 0), devices=devices)
    calls = [
        jax.tree.map(np.asarray, jax.block_until_ready(chunk(feed.resident, x)))
        for x in feed.calls(first, last, per_call)
    ]
    assert len(traces) <= 2 * (1 + bool((last - first) % per_call))  # a call of another length is compiled once more
    return {k: np.concatenate([np.concatenate(list(c[k]), axis=2) for c in calls]) for k in calls[0]}


@pytest.mark.parametrize("mirror", [False, True])
def test_a_run_draws_its_examples_in_the_stated_order(mirror):
    n, batch, draws, seed = 50, 16, 3, 7
    got = collect(numbered(n), batch_size=batch, draws=draws, seed=seed, placement="resident", mirror=mirror)
    assert got["image"].shape == (13, draws, batch, 3, 2, 1) and got["image"].dtype == np.float32
    places = np.arange(13 * draws * batch)
    epoch, position = (
        a.astype(np.uint32) for a in np.divmod(places, n)
    )  # n divides nothing here: epochs wrap inside batches
    label = data.permute(seed, epoch, position, n).astype(int)
    np.testing.assert_array_equal(got["label"].ravel(), label)
    np.testing.assert_array_equal(got["row"], np.broadcast_to(np.arange(batch), got["row"].shape))
    pixels = np.rint((got["image"].reshape(-1, 3, 2) + 1) * 127.5).astype(int)
    flip = data.flips(seed, epoch, position) & mirror
    np.testing.assert_array_equal(pixels[:, 0, 0], label + 100 * ~flip)
    np.testing.assert_array_equal(pixels[:, 2, 1], label + 100 * flip)
    assert 0.4 < flip.mean() < 0.6 or not mirror


@pytest.mark.parametrize("devices, placement, per_call", [(1, "stream", 13), (2, "resident", 3), (2, "stream", 5)])
def test_placement_devices_and_calls_do_not_change_a_bit(devices, placement, per_call):
    if jax.device_count() < devices:
        pytest.skip("one device")
    options = {"batch_size": 64, "draws": 2, "seed": 3, "mirror": True}  # more than an epoch in one batch
    expected = collect(numbered(), placement="resident", **options)
    got = collect(numbered(), devices, per_call=per_call, placement=placement, **options)
    resumed = collect(numbered(), devices, first=6, per_call=per_call, placement=placement, **options)
    for key in expected:
        np.testing.assert_array_equal(got[key], expected[key])
        np.testing.assert_array_equal(resumed[key], expected[key][6:])


def test_dequantized_images_are_their_bytes_and_uniform_noise_within_a_grey_level():
    """(v + u) / 128 - 1, as SNGAN's authors train: u of each value its own, of each epoch too, on any division."""
    image = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    image[0] = 255
    source = sources.from_arrays("noise", image, np.arange(64))
    options = {"batch_size": 64, "seed": 3, "last": 4, "dequantize": True}
    got = collect(source, placement="resident", **options)
    level = (np.float64(got["image"]) + 1) * 128
    value = image[got["label"]]
    u = level - value  # (4, 1, 64, 8, 8, 3)
    assert got["image"].min() >= -1 and got["image"].max() <= 1 and u.min() >= 0 and u.max() <= 1
    assert abs(u.mean() - 1 / 2) < 0.01 and abs(u.var() - 1 / 12) < 0.002  # of 49,152 numbers: 0.0013, 0.0003
    counts = np.bincount(np.minimum(u.ravel() * 16, 15).astype(int), minlength=16) / u.size
    np.testing.assert_allclose(counts, 1 / 16, atol=0.006)
    rows = u.reshape(256, -1)
    assert abs(np.corrcoef(rows) - np.eye(256)).max() < 0.45  # of 192 values each, 0.07: no two images' are alike
    steps = u.reshape(256, 64, 3)
    assert abs(np.corrcoef(steps[:, :-1].ravel(), steps[:, 1:].ravel())[0, 1]) < 0.02  # nor are neighbours'
    for more in ({"placement": "stream"}, {"placement": "resident", "devices": min(2, jax.device_count())}):
        np.testing.assert_array_equal(collect(source, per_call=3, **options, **more)["image"], got["image"])
    flipped = collect(source, placement="resident", mirror=True, **options)
    assert (np.floor((flipped["image"] + 1) * 128).sum((3, 4)) == np.floor(level).sum((3, 4))).mean() > 0.999


def test_a_mirrored_draw_inside_a_scan_is_cheap():
    image = np.random.default_rng(0).integers(0, 256, (1000, 28, 28, 1), np.uint8)
    source, steps = sources.from_arrays("noise", image), 20
    feed = data.place(source, batch_size=64, devices=jax.devices()[:1], placement="resident", mirror=True)

    @jax.jit
    def run(x):
        return lax.scan(
            lambda c, x: (c + feed.draw(feed.resident, x)["image"], None), jnp.zeros((1, 64, 28, 28, 1)), x
        )[0]

    x = jax.tree.map(lambda a: a[0], next(feed.calls(0, steps, steps)))
    run(x).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run(x).block_until_ready()
        times.append((time.perf_counter() - start) / steps)
    assert min(times) < 4e-3  # 0.1 ms; 24 ms where the permutation is fused into the mirror


def test_far_into_a_run_places_do_not_overflow():
    got = collect(numbered(), first=10**12, last=10**12 + 1, batch_size=8, draws=1, seed=0)
    epoch, position = np.divmod(10**12 * 8 + np.arange(8), 50)
    expected = data.permute(0, epoch.astype(np.uint32), position.astype(np.uint32), 50)
    np.testing.assert_array_equal(got["label"].ravel(), expected)


def test_range_of_floats():
    values = np.asarray(data.to_float(jnp.arange(256, dtype=jnp.uint8)))
    assert values[0] == -1 and values[255] == 1
    np.testing.assert_array_equal(values, -values[::-1])
    np.testing.assert_allclose(values, np.arange(256) / 127.5 - 1, atol=6e-8)


def test_auto_streams_what_is_too_large():
    source = numbered()
    assert data.place(source, batch_size=2, devices=jax.devices()[:1]).resident
    assert not data.place(source, batch_size=2, devices=jax.devices()[:1], resident_gb=299 / 2**30).resident
    assert data.place(source, batch_size=2, devices=jax.devices()[:1], resident_gb=300 / 2**30).resident


def test_a_stream_keeps_to_its_memory():
    step = 2 * 8 * 6  # draws, images, bytes
    options = {"batch_size": 8, "draws": 2, "placement": "stream", "devices": jax.devices()[:1], "prefetch": 2}
    feed = data.place(numbered(), stream_gb=5 * 5 * step / 2**30, **options)
    assert feed.max_steps == 5
    with pytest.raises(InputError, match="room for 5"):
        feed.calls(0, 10, 6)
    assert data.place(numbered(), stream_gb=0, **options).max_steps == 1


def test_a_stream_reads_ahead_within_bounds_raises_and_ends():
    source, reads = numbered(), []
    fifth = data.permute(0, np.zeros(2, np.uint32), np.arange(8, 10, dtype=np.uint32), 50)

    def read(indices):
        reads.append(len(indices))
        if set(indices) == set(fifth):
            raise OSError("the disk is gone")
        return source.read(indices)

    broken = dataclasses.replace(source, read=read)
    feed = data.place(broken, batch_size=2, devices=jax.devices()[:1], placement="stream", prefetch=2)
    calls = feed.calls(0, 100, 1)
    for i in range(4):
        next(calls)
        assert len(reads) <= i + 3
    with pytest.raises(OSError, match="disk is gone"):
        next(calls)
    other = feed.calls(0, 100, 1)
    next(other)
    assert any(t.name.startswith("data") for t in threading.enumerate())
    other.close()
    assert not any(t.name.startswith("data") for t in threading.enumerate())


def test_a_stream_reads_two_calls_at_once_and_keeps_their_order():
    second = threading.Event()

    def read(i):
        if i == 1:
            second.set()
        return i, i > 0 or second.wait(30)  # the first waits for the second

    assert list(data.ahead(read, ((i,) for i in range(6)), 2)) == [(i, True) for i in range(6)]


def test_what_place_refuses():
    devices = jax.devices()[:1] * 8
    with pytest.raises(InputError, match="batch_size 100 does not divide among 8 devices; nearest: 96 or 104"):
        data.place(numbered(), batch_size=100, devices=devices)
    with pytest.raises(InputError, match=r"nearest: 8$"):
        data.place(numbered(), batch_size=3, devices=devices)
    with pytest.raises(InputError, match="did you mean 'stream'"):
        data.place(numbered(), batch_size=2, devices=devices[:1], placement="steam")
