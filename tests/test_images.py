"""Files and arrays of pixels: sizes, crops, kinds of files, damaged ones."""

import io
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxgan import images
from jaxgan.errors import InputError
from tests.malformed_data import lying_jpeg, png


def test_crops_are_centred_and_resizing_is_antialiased():
    ramp = np.tile(np.arange(12, dtype=np.uint8)[None, :, None] * 20, (4, 1, 1))  # (4, 12, 1)
    np.testing.assert_array_equal(images.fit_array(ramp, (4, 4), 1)[..., 0], ramp[:, 4:8, 0])
    np.testing.assert_array_equal(images.fit_array(ramp.transpose(1, 0, 2), (4, 4), 1)[..., 0], ramp[:, 4:8, 0].T)
    assert images.fit_array(ramp, (4, 6), 1, "none")[0, 0] < 20  # the left edge is still there
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    small = images.fit_array(checks, (16, 16), 1)
    assert abs(int(small[8, 8, 0]) - 127) <= 2  # the nearest pixel would be 0 or 255
    np.testing.assert_array_equal(images.fit_array(ramp, (2, 6), 1, "2x6")[..., 0], ramp[1:3, 3:9, 0])
    np.testing.assert_array_equal(images.fit_array(ramp, (2, 2), 1, "2x6")[..., 0], ramp[1:3, 5:7, 0])
    whole = images.fit_array(ramp, (4, 12), 1, "2x6")  # a window of it, as large as it is
    assert whole[0, 0, 0] > 40 and whole.shape == ramp.shape
    odd = np.arange(35, dtype=np.uint8).reshape(5, 7, 1) * 7
    np.testing.assert_array_equal(images.fit_array(odd, (2, 4), 1, "2x4"), odd[1:3, 1:5])  # as they are, not blurred
    with pytest.raises(InputError, match="crop=5: the image has only 4x12 pixels"):
        images.fit_array(ramp, (2, 2), 1, "5")
    many = np.random.default_rng(0).integers(0, 256, (8, 8, 5), np.uint8)
    assert images.fit_array(many, (4, 4), 5).shape == (4, 4, 5)


def encode(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_pixels_of_unusual_files():
    def see(image, channels):
        return images.decode(encode(image), None, channels)[0, 0].tolist()

    rgba = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert see(rgba, 3) == [255, 255, 255] and see(rgba, 1) == [255]  # transparent is white, whatever lies below
    assert see(Image.new("RGBA", (2, 2), (255, 0, 0, 255)), 3) == [255, 0, 0]
    assert see(Image.fromarray(np.full((2, 2), 0x80FF, np.uint16)), 1) == [0x80]
    assert see(Image.new("1", (2, 2), 1), 3) == [255, 255, 255]
    assert see(Image.new("RGB", (2, 2), (0, 255, 0)).convert("P"), 3) == [0, 255, 0]
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6  # as a telephone writes it when held upright
    turned = encode(Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)), exif=exif)
    assert images.measure(io.BytesIO(turned)) == (3, 2, 1)
    np.testing.assert_array_equal(images.decode(turned, None, 1)[..., 0], [[3, 0], [4, 1], [5, 2]])
    exif[images.ORIENTATION] = 9  # there is no such way to hold it
    odd = encode(Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)), exif=exif)
    assert images.measure(io.BytesIO(odd)) == (2, 3, 1) == images.decode(odd, None, 1).shape


def by_plugins(data, channels):
    with images.opened(io.BytesIO(data)) as file:
        return np.asarray(images.convert(images.upright(file), channels))


def outcome(decode, *args):
    """Shape and pixels, or what the error says, without the addresses of objects."""
    try:
        image = decode(*args)
        return image.shape, image.tobytes()
    except images.UNREADABLE as error:
        return f"{type(error).__name__} {error}".partition(" object at")[0]


