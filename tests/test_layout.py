"""Arrays of images that lie otherwise, or hold other numbers, are refused with the line that converts them."""

import numpy as np
import pytest

from jaxgan import data, layout, report, sources
from jaxgan.errors import InputError
from jaxgan.images import to_uint8
from jaxgan.metrics import cas, embed


@pytest.mark.parametrize(
    "shape, order",
    {
        (20, 3, 32, 32): (0, 2, 3, 1),
        (20, 1, 28, 28): (0, 2, 3, 1),
        (20, 4, 16, 64): (0, 2, 3, 1),
        (20, 2, 9, 7): (0, 2, 3, 1),
        (32, 32, 3, 500): (3, 0, 1, 2),  # as SVHN is published
    }.items(),
)
def test_images_of_another_layout_are_refused_with_the_transpose_that_helps(shape, order, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    line = rf"images\.transpose\({', '.join(map(str, order))}\)$"
    with pytest.raises(InputError, match=line):
        sources.from_arrays("mine", images)
    np.savez(tmp_path / "x.npz", images=images)
    with pytest.raises(InputError, match=rf"npz:.*\({', '.join(map(str, shape))}\).*{line}"):
        data.load(f"npz:{tmp_path / 'x.npz'}")
    source = sources.from_arrays("mine", images.transpose(order))
    network = embed.pixels(source.shape)
    for measure in (
        lambda: embed.embed(network, [images]),
        lambda: report.grid(images),
        lambda: cas.score(images, np.zeros(len(images), int), images, np.zeros(len(images), int), 1),
    ):
        with pytest.raises(InputError, match=line):
            measure()


@pytest.mark.parametrize(
    "shape", [(20, 3, 3, 64), (20, 1, 128, 6), (20, 3, 32, 4), (20, 1, 9, 1), (9, 20, 8, 5), (9, 2, 2, 2)]
)
def test_shapes_that_may_be_meant_are_accepted(shape):
    layout.check(shape, "x")
    assert sources.from_arrays("x", np.zeros(shape, np.uint8)).shape == shape[1:]


LEVELS = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
LEVELS[0, 0, 0] = 0, 255, 128


@pytest.mark.parametrize(
    "images, code",
    [
        (LEVELS / 255, "np.round(images * 255).astype(np.uint8)"),
        (np.float32(LEVELS / 127.5 - 1), "np.round((images + 1) * 127.5).astype(np.uint8)"),
        (LEVELS.astype(np.float32), "np.round(images).astype(np.uint8)"),
        (LEVELS.astype(np.int64), "images.astype(np.uint8)"),
        (LEVELS.astype(np.uint16) * 257, "(images >> 8).astype(np.uint8)"),
        (LEVELS > 127, "images.astype(np.uint8) * 255"),
    ],
)
def test_another_range_is_refused_with_the_code_that_converts_it_exactly(images, code):
    with pytest.raises(InputError, match="; to convert them: ") as error:
        sources.from_arrays("mine", images)
    assert str(error.value).endswith(f"to convert them: {code}")
    expected = np.where(LEVELS > 127, 255, 0) if images.dtype == bool else LEVELS
    np.testing.assert_array_equal(eval(code, {"images": images, "np": np}), expected)


def test_numbers_that_no_rule_fits_are_refused_with_their_range():
    for images, text in ((LEVELS * 1e4, "from 0 to 2.55e+06$"), (LEVELS + np.nan, "finite$")):
        with pytest.raises(InputError, match=text.replace("+", r"\+")):
            sources.from_arrays("mine", images)


def test_levels_in_place_of_floats_are_refused_by_metrics():
    for images in (LEVELS.astype(np.float32), LEVELS.astype(np.int32)):
        with pytest.raises(InputError, match="expected uint8"):
            embed.embed(embed.pixels((6, 7, 3)), [images])
    np.testing.assert_array_equal(to_uint8(np.float32(LEVELS / 127.5 - 1)), LEVELS)
    wild = np.array([[3.7, -8.0, 0.5]], np.float32)  # of a network that diverges
    np.testing.assert_array_equal(to_uint8(wild), [[255, 0, 191]])
