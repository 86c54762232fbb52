"""Every malformed input of the table is one line and leaves nothing; random ones are refused or read, and never crash.

`python -m pytest -m slow tests/test_malformed.py` is the long form: each case as a program, and far more random bytes.
"""

import importlib
import io
import json
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from experiments import image
from jaxgan import archives, checkpoint, flags, images, sources, trained
from jaxgan.errors import InputError
from tests import malformed
from tests.malformed_data import arrays, encoded
from tests.runs import compile_quickly, here

__all__ = ["compile_quickly"]  # a fixture

CASES = list(malformed.cases())
LONG = pytest.param(3000, marks=pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def forget():
    yield
    malformed.forget_run()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_input_is_one_line_and_leaves_nothing(case, tmp_path, capfd):
    argv = malformed.arguments(case, tmp_path)
    before, start = malformed.listing(tmp_path), time.monotonic()
    code, out, err = here(capfd, *argv, script=importlib.import_module(f"experiments.{case.script}"))
    left = sorted(malformed.listing(tmp_path) - before)
    found = {"code": code, "seconds": time.monotonic() - start, "out": out, "err": err, "left": left}
    assert malformed.problems(case, found) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_so_it_is_from_outside(case, tmp_path):
    assert malformed.problems(case, malformed.refuse(case, tmp_path)) == []


def test_the_table_is_long_and_its_names_differ():
    assert len({case.name for case in CASES}) == len(CASES) >= 200
    assert {case.script for case in CASES} == {"image", "generate", "evaluate"}


# --- random ones


@st.composite
def damaged(draw, seeds):
    """Bytes of one of the seeds, a few of them changed, lost, added, or lost from there to the end."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind, value = draw(st.sampled_from(["set", "flip", "lose", "add", "cut"])), draw(st.integers(0, 255))
        if kind in ("set", "flip") and data:
            data[at] = value if kind == "set" else data[at] ^ (1 << value % 8)
        elif kind == "add":
            data[at:at] = bytes([value])
        else:
            del data[at : None if kind == "cut" else at + 1 + value % 8]
    return bytes(data)


def examples(count, *given):
    def run(check):
        hypothesis.settings(max_examples=count)(hypothesis.given(*given)(check))()

    return run


FORMS = [("PNG", mode) for mode in ("RGB", "L", "P", "1", "RGBA", "LA")] + [("JPEG", "CMYK"), ("JPEG", "L")]
SEEDS = [encoded(form, (20, 15), mode) for form, mode in FORMS] + [encoded("WEBP", (20, 15)), b"", bytes(40)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of damaged EXIF
@pytest.mark.parametrize("count", [300, LONG])
def test_random_bytes_are_an_image_as_their_header_says_or_unreadable(count):
    @examples(count, st.one_of(st.binary(max_size=200), damaged(SEEDS)))
    def check(data):
        try:
            h, w, _ = images.measure(io.BytesIO(data))
            hypothesis.assume(h * w < 2**20)  # more is true, and takes its time
            pixels = images.decode(data, None, 3)
        except images.UNREADABLE:
            return
        assert pixels.shape == (h, w, 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize("count", [100, LONG])
def test_random_bytes_are_an_archive_or_none(count, tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "x.npz"
    pixels, label = rng.integers(0, 256, (5, 4, 4), np.uint8), np.arange(5)
    plain = io.BytesIO()
    np.savez(plain, image=pixels, label=label)

    @examples(count, st.one_of(st.binary(max_size=100), damaged([plain.getvalue(), arrays(image=pixels, label=label)])))
    def check(data):
        file.write_bytes(data)
        try:
            source = archives.npz("npz:x", str(file), "train", None, "center", 0)
        except InputError as error:
            assert "x.npz" in str(error) or "npz:x" in str(error)
            return
        found = source.read(np.arange(source.num_examples))
        # Every bit of the arrays is under a checksum; a shape or a name is not always.
        assert found["image"].tobytes() == pixels.tobytes()


@pytest.mark.parametrize("count", [100, LONG])
def test_random_bytes_are_a_config_or_none(count, tmp_path):
    stored = (malformed.good_run() / "config.json").read_bytes()
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    )
    names = st.sampled_from(["width", "latent", "shape", "num_classes", "dtype", "path"]) | st.text(max_size=9)
    texts = st.builds(
        lambda path, arguments: json.dumps(
            {"config": {}, "networks": {"generator": {"path": path, "arguments": arguments}}}
        ).encode(),
        st.just("jaxgan.models.dcgan:Generator") | values,
        st.dictionaries(names, values) | values,
    )

    @examples(count, st.one_of(st.binary(max_size=100), damaged([stored]), texts))
    def check(data):
        (tmp_path / "config.json").write_bytes(data)
        try:
            found = flags.read(tmp_path)
            module = trained.build(found["networks"]["generator"]) if "networks" in found else None
            assert module is None or type(module).__module__.startswith("jaxgan.models.")
        except (InputError, KeyError, TypeError) as error:
            # Of the two, only what lies beyond `networks`, which is looked into here as `load` does not.
            assert isinstance(error, InputError) or "generator" in str(error) or "indices" in str(error)


@pytest.mark.parametrize("count", [25, pytest.param(300, marks=pytest.mark.slow)])
def test_a_checkpoint_of_flipped_bits_is_whole_or_refused(count, tmp_path):
    """Some bits of a checkpoint are padding; none of those that matter may change unseen."""
    good = malformed.good_run() / "checkpoints"
    before = checkpoint.read(good)["players"]["gen"]["params"]["Dense_0"]["kernel"]
    copy = tmp_path / "checkpoints"
    names = sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file() and path.stat().st_size)
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((good / name).read_bytes())

    @examples(count, st.sampled_from(names), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
    def check(name, share, bit):
        data = bytearray((good / name).read_bytes())
        data[int(share * len(data))] ^= 1 << bit
        (copy / name).write_bytes(data)
        try:
            after = checkpoint.read(copy)["players"]["gen"]["params"]["Dense_0"]["kernel"]
            np.testing.assert_array_equal(after, before)
        except InputError:
            pass
        finally:
            (copy / name).write_bytes((good / name).read_bytes())


@pytest.mark.parametrize("count", [300, LONG])
def test_random_flags_are_a_config_or_refused(count):
    names = st.sampled_from(["steps", "size", "learning_rate", "conditional", "metrics", "workdir", "preset", "x", ""])
    alphabet = st.characters(codec="utf-8") | st.sampled_from("0123456789.,-=einfa\0\n\udcff")
    texts = st.builds(lambda name, value: f"--{name}={value}", names, st.text(alphabet, max_size=20))

    @examples(count, st.lists(st.one_of(texts, st.text(alphabet, max_size=8)), max_size=3))
    def check(argv):
        hypothesis.assume(not any(text.startswith(("-h", "--h", "--f")) for text in argv))
        try:
            config = flags.parse(image.Config, image.PRESETS, argv)
        except InputError as error:
            assert str(error)
        else:
            assert isinstance(config, image.Config)


def test_labels_may_have_gaps_but_no_bounds(tmp_path):
    pixels = np.zeros((3, 2, 2), np.uint8)
    assert sources.from_arrays("x", pixels, np.array([0, 999, 7])).num_classes == 1000
    with pytest.raises(InputError, match="label 131072 of 3 images"):
        sources.from_arrays("x", pixels, np.array([0, 2**17, 7]))