def test_plain_files_take_a_short_way_to_the_pixels_of_pillow():
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((29, 18), Image.Resampling.BICUBIC)
    grey, exif = colour.convert("L"), Image.Exif()
    exif[images.ORIENTATION] = 6
    forms = [("PNG", {}), ("PNG", {"compress_level": 0}), ("JPEG", {"quality": 95, "subsampling": 0, "comment": b"x"})]
    forms += [("JPEG", {"progressive": True}), ("JPEG", {"restart_marker_blocks": 1}), ("JPEG", {"optimize": True})]
    plain = [encode(image, form, **options) for image in (colour, grey) for form, options in forms]
    assert all(images.plain(data) is not None for data in plain)
    others = [encode(colour.convert(mode), "PNG") for mode in ("RGBA", "P", "1")]
    others += [encode(grey, "PNG", transparency=0), encode(colour, "PNG", exif=exif), encode(colour, "WEBP")]
    others += [encode(colour.convert("CMYK"), "JPEG"), encode(colour, "JPEG", exif=exif), b"", b"\xff\xd8\xff"]
    assert all(images.plain(data) is None for data in others)
    low = bytearray(plain[0])
    low[23] -= 5  # of its height: the pixels suffice, the checksum of the header does not agree
    woven = bytearray(plain[0])
    woven[28] = 1  # of another order of rows, checksum and all
    woven[29:33] = zlib.crc32(woven[12:29]).to_bytes(4)
    damaged = [bytes(low), bytes(woven)]
    for i in rng.integers(len(plain), size=600):  # a byte changed, bytes lost, the end lost
        data, at = bytearray(plain[i]), rng.integers(min(len(plain[i]), 700))
        if at % 3:
            data[at] ^= 1 << rng.integers(8) if at % 2 else 255
        else:
            del data[at : at + 4 if at % 2 else None]
        damaged.append(bytes(data))
    assert 50 < sum(images.plain(data) is not None for data in damaged) < 550
    for data in plain + others + damaged:
        assert outcome(images.decode, data, None, 3) == outcome(by_plugins, data, 3)


def corner(data, channels=3):
    return images.decode(data, None, channels)[0, 0].tolist()


def test_pixels_of_print_and_of_16_bits():
    printed = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    np.testing.assert_allclose(corner(printed), [255, 0, 0], atol=2)  # all magenta and yellow is red
    # YCCK as Adobe writes it, all four complemented: Y, Cb, Cr of cyan, and no black, are red. Pillow complements too.
    ycck = bytearray(encode(Image.new("CMYK", (8, 8), tuple(255 - x for x in (179, 171, 1, 255))), "JPEG", quality=100))
    ycck[ycck.index(b"Adobe") + 11] = 2  # the transform
    np.testing.assert_allclose(corner(bytes(ycck)), [255, 0, 0], atol=3)
    deep = png(1, 1, b"\0" + bytes([0x80, 0xFF, 0x10, 0xFF, 0xFF, 0x00]), bits=16, colour=2)
    assert corner(deep) == [0x80, 0x10, 0xFF]
    assert corner(png(1, 1, b"\0\x81\xff", bits=16), 1) == [0x81]
    assert corner(png(1, 1, b"\0\x81\xff\x40\x00", bits=16, colour=4), 1)[0] in range(0xDE, 0xE2)  # a quarter, on white


def test_alpha_is_kept_in_four_channels():
    def see(image, **options):
        return corner(encode(image, **options), 4)

    assert see(Image.new("RGBA", (2, 2), (9, 8, 7, 60))) == [9, 8, 7, 60]
    assert see(Image.new("RGB", (2, 2), (9, 8, 7))) == [9, 8, 7, 255] and see(Image.new("L", (2, 2), 5))[3] == 255
    assert see(Image.new("LA", (2, 2), (100, 128))) == [100, 100, 100, 128]
    assert see(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3))[3] == 0
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    assert see(palette, transparency=bytes([255, 77])) == [200, 0, 0, 77]
    for clear, alpha in ((0x1234, 0), (0x1235, 255)):
        deep = png(1, 1, b"\0\x12\x34", bits=16, clear=clear.to_bytes(2))
        assert corner(deep, 4) == [0x12, 0x12, 0x12, alpha]


def test_what_is_transparent_lends_no_color_to_an_edge():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :5] = 250, 20, 20, 255
    half = images.fit_array(pixels, (4, 4), 4)
    np.testing.assert_array_equal(images.decode(encode(Image.fromarray(pixels)), (4, 4), 4), half)
    assert 0 < half[1, 2, 3] < 255  # the edge
    np.testing.assert_allclose(half[half[..., 3] > 20][:, :3].astype(int) - [250, 20, 20], 0, atol=6)
    np.testing.assert_array_equal(images.fit_array(pixels, (8, 8), 3)[0, ::7], [[250, 20, 20], [255, 255, 255]])
    np.testing.assert_array_equal(images.fit_array(pixels[..., :3], (8, 8), 4)[..., 3], 255)
    with pytest.raises(InputError, match=r"only grey \(1\), colour \(3\) and RGBA \(4\) convert .* npz:FILE"):
        images.check_channels(3, 2, "mine")


