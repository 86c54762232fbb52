"""Inception against the same network in PyTorch, its resizings against their definitions, its weights' file."""

import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgan.errors import InputError
from jaxgan.layers import resize
from jaxgan.models import inception
from tests import torchfile

# Programs that run once: without LLVM's optimiser they compile in half the time.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def convolutions():
    """{name: (outputs, inputs, height, width)} of the distributed file, block by block as its module is written."""
    shapes = {}

    def add(name, inputs, outputs, height, width=None):
        shapes[name] = (outputs, inputs, height, width or height)

    def block_a(block, inputs, pooled):
        add(f"{block}.branch1x1", inputs, 64, 1)
        add(f"{block}.branch5x5_1", inputs, 48, 1)
        add(f"{block}.branch5x5_2", 48, 64, 5)
        add(f"{block}.branch3x3dbl_1", inputs, 64, 1)
        add(f"{block}.branch3x3dbl_2", 64, 96, 3)
        add(f"{block}.branch3x3dbl_3", 96, 96, 3)
        add(f"{block}.branch_pool", inputs, pooled, 1)

    def block_c(block, inner):
        add(f"{block}.branch1x1", 768, 192, 1)
        add(f"{block}.branch7x7_1", 768, inner, 1)
        add(f"{block}.branch7x7_2", inner, inner, 1, 7)
        add(f"{block}.branch7x7_3", inner, 192, 7, 1)
        add(f"{block}.branch7x7dbl_1", 768, inner, 1)
        for i, size in ((2, (7, 1)), (3, (1, 7)), (4, (7, 1))):
            add(f"{block}.branch7x7dbl_{i}", inner, inner, *size)
        add(f"{block}.branch7x7dbl_5", inner, 192, 1, 7)
        add(f"{block}.branch_pool", 768, 192, 1)

    def block_e(block, inputs):
        add(f"{block}.branch1x1", inputs, 320, 1)
        add(f"{block}.branch3x3_1", inputs, 384, 1)
        add(f"{block}.branch3x3dbl_1", inputs, 448, 1)
        add(f"{block}.branch3x3dbl_2", 448, 384, 3)
        for branch in ("branch3x3_2", "branch3x3dbl_3"):
            add(f"{block}.{branch}a", 384, 384, 1, 3)
            add(f"{block}.{branch}b", 384, 384, 3, 1)
        add(f"{block}.branch_pool", inputs, 192, 1)

    add("Conv2d_1a_3x3", 3, 32, 3)
    add("Conv2d_2a_3x3", 32, 32, 3)
    add("Conv2d_2b_3x3", 32, 64, 3)
    add("Conv2d_3b_1x1", 64, 80, 1)
    add("Conv2d_4a_3x3", 80, 192, 3)
    block_a("Mixed_5b", 192, 32)
    block_a("Mixed_5c", 256, 64)
    block_a("Mixed_5d", 288, 64)
    add("Mixed_6a.branch3x3", 288, 384, 3)
    add("Mixed_6a.branch3x3dbl_1", 288, 64, 1)
    add("Mixed_6a.branch3x3dbl_2", 64, 96, 3)
    add("Mixed_6a.branch3x3dbl_3", 96, 96, 3)
    for block, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        block_c(block, inner)
    add("Mixed_7a.branch3x3_1", 768, 192, 1)
    add("Mixed_7a.branch3x3_2", 192, 320, 3)
    add("Mixed_7a.branch7x7x3_1", 768, 192, 1)
    add("Mixed_7a.branch7x7x3_2", 192, 192, 1, 7)
    add("Mixed_7a.branch7x7x3_3", 192, 192, 7, 1)
    add("Mixed_7a.branch7x7x3_4", 192, 192, 3)
    block_e("Mixed_7b", 1280)
    block_e("Mixed_7c", 2048)
    return shapes


@functools.cache
def entries():
    """The layout of the distributed file with random numbers, of which each is used: no mean 0, no scale 1."""
    rng, result = np.random.default_rng(0), {}
    for name, shape in convolutions().items():
        kernel = rng.standard_normal(shape, np.float32)
        result[f"{name}.conv.weight"] = kernel * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        for key, low, high in (("weight", 0.8, 1.2), ("bias", -0.2, 0.3), ("running_mean", -0.2, 0.2)):
            result[f"{name}.bn.{key}"] = rng.uniform(low, high, shape[0]).astype(np.float32)
        # Some variances as small as the constant that is added to them.
        result[f"{name}.bn.running_var"] = rng.choice([0.7, 1.0, 1.3], shape[0]).astype(np.float32)
    result["Conv2d_1a_3x3.bn.running_var"][:4] = 1e-3
    result["fc.weight"] = rng.standard_normal((1008, 2048), np.float32) / 32
    result["fc.bias"] = rng.standard_normal(1008, np.float32)
    return result


