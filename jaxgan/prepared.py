"""Data sets of TFDS, and builders of jaxgan that go through it. TFDS is imported here alone, when it is used."""

import difflib
import functools
import importlib
import importlib.util
import io
import json
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from jaxgan import images, layout
from jaxgan.errors import InputError, Unprepared, unknown
from jaxgan.sources import Source, combined, fingerprint, first_line, is_own, reading

CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # of a features.json, in its three dialects
DESCRIPTIONS = ("features.json", "dataset_info.json")  # which tell what classes read a data set
VERSION = re.compile(r"\d+\.\d+\.\d+")
FORMAT = "array_record"  # random access; TFDS's own default, tfrecord, has none


def load(
    name: str,
    split: str,
    data_dir: epath.PathLike | None,
    manual_dir: epath.PathLike | None,
    size: tuple[int, int] | None,
    crop: str,
    channels: int,
    prepared: bool = True,
) -> Source:
    """A split of a TFDS data set, prepared first if `data_dir` (or TFDS's default folder) does not hold it yet.

    prepared: False raises `Unprepared` instead, and nothing is downloaded or written.
    """
    builder = prepare(name, data_dir, manual_dir, prepared)
    image_key, label_key = keys_of(builder, name)
    parse = parser(builder, image_key, label_key)
    feature = builder.info.features[image_key]
    import tensorflow_datasets as tfds

    encoded = isinstance(feature, tfds.features.Image)
    try:
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except (KeyError, ValueError) as error:
        raise unknown(f"split of {name}", split, builder.info.splits, "slices such as train[:80%] work") from error
    if not len(records):
        raise InputError(f"split {split!r} of {name} is empty")
    h, w, c = stored_shape(feature.shape, records, parse, encoded, size, channels, name)
    layout.check((len(records), h, w, c), name)
    channels = images.check_channels(c, channels, name)
    shape = (*(size or (h, w)), channels)

    def convert(example: tuple[int, Any]) -> np.ndarray:
        i, image = example
        if not encoded:
            return images.fit_array(image, shape[:2], channels, crop)
        with reading(f"image {i} of {name} ({split})"):
            return images.checked(images.decode(image, size, channels, crop), shape)

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        # All records in one call, which is what array_record is quick at: a call takes 0.2 ms.
        stored, label = zip(*map(parse, records.__getitems__(indices.tolist())), strict=True)
        ready = not encoded and feature.shape == shape and images.window(crop) in (None, shape[:2])
        image = np.stack(stored) if ready else images.stacked(convert, list(zip(indices, stored, strict=True)), shape)
        return {"image": image, "label": np.array(label, np.int32)}

    def identity() -> bytes:
        shards = builder.info.splits[split].file_instructions
        parts = [(shard.skip, shard.take) for shard in shards]
        return fingerprint([s.filename for s in shards], parts, image_key, label_key, shape, size, crop)

    def read_labels() -> np.ndarray:
        parts = [range(i, min(i + 1024, len(records))) for i in range(0, len(records), 1024)]
        return np.array([parse(r)[1] for rows in parts for r in records.__getitems__([*rows])], np.int32)

    @functools.cache
    def base() -> str:
        splits = builder.info.splits
        shards = [(shard.skip, shard.take) for shard in splits[split].file_instructions]
        return repr((builder.info.full_name, split, shards, [(s, splits[s].num_bytes) for s in sorted(splits)]))

    names = tuple(builder.info.features[label_key].names) if label_key else ()
    return Source(
        name,
        len(records),
        shape,
        len(names),
        read,
        names,
        identity,
        read_labels=read_labels if label_key else None,
        digest=lambda rows: combined(base(), rows),
    )


