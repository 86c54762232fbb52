"""Tensors are read from PyTorch's files, and nothing else is, or is done."""

import hashlib
import io
import os
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgan import tensorfile
from jaxgan.errors import InputError
from tests import torchfile

BOTH = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "row"])
WHOLE = {legacy: torchfile.save(torchfile.example(), legacy) for legacy in (False, True)}


def same(read, arrays):
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype and not read[name].flags.writeable
        np.testing.assert_array_equal(read[name], array)


def file_of(value, storages, legacy=False, itemsize=4):
    """A file with one entry, `a`."""
    pickled = torchfile.program({"a": value})
    if legacy:
        return torchfile.row(pickled, storages, dict.fromkeys(storages, itemsize))
    return torchfile.archive(pickled, storages)


@BOTH
@given(data=st.data())
@settings(max_examples=30)
def test_what_is_saved_is_read(legacy, data):
    arrays = {}
    for i in range(data.draw(st.integers(0, 3))):
        shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=4)))
        dtype = data.draw(st.sampled_from(sorted(torchfile.KINDS)))
        numbers = np.arange(int(np.prod(shape)), dtype=np.int64) % 100
        base = np.ascontiguousarray(numbers.astype(jnp.dtype(dtype))).reshape(shape).copy()
        arrays[f"layer.{i}"] = base.T if data.draw(st.booleans()) else base[1:] if shape and shape[0] else base
    same(tensorfile.parse(torchfile.save(arrays, legacy), "x"), arrays)


@BOTH
def test_what_pytorch_saves_is_read(legacy, tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    tensors = layer.state_dict()
    shared = torch.arange(12.0)
    tensors |= {"half": torch.ones(2).half(), "bfloat16": torch.arange(3.0).bfloat16(), "empty": torch.ones(0, 3)}
    tensors |= {"view": shared[2:8].reshape(2, 3).T, "again": shared, "parameter": torch.nn.Parameter(torch.ones(2))}
    for protocol in (2, 4):
        torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
        read = tensorfile.read(tmp_path / "x.pth")
        assert list(read) == list(tensors)
        for name, tensor in tensors.items():
            assert read[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(read[name].astype(np.float32), tensor.detach().float().numpy())


@BOTH
def test_the_digest_is_compared(legacy, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(WHOLE[legacy])
    digest = hashlib.sha256(WHOLE[legacy]).hexdigest()
    same(tensorfile.read(path, digest), torchfile.example())
    path.write_bytes(WHOLE[legacy][:-1] + b"?")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"another file or damaged: expected SHA-256 {digest}, found {found}"):
        tensorfile.read(path, digest)


def test_a_file_that_is_none(tmp_path, monkeypatch):
    for path in (tmp_path, tmp_path / "x.pth"):
        with pytest.raises(InputError, match="no file"):
            tensorfile.read(path)
    (tmp_path / "x.pth").write_bytes(WHOLE[False])
    monkeypatch.setattr(tensorfile, "LARGEST", 10)
    with pytest.raises(InputError, match="may have 10"):
        tensorfile.read(tmp_path / "x.pth")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_is_refused_and_not_run(protocol, tmp_path):
    path = tmp_path / "evil"
    pickled = pickle.dumps({"a": Evil(path)}, protocol)
    legacy = torchfile.row(pickled, {}, {})
    for data in (pickled, torchfile.archive(pickled, {}), legacy):
        with pytest.raises(InputError, match=f"asks for {os.system.__module__}.system, and only tensors"):
            tensorfile.parse(data, "evil.pth")
    for data in (pickle.dumps(Evil(path), 0), b"(S'touch x'\nios\nsystem\n.", b"cos\nsystem\n."):
        with pytest.raises(InputError, match=r"evil\.pth is no whole file"):
            tensorfile.parse(data, "evil.pth")
    assert not path.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "torch.load", "torch._utils.os", "numpy.ndarray", "collections.abc"])
def test_no_other_name_is_known(name):
    module, _, attribute = name.rpartition(".")
    with pytest.raises(InputError, match=f"asks for {name},"):
        tensorfile.parse(file_of(f"c{module}\n{attribute}\n".encode(), {}), "x")


FLOATS = np.arange(4, dtype=np.float32).tobytes()
CLAIMS = {
    "too long": (4, 0, (5,), (1,)),
    "beyond": (4, 3, (2,), (1,)),
    "stride": (4, 0, (2, 2), (3, 1)),
    "repeats": (4, 0, (1 << 40,), (0,)),
    "offset": (4, 1 << 40, (1,), (1,)),
    "huge": (1 << 40, 0, (1 << 40,), (1,)),
    "overflow": (4, 0, (1 << 61, 1 << 61), (0, 0)),
    "ranks": (4, 0, (2, 2), (1,)),
    "negative": (4, 0, (-2,), (1,)),
    "backwards": (4, 3, (2,), (-1,)),
    "before": (4, -1, (1,), (1,)),
    "storage is longer": (5, 0, (1,), (1,)),
    "storage is shorter": (3, 0, (1,), (1,)),
}


@BOTH
@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_are_held_against_the_bytes(claim, legacy):
    with pytest.raises(InputError, match="no whole file"):
        tensorfile.parse(file_of(torchfile.tensor("0", "Float", *CLAIMS[claim], legacy), {"0": FLOATS}, legacy), "x")


@BOTH
def test_storages_that_are_not_there(legacy):
    value = torchfile.tensor("0", "Float", 4, 0, (4,), (1,), legacy)
    for storages in ({}, {"1": FLOATS}):
        with pytest.raises(InputError):
            tensorfile.parse(file_of(value, storages, legacy), "x")
    other = torchfile.tensor("0", "Int", 4, 0, (4,), (1,), legacy)
    pickled = torchfile.program({"a": value, "b": other})
    both = torchfile.row(pickled, {"0": FLOATS}, {"0": 4}) if legacy else torchfile.archive(pickled, {"0": FLOATS})
    with pytest.raises(InputError, match="in two ways"):
        tensorfile.parse(both, "x")