def torch_network(tensors, x):
    """Bytes (b, 3, 299, 299) -> features, logits, as tensors."""
    import torch.nn.functional as F
    from torch import cat

    def unit(name, x, stride=1, padding=0):
        x = F.conv2d(x, tensors[f"{name}.conv.weight"], None, stride, padding)
        mean, var, scale, bias = (
            tensors[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, var, scale, bias, False, 0.0, 0.001))

    def averaged(name, x):
        return unit(name, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))

    def block_a(x, block):
        five = unit(f"{block}.branch5x5_2", unit(f"{block}.branch5x5_1", x), 1, 2)
        three = unit(f"{block}.branch3x3dbl_2", unit(f"{block}.branch3x3dbl_1", x), 1, 1)
        three = unit(f"{block}.branch3x3dbl_3", three, 1, 1)
        return cat([unit(f"{block}.branch1x1", x), five, three, averaged(f"{block}.branch_pool", x)], 1)

    def block_c(x, block):
        seven = unit(f"{block}.branch7x7_2", unit(f"{block}.branch7x7_1", x), 1, (0, 3))
        seven = unit(f"{block}.branch7x7_3", seven, 1, (3, 0))
        double = unit(f"{block}.branch7x7dbl_1", x)
        for i, padding in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
            double = unit(f"{block}.branch7x7dbl_{i}", double, 1, padding)
        return cat([unit(f"{block}.branch1x1", x), seven, double, averaged(f"{block}.branch_pool", x)], 1)

    def block_e(x, block, pooled):
        three = unit(f"{block}.branch3x3_1", x)
        double = unit(f"{block}.branch3x3dbl_2", unit(f"{block}.branch3x3dbl_1", x), 1, 1)
        parts = [unit(f"{block}.branch1x1", x)]
        for name, y in (("branch3x3_2", three), ("branch3x3dbl_3", double)):
            parts += [unit(f"{block}.{name}a", y, 1, (0, 1)), unit(f"{block}.{name}b", y, 1, (1, 0))]
        return cat([*parts, pooled], 1)

    x = (x - 128) / 128
    x = unit("Conv2d_1a_3x3", x, 2)
    x = unit("Conv2d_2a_3x3", x)
    x = F.max_pool2d(unit("Conv2d_2b_3x3", x, 1, 1), 3, 2)
    x = F.max_pool2d(unit("Conv2d_4a_3x3", unit("Conv2d_3b_1x1", x)), 3, 2)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = block_a(x, block)
    double = unit("Mixed_6a.branch3x3dbl_2", unit("Mixed_6a.branch3x3dbl_1", x), 1, 1)
    double = unit("Mixed_6a.branch3x3dbl_3", double, 2)
    x = cat([unit("Mixed_6a.branch3x3", x, 2), double, F.max_pool2d(x, 3, 2)], 1)
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = block_c(x, block)
    three = unit("Mixed_7a.branch3x3_2", unit("Mixed_7a.branch3x3_1", x), 2)
    seven = unit("Mixed_7a.branch7x7x3_2", unit("Mixed_7a.branch7x7x3_1", x), 1, (0, 3))
    seven = unit("Mixed_7a.branch7x7x3_4", unit("Mixed_7a.branch7x7x3_3", seven, 1, (3, 0)), 2)
    x = cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
    x = block_e(x, "Mixed_7b", averaged("Mixed_7b.branch_pool", x))
    x = block_e(x, "Mixed_7c", unit("Mixed_7c.branch_pool", F.max_pool2d(x, 3, 1, 1)))
    features = x.mean((2, 3))
    return features, features @ tensors["fc.weight"].T


def resized_by_loops(image):
    """TensorFlow 1's bilinear resizing of (h, w, c), pixel by pixel."""
    height, width, channels = image.shape
    result = np.empty((299, 299, channels))
    # TensorFlow computes coordinates in float32.
    step_y, step_x = (np.float32(n) / np.float32(299) for n in (height, width))
    for i in range(299):
        for j in range(299):
            y, x = np.float32(i) * step_y, np.float32(j) * step_x
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            above = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
            below = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
            result[i, j] = above + (below - above) * (y - top)
    return result


