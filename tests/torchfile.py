"""Files as `torch.save` writes them, in both formats, without PyTorch: for tests of who reads them."""

import io
import struct
import zipfile

import numpy as np

KINDS = {
    "float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long",
    "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool",
}  # fmt: skip
DICT = b"ccollections\nOrderedDict\n)R"


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value) if value < 1 << 31 else b"\x8a\x08" + struct.pack("<q", value)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key, kind, size, legacy):
    view = b"N" if legacy else b""
    return b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu") + number(size) + view


def tensor(key, kind, size, offset, shape, strides, legacy):
    """A call of the function that makes a tensor of a storage."""
    arguments = storage(key, kind, size, legacy) + b"tQ" + number(offset) + numbers(shape) + numbers(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"\x89" + DICT + b"tR"


def program(entries):
    """A pickle that makes {name: value}, the values given as instructions; with the attributes of a state dict."""
    attributes = b"}" + text("_metadata") + DICT + b"sb"
    return b"\x80\x02" + DICT + b"(" + b"".join(text(k) + v for k, v in entries.items()) + b"u" + attributes + b"."


def archive(pickled, storages, root="archive"):
    """The format since PyTorch 1.6."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(f"{root}/data.pkl", pickled)
        file.writestr(f"{root}/byteorder", "little")
        for key, data in storages.items():
            file.writestr(f"{root}/data/{key}", data)
    return buffer.getvalue()


def row(pickled, storages, itemsize):
    """The format before it."""
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    system = b"\x80\x02}(" + text("protocol_version") + number(1001) + text("little_endian") + b"\x88u."
    keys = b"\x80\x02](" + b"".join(map(text, storages)) + b"e."
    raw = b"".join(struct.pack("<q", len(data) // itemsize[key]) + data for key, data in storages.items())
    return magic + b"\x80\x02" + number(1001) + b"." + system + pickled + keys + raw


def save(arrays, legacy=False):
    """The bytes of a file of {name: array}: each the view that it is of its own storage, transposed ones too."""
    entries, storages, itemsize = {}, {}, {}
    for i, (name, array) in enumerate(arrays.items()):
        key, base = str(i), array if array.base is None else array.base
        assert base.flags.c_contiguous and base.dtype == array.dtype
        offset = (array.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // array.itemsize
        strides = [step // array.itemsize for step in array.strides]
        storages[key], itemsize[key] = base.tobytes(), array.itemsize
        kind = KINDS[array.dtype.name]
        entries[name] = tensor(key, kind, base.size, offset, array.shape, strides, legacy)
    return row(program(entries), storages, itemsize) if legacy else archive(program(entries), storages)


def example():
    return {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.array([1.5, -2], np.float32)}