def parser(builder: Any, image_key: str, label_key: str) -> Callable[[bytes], tuple[Any, int]]:
    """Record -> its image, the bytes of a file or an array, and its label (0 without)."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    feature = builder.info.features[image_key]
    encoded = isinstance(feature, tfds.features.Image)

    def parse(record: bytes) -> tuple[Any, int]:
        # TFDS's own way takes 20 us an example, as long as a tiny image takes to decode.
        values = tf_example_pb2.Example.FromString(record).features.feature
        label = values[label_key].int64_list.value[0] if label_key else 0
        kept = values[image_key].bytes_list.value
        if encoded:
            return kept[0], label
        # A tensor is stored as bytes, or with one number of 64 bits for each of its own.
        value = kept[0] if kept else np.array(values[image_key].int64_list.value, np.uint8)
        return feature.decode_example_np(value), label

    return parse


def prepare(name: str, data_dir: epath.PathLike | None, manual_dir: epath.PathLike | None, allowed: bool = True) -> Any:
    """A TFDS builder whose data are on disk in a format with random access."""
    if importlib.util.find_spec(FORMAT) is None:
        raise InputError(
            f"--dataset={name} needs the package {FORMAT}, which there is for Linux and macOS; expected folder:DIR or "
            "npz:FILE here"
        )
    if manual_dir and not epath.Path(manual_dir).expanduser().is_dir():
        raise InputError(f"--manual_dir={manual_dir} is no folder; expected the original files of {name}")
    data_dir = os.fspath(epath.Path(data_dir).expanduser()) if data_dir else None
    builder = find(name, data_dir)
    import tensorflow_datasets as tfds

    if builder.is_prepared():
        known = builder.info.available_file_formats()
        if not known & tfds.core.FileFormat.with_random_access():
            stored = ", ".join(f.value for f in known)
            raise InputError(
                f"{builder.data_dir} holds {stored}, which cannot be read at random; convert it: "
                'pip install "jaxgan[tfds]" apache-beam mlcroissant && tfds convert_format '
                f"--dataset_version_dir={builder.data_dir} --out_file_format={FORMAT}; "
                "or prepare it anew in another --data_dir"
            )
        return builder
    builder = find(name, data_dir, file_format=FORMAT)
    root = builder.data_dir_root
    features = builder.info.features
    encoded = any(type(f).__name__ in ("Image", "LabeledImage", "Video") for f in features.values())
    if encoded and importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"{name} is not prepared in {root}, and preparing it needs TensorFlow (reading does "
            'not): pip install "jaxgan[tfds]", or copy a prepared one and name its folder with --data_dir'
        )
    if not allowed:
        where = f"from the files of {manual_dir}" if manual_dir else "from what is downloaded first"
        raise Unprepared(
            f"data     {name}: not prepared in {root}, and a dry run prepares nothing; the run would prepare it there, "
            f"{where}, and the rest depends on that"
        )
    config = None
    if manual_dir:
        # TFDS keeps extracted files by their bare names, in one folder for all data sets: given the original files of
        # both, it would take MNIST's `train-images-idx3-ubyte.gz` for Fashion-MNIST's. So each has its own folder.
        extracted = epath.Path(root) / "downloads" / "extracted" / builder.info.full_name
        config = tfds.download.DownloadConfig(
            manual_dir=os.fspath(epath.Path(manual_dir).expanduser()), extract_dir=os.fspath(extracted)
        )
    try:
        builder.download_and_prepare(download_config=config, file_format=FORMAT)
    except tfds.download.download_manager.NonMatchingChecksumError as error:
        raise InputError(
            f"cannot prepare {name}: a file is not the original of that name, by its SHA-256"
            + (f"; look at --manual_dir={manual_dir}" if manual_dir else "; it may be damaged, or its source changed")
        ) from error
    except (OSError, tfds.download.DownloadError, AssertionError) as error:
        # requests' errors are OSErrors, and a missing manual file is an AssertionError
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"cannot prepare {name}: {reason}; without a network put its original files in a folder and name it with "
            f"--manual_dir, or a prepared copy with --data_dir (now {root})"
        ) from error
    return builder


def check_features(name: str, data_dir: str | None) -> None:
    """Raises InputError for prepared data that name code outside TFDS, which TFDS would import to describe them."""
    from tensorflow_datasets.core.utils import file_utils

    base, *rest = re.split("[/:]", name)
    if ".." in rest:
        raise InputError(f"{name!r} is no name of a data set; expected a config after {base}/")
    for place in map(epath.Path, file_utils.list_data_dirs(data_dir)):
        try:
            homes = [path for path in listed(place) if plainly(path.name) == plainly(base)]
            inner = [path for home in homes for path in listed(home)]  # of versions, or of configs that have versions
            versions = [path for folder in inner for path in listed(folder) if VERSION.match(path.name)]
            found = [path for folder in (*inner, *versions) for path in listed(folder) if path.name in DESCRIPTIONS]
        except OSError as error:
            raise InputError(f"cannot look for {name} in {os.fspath(place)!r}: {error.strerror or error}") from error
        for file in found:
            check_description(file)


def plainly(name: str) -> str:
    """TFDS takes `MyFaces` for `my_faces`."""
    return name.replace("_", "").lower()


def listed(folder: epath.Path) -> list[epath.Path]:
    """What lies in a folder. (A glob would take the folder's own name for a pattern.)"""
    return [*folder.iterdir()] if folder.is_dir() else []


def check_description(file: epath.Path) -> None:
    try:
        described = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{os.fspath(file)!r} describes no data set ({first_line(error)})") from error
    if file.name == DESCRIPTIONS[1]:  # of which the rest names no classes
        described = described.get("features") if isinstance(described, dict) else None
    todo = [described]
    while todo:
        value = todo.pop()
        todo += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        found = [value.get(key) for key in CLASS_KEYS] if isinstance(value, dict) else []
        for path in found:
            if isinstance(path, str) and "." in path and not path.startswith("tensorflow_datasets."):
                raise InputError(f"{os.fspath(file)!r} names {path!r}, which is code outside tensorflow_datasets")


def find(name: str, data_dir: str | None, **options: Any) -> Any:
    """The builder called `name`, of jaxgan or of TFDS. InputError with the nearest names where there is none."""
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    check_features(name, data_dir)
    try:
        if is_own(name):
            module = importlib.import_module(f"jaxgan.datasets.{name}.{name}")
            make = next(
                v for v in vars(module).values() if isinstance(v, type) and issubclass(v, tfds.core.DatasetBuilder)
            )
            return make(data_dir=data_dir, **options)
        return tfds.builder(name, data_dir=data_dir, try_gcs=False, **options)
    except tfds.core.DatasetNotFoundError as error:
        names = [*tfds.list_builders(with_community_datasets=False), "digits"]
        near = difflib.get_close_matches(name.split("/")[0], names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(
            f"unknown data set {name!r}; {hint}Expected digits, folder:DIR, npz:FILE or one of the {len(names) - 1} "
            "names of TFDS (tensorflow.org/datasets/catalog)"
        ) from error
    except ParseError as error:
        raise InputError(f"--data_dir={data_dir} holds no {name} that TFDS can read: {first_line(error)}") from error
    except (ValueError, AssertionError, TypeError) as error:  # no name of this form, or no such config or version
        base, _, config = name.partition("/")
        if base in tfds.list_builders(with_community_datasets=False):
            raise unknown(f"config of {base}", config, tfds.builder_cls(base).builder_configs) from error
        raise InputError(
            f"{name!r} is no name of a data set; expected digits, folder:DIR, npz:FILE or a name of TFDS"
        ) from error


def keys_of(builder: Any, name: str) -> tuple[str, str]:
    """The feature that is the image, and the one that is its class ("" without)."""
    features = builder.info.features
    kinds = {key: type(feature).__name__ for key, feature in features.items()}
    found = [k for k, kind in kinds.items() if kind == "Image"]
    image = "image" if "image" in kinds else found[0] if len(found) == 1 else ""
    if not image:
        listing = ", ".join(f"{k} ({kind})" for k, kind in kinds.items())
        raise InputError(f"{name} has no feature `image` and not exactly one of type Image; it has {listing}")
    shape, dtype = features[image].shape, np.dtype(features[image].np_dtype)
    if len(shape) != 3 or dtype not in (np.uint8, np.uint16) or (dtype == np.uint16 and kinds[image] != "Image"):
        raise InputError(f"{name} has images of {dtype} {shape}; expected uint8 (h, w, c)")
    return image, "label" if kinds.get("label") == "ClassLabel" else ""


def stored_shape(
    declared: tuple[int | None, ...],
    records: Any,
    parse: Callable[[bytes], tuple[Any, int]],
    encoded: bool,
    size: tuple[int, int] | None,
    channels: int,
    name: str,
) -> tuple[int, int, int]:
    """(h, w, c) of the images as they are; where the features leave it open, from the header of every file."""
    h, w, c = declared
    if h and w and c:
        return h, w, c
    if not encoded and not (size and c and (h or w)):  # TFDS stores one unknown length of a tensor, not two
        raise InputError(f"{name} has images of any shape {declared}, and they are not image files")
    if size and (c or channels):
        return *size, c or channels
    chunks = [list(range(i, min(i + 256, len(records)))) for i in range(0, len(records), 256)]
    shapes = images.in_threads(
        lambda rows: [images.measure(io.BytesIO(parse(r)[0])) for r in records.__getitems__(rows)],
        chunks,
        f"measuring {name}",
    )
    return images.common_shape(((*(size or s[:2]), s[2]) for chunk in shapes for s in chunk), name, channels)