PIXELS = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.mark.parametrize(
    "form, mode, options",
    [
        ("PPM", "RGB", {}),
        ("PPM", "L", {}),
        ("PPM", "1", {}),
        ("BMP", "RGB", {}),
        ("BMP", "L", {}),
        ("BMP", "P", {}),
        ("TIFF", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "L", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", "1", {"compression": "group4"}),
        ("TIFF", "RGBA", {}),
    ],
)
def test_formats_are_told_by_content(form, mode, options):
    picture = Image.fromarray(PIXELS).convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.fromarray(PIXELS[..., 0]))
    data = encode(picture, form, **options)
    assert images.measure(io.BytesIO(data)) == (5, 7, 1 if mode in ("L", "1") else 3)
    for channels, target in images.MODES.items():
        np.testing.assert_array_equal(
            images.decode(data, None, channels).squeeze(),
            images.decode(encode(picture, "PNG"), None, channels).squeeze(),
        )
        assert images.decode(data, None, channels).shape == (5, 7, channels) and target


def test_depths_of_pgm_and_tiff():
    assert corner(b"P5 2 1 255\n\x07\xff", 1) == [7]
    assert corner(b"P5\n# by hand\n2 1 65535\n\x80\xff\0\0", 1) == [0x80]
    assert corner(b"P2 2 1 15\n3 15\n", 1) == [51]  # 3 of 15
    assert corner(b"P3 1 1 255\n9 8 7\n") == [9, 8, 7]
    deep = Image.fromarray(np.full((2, 2), 0x80FF, np.uint16))
    assert corner(encode(deep, "TIFF"), 1) == [0x80]
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    turned = encode(Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)), "TIFF", exif=exif)
    assert images.measure(io.BytesIO(turned)) == (3, 2, 1)
    np.testing.assert_array_equal(images.decode(turned, None, 1)[..., 0], [[3, 0], [4, 1], [5, 2]])
    for mode, text in (("F", "32 bits, signed or floats"), ("I", "32 bits")):
        for see in (lambda x: images.decode(x, None, 1), lambda x: images.measure(io.BytesIO(x))):
            with pytest.raises(ValueError, match=rf"its samples have {text}.*; expected a TIFF of 8 or 16 bits"):
                see(encode(Image.new(mode, (2, 2)), "TIFF"))


def test_what_shines_through_is_white():
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    assert corner(encode(palette)) == [200, 0, 0]
    assert corner(encode(palette, transparency=1)) == [255, 255, 255]
    half = corner(encode(palette, transparency=bytes([255, 128])))
    np.testing.assert_allclose(half, [200 * 128 / 255 + 127, 127, 127], atol=1)
    np.testing.assert_allclose(corner(encode(Image.new("LA", (2, 2), (100, 128))), 1), 100 * 128 / 255 + 127, atol=1)
    assert corner(encode(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3))) == [255, 255, 255]
    assert corner(encode(Image.new("RGBA", (2, 2), (7, 8, 9, 0)), "WEBP", lossless=True)) == [255, 255, 255]
    for clear, seen in ((0x1234, 255), (0x1235, 0x12)):  # of 16 bits a pixel
        for colour, n in ((0, 1), (2, 3)):
            data = png(1, 1, b"\0" + n * b"\x12\x34", bits=16, colour=colour, clear=n * clear.to_bytes(2))
            if n == 1 or seen == 255:  # of colours Pillow reads the upper 8
                assert corner(data) == 3 * [seen] and corner(data, 1) == [seen]


def test_of_an_animation_the_first_frame_is_seen():
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("MPO", {})):
        data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert images.measure(io.BytesIO(data)) == (4, 6, 3)
        np.testing.assert_allclose(images.decode(data, None, 3), np.full((4, 6, 3), [255, 0, 0]), atol=2)


@pytest.mark.parametrize("crop", images.CROPS)
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_extreme_shapes_are_fitted(size, crop):
    image = Image.new("L", size, 77)
    assert (images.decode(encode(image), (8, 8), 1, crop) == 77).all()
    assert images.decode(encode(image), None, 3).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("data", [png(60_000, 60_000), png(60_000, 60_000, colour=2, bits=16), lying_jpeg()])
def test_a_bomb_is_known_by_its_header(data):
    """Before memory is taken for its pixels: 3.6 GB and more."""
    tracemalloc.start()
    try:
        for see in (lambda: images.measure(io.BytesIO(data)), lambda: images.decode(data, (8, 8), 3)):
            with pytest.raises(ValueError, match=r"6\d000x6\d000 pixels, and 134,217,728 are the most"):
                see()
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert images.plain(data) is None