VALUES = {
    "None": b"N", "a number": b"K\x01", "a text": torchfile.text("x"), "a dict": b"}",
    "a kind": b"ctorch\nFloatStorage\n",
    "a storage": torchfile.storage("0", "Float", 4, False) + b"tQ",
    "a call of a kind": b"ctorch\nFloatStorage\n)R",
    "a call of a text": torchfile.text("x") + b")R",
    "a parameter of nothing": b"ctorch._utils\n_rebuild_parameter\n(Nt" + b"R",
    "a tensor of nothing": b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    "a storage of nothing": b")Q",
    "a storage by a number": b"K\x01Q",
    "a dict by a list": b"})s",
    "attributes of a number": b"K\x01}b",
    "an empty stack": b"0000000000.",
    "no mark": b"ttttt",
    "what was not kept": b"h\x63",
    "a set": b"\x8f",
    "a copy": b"N2",
    "an extension": b"\x82\x01",
    "an ordered dict of pairs": b"ccollections\nOrderedDict\n(](N" + b"NetR",
}  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_anything_but_a_tensor(value):
    with pytest.raises(InputError, match=r"^x is no whole file of PyTorch tensors: .+"):
        tensorfile.parse(file_of(VALUES[value], {"0": FLOATS}), "x")


def test_keys_that_take_for_ever():
    """A tuple of a tuple twice, of that twice ...: its hash would visit 2^60 of them."""
    key = b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    with pytest.raises(InputError, match="fills a dict"):
        tensorfile.parse(torchfile.archive(b"\x80\x02}" + key + b"Ns.", {}), "x")


def test_an_index_that_is_too_long():
    with pytest.raises(InputError, match="index has more than"):
        tensorfile.parse(torchfile.archive(b"X" + struct.pack("<I", 1 << 22) + bytes(1 << 22) + b"N.", {}), "x")


def test_zips_of_another_kind():
    def zipped(*names, compression=zipfile.ZIP_STORED, content=b"}."):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as file:
            for name in names:
                file.writestr(name, content)
        return buffer.getvalue()

    assert tensorfile.parse(zipped("a/data.pkl"), "x") == {}
    compressed = zipped("a/data.pkl", compression=zipfile.ZIP_DEFLATED, content=bytes(1 << 20))
    for data, match in (
        (zipped("x.txt"), "0 entries"),
        (zipped("a/data.pkl", "b/data.pkl"), "2 entries"),
        (compressed, "another kind"),
        (zipped("a/data.pkl", "a/byteorder"), "big-endian"),
        (zipped("a/data.pkl", content=b"N."), "holds a NoneType"),
        (zipped("a/data.pkl", content=b"}K\x01Ns."), "entry 1"),
        (zipped("a/data.pkl", content=b""), "damaged|pickle exhausted"),
        (b"PK\x03\x04" + b"PK\x01\x02" * 70_000, "more than 65,536 entries"),
    ):
        with pytest.raises(InputError, match=match):
            tensorfile.parse(data, "x")
    # The same bytes named by many entries, which together claim more than there are.
    whole = zipped("a/data.pkl", "a/data/0", content=b"}" + b"N0" * 500 + b".")
    at = whole.index(b"PK\x01\x02")
    entry = whole[whole.rindex(b"PK\x01\x02") : whole.rindex(b"PK\x05\x06")]
    extra = b"".join(entry.replace(b"a/data/0", b"a/data/%d" % i) for i in range(1, 10))
    directory = whole[at : whole.rindex(b"PK\x05\x06")] + extra
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 11, 11, len(directory), at, 0)
    with pytest.raises(InputError, match="claim more bytes"):
        tensorfile.parse(whole[:at] + directory + end, "x")


@pytest.mark.parametrize(
    "data", [b"", b"no", b"PK\x03\x04", bytes(100), b"\x93NUMPY", b"\x80\x02K\x01.", b"\x89PNG\r\n"]
)
def test_other_files(data):
    with pytest.raises(InputError, match=r"^x is no whole file of PyTorch tensors: .+"):
        tensorfile.parse(data, "x")


@BOTH
def test_no_shorter_file_is_whole(legacy):
    for length in range(len(WHOLE[legacy])):
        with pytest.raises(InputError):
            tensorfile.parse(WHOLE[legacy][:length], "x")
    if legacy:
        with pytest.raises(InputError, match="1 bytes after"):
            tensorfile.parse(WHOLE[legacy] + b"\0", "x")


@BOTH
@given(at=st.integers(0, max(map(len, WHOLE.values())) - 1), value=st.integers(0, 255))
@settings(max_examples=300)
def test_an_altered_byte_is_an_error_or_a_number(legacy, at, value):
    """No other exception, whatever the byte; a zip has sums of its own, the older format has not."""
    data = bytearray(WHOLE[legacy])
    data[at % len(data)] = value
    try:
        read = tensorfile.parse(bytes(data), "x")
    except InputError as error:
        assert str(error).startswith("x is no whole file") and "\n" not in str(error)
    else:
        assert sum(array.nbytes for array in read.values()) <= len(data)


@given(data=st.binary(max_size=60))
@settings(max_examples=300)
def test_any_pickle_is_an_error_or_a_dict(data):
    for whole in (data, torchfile.archive(data, {}), torchfile.row(data, {}, {})):
        try:
            assert tensorfile.parse(whole, "x") == {}
        except InputError as error:
            assert "\n" not in str(error)