def random_bytes(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def bytes_of(prepared):
    return np.asarray(prepared) * 128 + 128


def test_the_same_numbers_as_in_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    data = torchfile.save(entries(), legacy=True)
    path.write_bytes(data)
    params = inception.weights(path, sha256=hashlib.sha256(data).hexdigest())
    images = random_bytes(2, 24, 31, 3)
    features, logits = quick(inception.Inception().apply)(params, images)
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    resized = resized_by_loops(images.transpose(1, 2, 0, 3).reshape(24, 31, 6).astype(np.float64))
    resized = torch.tensor(resized.reshape(299, 299, 2, 3).transpose(2, 3, 0, 1).astype(np.float32))
    tensors = {name: torch.tensor(value) for name, value in entries().items()}
    for name, value in tensors.items():
        if value.ndim == 4:
            tensors[name] = value.contiguous(memory_format=torch.channels_last)  # half the time
    with torch.inference_mode():
        theirs = torch_network(tensors, resized.contiguous(memory_format=torch.channels_last))
    for ours, their in zip((features, logits), theirs, strict=True):
        their = their.numpy()
        # What differs from image to image is what counts, and is a part of the whole.
        scale = np.abs(their[0] - their[1]).max()
        assert scale > 0.05 * np.abs(their).max()
        np.testing.assert_allclose(ours, their, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("size", [(5, 8), (31, 300), (299, 1)])
def test_resizing_of_tensorflow(size):
    image = random_bytes(*size, 3)
    ours = bytes_of(inception.prepare(image[None]))[0]
    np.testing.assert_allclose(ours, resized_by_loops(image.astype(np.float64)), atol=2e-3)


@pytest.mark.parametrize("size", [(32, 32), (400, 37), (1, 2), (299, 511), (1024, 300)])
def test_resizing_of_pillow(size):
    image = random_bytes(*size, 3)
    ours = bytes_of(inception.prepare(image[None], resize.antialias))[0]
    for c in range(3):
        theirs = Image.fromarray(image[..., c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(ours[..., c], np.clip(np.asarray(theirs), 0, 255), atol=1e-3)


@pytest.mark.parametrize("resizing", resize.RESIZINGS.values(), ids=resize.RESIZINGS)
def test_an_image_of_its_size_stays_itself(resizing):
    np.testing.assert_allclose(resizing(299, 299), np.eye(299), atol=1e-5)
    np.testing.assert_allclose(resizing(40, 299).sum(1), 1, atol=1e-5)
    image = random_bytes(1, 299, 299, 3)
    np.testing.assert_array_equal(bytes_of(inception.prepare(image, resizing)), image)


def test_images_with_alpha_are_seen_on_white():
    image = random_bytes(2, 16, 12, 4)
    white = np.stack([Image.alpha_composite(Image.new("RGBA", (12, 16), "white"), Image.fromarray(x)) for x in image])
    expected = bytes_of(inception.prepare(white[..., :3]))
    for given in (image, image.astype(np.float32) / 127.5 - 1):
        np.testing.assert_allclose(bytes_of(inception.prepare(given)), expected, atol=1)
    opaque = np.concatenate([image[..., :3], np.full((2, 16, 12, 1), 255, np.uint8)], -1)
    np.testing.assert_allclose(inception.prepare(opaque), inception.prepare(image[..., :3]), atol=1e-6)


def test_bytes_and_numbers_are_the_same_images():
    image = random_bytes(2, 16, 12, 1)
    as_numbers = image.astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(inception.quantise(as_numbers), image)
    prepared = inception.prepare(image)
    np.testing.assert_allclose(inception.prepare(as_numbers), prepared, atol=1e-5)
    assert prepared.shape == (2, 299, 299, 3) and prepared.dtype == jnp.float32
    for c in (1, 2):  # grey
        np.testing.assert_array_equal(prepared[..., c], prepared[..., 0])
    edges = inception.quantise(jnp.array([-1.5, -1, -0.997, 0.997, 1, 2]))
    assert edges.tolist() == [0, 0, 0, 255, 255, 255] and edges.dtype == jnp.uint8


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 32, 32, 2), (1, 32, 32, 5), (1, 0, 32, 3)])
def test_what_is_no_image(shape):
    with pytest.raises(InputError, match="looks at images"):
        inception.prepare(np.zeros(shape, np.uint8))


def test_pools():
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 2)).astype(np.float32)
    mean, largest = inception.mean_pool(x), inception.max_pool(x - 10)
    for i in range(4):
        for j in range(5):
            near = x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            np.testing.assert_allclose(mean[0, i, j], near.mean((0, 1)), atol=1e-6)
            np.testing.assert_allclose(largest[0, i, j], near.max((0, 1)) - 10, atol=1e-6)
    np.testing.assert_array_equal(inception.halve(x)[0, 0], np.stack([x[0, :3, j : j + 3].max((0, 1)) for j in (0, 2)]))


