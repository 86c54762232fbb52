"""The tensors of a PyTorch file (`torch.save` of a dict from names to tensors), without PyTorch and without its pickle.

Such a file holds raw numbers and, beside them, a pickle: a program for a small stack machine, which may call any
function there is. Here it is not unpickled. Its instructions are read one by one, those that make texts, numbers,
tuples, lists and dicts are followed, and the only things it can call make tensors of the numbers in the same file.

Both formats: the zip of PyTorch since 1.6, and the row of pickles before it.
"""

import dataclasses
import hashlib
import io
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxgan import files
from jaxgan.errors import InputError

LARGEST = 1 << 32  # bytes of a file; it is read into memory as a whole
PROGRAM = 1 << 21  # bytes of its pickle: a tensor takes some 200, and a byte can make an object of 64
ENTRIES = 1 << 16  # of a zip
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the older format

DTYPES = {
    "Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": jnp.bfloat16,
    "Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_,
}  # fmt: skip


def read(path: epath.PathLike, sha256: str | None = None) -> dict[str, np.ndarray]:
    """{name: read-only array} of a file, whose digest is compared with `sha256` (64 hex digits), if there is one.

    InputError: no file, another digest, or anything in it but a dict of tensors.
    """
    path = epath.Path(path)
    if not files.is_plain(path):
        raise InputError(f"no file {str(path)!r}; expected a PyTorch file of tensors")
    try:
        length = path.stat().length
        if length > LARGEST:
            raise InputError(f"{path} has {length:,} bytes; a file of tensors may have {LARGEST:,}")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise InputError(f"{path} is another file or damaged: expected SHA-256 {sha256}, found {found}")
    return parse(data, str(path))


def parse(data: bytes, name: str) -> dict[str, np.ndarray]:
    """{name: read-only array} of the bytes of a file; `name` is for the error.

    Takes the memory of `data` once more at most, and a bounded rest, whatever sizes the file claims.
    """
    try:
        is_zip = data.startswith(b"PK\x03\x04")
        tensors, numbers = _zipped(data) if is_zip else _in_a_row(data)
        if not isinstance(tensors, dict):
            raise ValueError(f"it holds a {type(tensors).__name__} in place of a dict of tensors")
        arrays = {}
        for key, tensor in tensors.items():
            if not isinstance(key, str) or not isinstance(tensor, _Tensor):
                raise ValueError(f"its entry {key!r:.80} is no tensor but a {type(tensor).__name__}")
            arrays[key] = _array(tensor, numbers[tensor.storage.key])
        return arrays
    except (ValueError, zipfile.BadZipFile, RuntimeError) as error:  # RuntimeError: a zip encrypted, or of a newer kind
        reason = next(iter(str(error).splitlines()), "")
    except (ArithmeticError, LookupError, TypeError, EOFError, struct.error) as error:
        reason = f"it is damaged ({type(error).__name__})"
    raise InputError(f"{name} is no whole file of PyTorch tensors: {reason:.300}")


# --- what a pickle may speak of


class _Refused(ValueError):
    """It wants more than tensors."""


@dataclasses.dataclass(frozen=True)
class _Kind:
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    size: int  # of numbers


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int  # this and the strides count numbers
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Function:
    call: Callable[..., Any]


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _storage(tag: Any, kind: Any, key: Any, device: Any, size: Any, view: Any = None) -> _Storage:
    if tag != "storage" or not isinstance(kind, _Kind) or not isinstance(key, str) or not _is_size(size):
        raise ValueError("it describes a storage in an unknown way")
    if view is not None:
        raise ValueError("it has a storage that is a view of another")
    return _Storage(kind.dtype, key, size)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *gradient: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or type(shape) is not tuple or type(strides) is not tuple:
        raise ValueError("it describes a tensor in an unknown way")
    if len(shape) != len(strides) or len(shape) > 32 or not all(map(_is_size, (offset, *shape, *strides))):
        raise ValueError("a tensor's offset, shape and strides are not what they can be")
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *gradient: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise ValueError("it makes a parameter of something else than a tensor")
    return tensor


def _ordered(*items: Any) -> dict:
    if items:
        raise ValueError("it makes an OrderedDict in an unknown way")
    return {}


GLOBALS: dict[str, _Kind | _Function] = {
    "collections.OrderedDict": _Function(_ordered),
    "torch._utils._rebuild_tensor": _Function(_tensor),
    "torch._utils._rebuild_tensor_v2": _Function(_tensor),
    "torch._utils._rebuild_parameter": _Function(_parameter),
    **{f"torch.{name}Storage": _Kind(np.dtype(dtype)) for name, dtype in DTYPES.items()},
}


def _named(name: str) -> _Kind | _Function:
    if name not in GLOBALS:
        raise _Refused(f"it asks for {name}, and only tensors are read from it")
    return GLOBALS[name]


CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
}  # fmt: skip
GIVEN = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}  # their own argument
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _follow(stream: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """What the next pickle of a stream makes, and the storages that it names."""
    start, stack, marks = stream.tell(), [], []  # type: int, list[Any], list[int]
    memo: dict[int, Any] = {}
    storages: dict[str, _Storage] = {}

    def since_mark() -> list[Any]:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    def fill(target: Any, items: list[Any]) -> None:
        keys = items[::2]
        # Texts and integers alone: to hash a tuple of tuples of ... may take for ever.
        if type(target) is not dict or len(items) % 2 or not all(type(key) in (str, int) for key in keys):
            raise ValueError("it fills a dict in an unknown way")
        target.update(zip(keys, items[1::2], strict=True))

    def extend(target: Any, items: list[Any]) -> None:
        if type(target) is not list:
            raise ValueError("it fills a list in an unknown way")
        target += items

    instructions: Iterator[tuple[Any, Any, Any]] = pickletools.genops(stream)
    for opcode, argument, at in instructions:
        if at - start > PROGRAM:
            raise ValueError(f"its index has more than {PROGRAM:,} bytes")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                break
            case "MARK":
                marks.append(len(stack))
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name]())
            case name if name in GIVEN:
                stack.append(argument)
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case name if name in TUPLES:
                items = [stack.pop() for _ in range(TUPLES[name])]
                stack.append(tuple(items[::-1]))
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_named(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if type(name) is not str or type(module) is not str:
                    raise ValueError("it names what it asks for in an unknown way")
                stack.append(_named(f"{module}.{name}"))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, _Function) or type(arguments) is not tuple:
                    raise ValueError("it calls what is no function")
                stack.append(function.call(*arguments))
            case "BINPERSID":
                identity = stack.pop()
                if type(identity) is not tuple:
                    raise ValueError("it describes a storage in an unknown way")
                storage = _storage(*identity)
                if storages.setdefault(storage.key, storage) != storage:
                    raise ValueError("it describes a storage in two ways")
                stack.append(storage)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                fill(stack[-1], [key, value])
            case "SETITEMS":
                items = since_mark()
                fill(stack[-1], items)
            case "APPEND":
                value = stack.pop()
                extend(stack[-1], [value])
            case "APPENDS":
                items = since_mark()
                extend(stack[-1], items)
            case "BUILD":  # attributes of an OrderedDict: the versions of modules
                stack.pop()
                if type(stack[-1]) is not dict:
                    raise ValueError("it sets the attributes of something else than an OrderedDict")
            case other:
                raise _Refused(f"its pickle has the instruction {other}, and only tensors are read from it")
    return stack.pop(), storages


# --- the two formats: what the pickle made, and the bytes of each storage by its key


def _zipped(data: bytes) -> tuple[Any, dict[str, bytes]]:
    if data.count(b"PK\x01\x02") > ENTRIES:
        raise ValueError(f"it is a zip of more than {ENTRIES:,} entries")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()) or any(e.compress_type for e in entries.values()):
            raise ValueError("it is a zip of another kind")
        if sum(entry.file_size for entry in entries.values()) > len(data):
            raise ValueError("its entries claim more bytes than it has")
        roots = [name.removesuffix("data.pkl") for name in entries if name.split("/")[1:] == ["data.pkl"]]
        if len(roots) != 1:
            raise ValueError(f"it is a zip with {len(roots)} entries */data.pkl; expected one")
        root = roots[0]
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are big-endian; expected little-endian")
        made, storages = _follow(io.BytesIO(archive.read(f"{root}data.pkl")))
        numbers = {}
        for key, storage in storages.items():
            if f"{root}data/{key}" not in entries:
                raise ValueError(f"it lacks the entry {root}data/{key}")
            numbers[key] = archive.read(f"{root}data/{key}")
            if len(numbers[key]) != storage.size * storage.dtype.itemsize:
                raise ValueError(
                    f"the entry {root}data/{key} has {len(numbers[key])} bytes; expected {storage.size} numbers of "
                    f"{storage.dtype.itemsize}"
                )
        return made, numbers


def _in_a_row(data: bytes) -> tuple[Any, dict[str, memoryview]]:
    stream = io.BytesIO(data)
    try:
        known = (_follow(stream)[0], _follow(stream)[0]) == (MAGIC, PROTOCOL)
    except _Refused:  # somebody's pickle of something else, or of something worse
        raise
    except (LookupError, ValueError, struct.error):
        known = False
    if not known:
        raise ValueError("it starts as neither of the formats of torch.save")
    system = _follow(stream)[0]
    if type(system) is not dict or system.get("little_endian") is not True:
        raise ValueError("its numbers are big-endian, or it does not say; expected little-endian")
    made, storages = _follow(stream)
    keys = _follow(stream)[0]
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("its list of storages is not that of its tensors")
    numbers, at, whole = {}, stream.tell(), memoryview(data)
    for key in keys:
        storage = storages[key]
        (size,) = struct.unpack_from("<q", data, at)
        end = at + 8 + storage.size * storage.dtype.itemsize
        if size != storage.size or end > len(data):
            raise ValueError(f"it ends early, or storage {key} has {size} numbers; expected {storage.size}")
        numbers[key] = whole[at + 8 : end]
        at = end
    if at != len(data):
        raise ValueError(f"it has {len(data) - at} bytes after its last number")
    return made, numbers


def _array(tensor: _Tensor, numbers: bytes | memoryview) -> np.ndarray:
    """A view of the numbers. One that repeats them is refused: a few bytes could claim to be any number of them."""
    dtype, count = tensor.storage.dtype, 1
    for length in tensor.shape:
        count *= length
    reach = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if count > tensor.storage.size or (count and reach >= tensor.storage.size):
        raise ValueError(f"a tensor of shape {tensor.shape} lies outside of its {tensor.storage.size} numbers")
    if not count:
        numbers, strides, offset = b"", None, 0
    else:
        strides, offset = [step * dtype.itemsize for step in tensor.strides], tensor.offset * dtype.itemsize
    return np.ndarray(tensor.shape, dtype, numbers, offset, strides)  # bytes are read-only, and so is the array