def test_the_published_number_of_parameters():
    shapes = {name: value.shape for name, value in entries().items()}
    learnt = sum(int(np.prod(shape)) for name, shape in shapes.items() if "running" not in name)
    # Torchvision's Inception-v3: 27,161,264 for 1,000 classes, 3,326,696 of them in the auxiliary head.
    assert learnt == 27_161_264 - 3_326_696 + 8 * 2049 == 23_850_960
    # The numbers alone are nearly the whole of the distributed file.
    assert 0 < 95_628_359 - 4 * sum(int(np.prod(shape)) for shape in shapes.values()) < 100_000
    params = jax.eval_shape(inception.Inception().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.uint8))
    folded = sum(shape[0] for name, shape in shapes.items() if name.endswith("bn.weight"))
    assert sum(x.size for x in jax.tree.leaves(params)) == learnt - folded - 1008


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shapes_and_types(dtype):
    network = inception.Inception(resize.antialias, dtype)
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    features, logits = jax.eval_shape(network.apply, params, jnp.zeros((3, 20, 30, 1)))
    assert features.shape == (3, 2048) and logits.shape == (3, 1008)
    assert features.dtype == logits.dtype == jnp.float32


def test_converted_weights_fit():
    params = inception.convert({**entries(), "Conv2d_1a_3x3.bn.num_batches_tracked": np.array(7)}, "x")
    expected = jax.eval_shape(inception.Inception().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    assert jax.tree.structure(params) == jax.tree.structure(expected)


def test_entries_that_do_not_fit_are_named():
    wrong = {**entries(), "Mixed_5b.branch1x1.conv.weight": np.zeros((64, 192, 3, 3), np.float32)}
    wrong |= {"AuxLogits.fc.bias": np.zeros(3), "fc.bias": np.full(1008, np.nan)}
    wrong["Mixed_7b.branch1x1.bn.running_var"] = np.full(320, -1e-6)
    del wrong["Mixed_7c.branch_pool.bn.running_var"]
    for name, match in (
        ("Mixed_7c.branch_pool.bn.running_var", "Mixed_7c.branch_pool.bn.running_var is missing"),
        ("AuxLogits.fc.bias", "AuxLogits.fc.bias is unknown"),
        ("Mixed_5b.branch1x1.conv.weight", r"has shape \(64, 192, 3, 3\), expected \(64, 192, 1, 1\)"),
        ("fc.bias", "fc.bias is not finite"),
        ("Mixed_7b.branch1x1.bn.running_var", "Mixed_7b.branch1x1.bn.running_var is negative"),
    ):
        one = {**entries(), name: wrong[name]} if name in wrong else {k: v for k, v in entries().items() if k != name}
        with pytest.raises(InputError, match=f"x.pth does not hold the weights.*{match}"):
            inception.convert(one, "x.pth")
    with pytest.raises(InputError, match="and 470 more"):
        inception.convert({"a": np.zeros(1)}, "x.pth")


def test_a_file_that_is_not_there(tmp_path):
    for arguments, match in (
        ((), "name its path"),
        ((None, tmp_path), f"put it into {tmp_path / 'inception'}"),
        ((tmp_path / "mine.pth", tmp_path), f"no file '{tmp_path / 'mine.pth'}'"),
    ):
        with pytest.raises(InputError, match=match) as raised:
            inception.weights(*arguments)
        assert inception.FILE in str(raised.value) and "pytorch-fid" in str(raised.value)


def test_another_file_is_refused(tmp_path):
    path = Path(tmp_path / "inception" / inception.FILE)
    path.parent.mkdir()
    path.write_bytes(torchfile.save(torchfile.example()))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert inception.FILE.endswith(f"-{inception.SHA256[:8]}.pth") and len(inception.SHA256) == 64
    with pytest.raises(InputError, match=f"expected SHA-256 {inception.SHA256}, found {found}"):
        inception.weights(None, tmp_path)
    with pytest.raises(InputError, match="does not hold the weights"):
        inception.weights(None, tmp_path, sha256=None)
