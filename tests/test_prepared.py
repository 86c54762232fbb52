"""Sets of TFDS: what jaxgan's own builders write, records of every kind, and their identity."""

import dataclasses
import io
import json
import os
import shutil
import types
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxgan import images, prepared, sources
from jaxgan.datasets.digits import arrays
from jaxgan.errors import InputError


def content(image, label):
    """The examples in any order, for TFDS shuffles what it writes."""
    return sorted(i.tobytes() + bytes([l]) for i, l in zip(image, label, strict=True))


@pytest.fixture(scope="module")
def prepared_digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    prepared.prepare("digits", folder, None)
    return folder


def test_the_builder_holds_the_same_digits_and_needs_no_tensorflow(prepared_digits):
    source = prepared.load("digits", "train", prepared_digits, None, None, "center", 0)
    got = source.read(np.arange(source.num_examples))
    expected = arrays.arrays()
    assert content(got["image"], got["label"]) == content(expected["image"], expected["label"])
    assert (source.shape, source.num_classes, source.class_names) == ((8, 8, 1), 10, arrays.CLASSES)
    part = prepared.load("digits", "train[:10%]", prepared_digits, None, (4, 6), "center", 3)
    assert part.num_examples == 180 and part.read(np.arange(5))["image"].shape == (5, 4, 6, 3)
    with pytest.raises(InputError, match="unknown split of digits 'tran'; did you mean 'train'"):
        prepared.load("digits", "tran", prepared_digits, None, None, "center", 0)


def test_a_format_without_random_access_is_answered_with_the_command_that_converts_it(prepared_digits, tmp_path):
    there = tmp_path / "digits" / "1.0.0"
    there.mkdir(parents=True)
    for file in (prepared_digits / "digits" / "1.0.0").iterdir():
        (there / file.name.replace("array_record", "tfrecord")).write_bytes(
            file.read_bytes().replace(b"array_record", b"tfrecord")
        )
    with pytest.raises(
        InputError, match=rf"tfds convert_format --dataset_version_dir={there} --out_file_format=array_rec"
    ):
        prepared.prepare("digits", tmp_path, None)


def example(**values):
    """A record as TFDS writes it: of bytes, or of integers."""
    from tensorflow_datasets.proto import tf_example_pb2

    record = tf_example_pb2.Example()
    for key, value in values.items():
        feature = record.features.feature[key.replace("_", "/")]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.extend(np.ravel(value))
    return record.SerializeToString()


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Records(list):
    def __getitems__(self, keys):
        return [self[key] for key in keys]


def load_records(monkeypatch, feature, records, size=None):
    """`prepared.load` of records that no builder wrote, for one that writes image files needs TensorFlow."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"image": feature, "label": tfds.features.ClassLabel(num_classes=3), "more": np.int64}
    )
    builder = types.SimpleNamespace(
        info=types.SimpleNamespace(features=features, splits={"train": None}),
        as_data_source=lambda split, deserialize_method: Records(records),
    )
    monkeypatch.setattr(prepared, "prepare", lambda *_: builder)
    return prepared.load("made", "train", None, None, size, "center", 0)


@pytest.mark.parametrize("open_shape", [False, True])
def test_image_files_in_records(monkeypatch, open_shape):
    import tensorflow_datasets as tfds

    pixels = np.random.default_rng(0).integers(0, 256, (70, 50, 60, 3), np.uint8)
    records = [example(image=png(p), label=i % 3, more=7) for i, p in enumerate(pixels)]
    feature = tfds.features.Image(shape=(None, None, 3) if open_shape else (50, 60, 3))
    source = load_records(monkeypatch, feature, records)
    assert (source.num_examples, source.shape, source.num_classes) == (70, (50, 60, 3), 3)
    rows = np.array([3, 69, 3, *range(70)])
    got = source.read(rows)
    np.testing.assert_array_equal(got["image"], pixels[rows])
    np.testing.assert_array_equal(got["label"], rows % 3)
    records[5] = records[5][:4000]  # no longer a record
    with pytest.raises(Exception, match="Error parsing"):
        load_records(monkeypatch, feature, records).read(rows)
    records[5] = example(image=png(pixels[5])[:4000], label=0)
    with pytest.raises(InputError, match=r"image 5 of made \(train\) is not a readable image"):
        source = load_records(monkeypatch, tfds.features.Image(shape=(50, 60, 3)), records)
        source.read(rows)


@pytest.mark.parametrize("encoding", ["none", "bytes", "zlib"])
def test_tensors_in_records(monkeypatch, encoding):
    import tensorflow_datasets as tfds

    pixels = np.random.default_rng(0).integers(0, 256, (9, 5, 4, 3), np.uint8)
    stored = {"none": np.ravel, "bytes": np.ndarray.tobytes, "zlib": lambda p: zlib.compress(p.tobytes())}
    records = [example(image=stored[encoding](p), label=i % 3) for i, p in enumerate(pixels)]
    feature = tfds.features.Tensor(shape=(5, 4, 3), dtype=np.uint8, encoding=encoding)
    got = load_records(monkeypatch, feature, records).read(np.arange(8, -1, -1))
    np.testing.assert_array_equal(got["image"], pixels[::-1])
    np.testing.assert_array_equal(got["label"], np.arange(8, -1, -1) % 3)
    resized = load_records(monkeypatch, feature, records, size=(3, 2)).read(np.arange(2))["image"]
    np.testing.assert_array_equal(resized[1], images.fit_array(pixels[1], (3, 2), 3))
    with pytest.raises(InputError, match=r"made has images of float32 \(5, 4, 3\); expected uint8"):
        load_records(monkeypatch, tfds.features.Tensor(shape=(5, 4, 3), dtype=np.float32), records)


def test_tensors_of_any_height_are_resized(monkeypatch):
    import tensorflow_datasets as tfds

    pixels = [np.random.default_rng(i).integers(0, 256, (5 + i, 4, 3), np.uint8) for i in range(3)]
    records = [example(image=p, label=i) for i, p in enumerate(pixels)]
    feature = tfds.features.Tensor(shape=(None, 4, 3), dtype=np.uint8)
    got = load_records(monkeypatch, feature, records, size=(4, 4)).read(np.array([2, 0]))
    np.testing.assert_array_equal(got["image"], [images.fit_array(pixels[i], (4, 4), 3) for i in (2, 0)])
    np.testing.assert_array_equal(got["label"], [2, 0])
    for shape, size in (((None, 4, 3), None), ((None, None, 3), (4, 4))):
        with pytest.raises(InputError, match="images of any shape"):
            load_records(monkeypatch, tfds.features.Tensor(shape=shape, dtype=np.uint8), records, size=size)


def test_the_identity_of_a_prepared_set(prepared_digits, tmp_path):
    def identity(split="train", size=None, crop="center", channels=0, folder=prepared_digits):
        return prepared.load("digits", split, folder, None, size, crop, channels).identity()

    shutil.copytree(prepared_digits, tmp_path / "copy")
    made = [identity(), identity("train[:10%]"), identity(size=(4, 4)), identity(size=(4, 4), crop="none")]
    made += [identity(channels=3), identity("train[10%:20%]"), identity(folder=tmp_path / "copy")]
    (shard,) = (tmp_path / "copy" / "digits" / "1.0.0").glob("*array_record*")
    os.utime(shard, ns=(0, 12345))
    made.append(identity(folder=tmp_path / "copy"))
    assert len(set(made)) == len(made) and all(len(m) == 32 for m in made)
    assert identity() == made[0]
    source = prepared.load("digits", "train", prepared_digits, None, None, "center", 0)
    first = sources.Kept(source, tmp_path / "digits.decoded").whole()
    again = sources.Kept(dataclasses.replace(source, read=None), tmp_path / "digits.decoded").whole()
    np.testing.assert_array_equal(first["image"], again["image"])
    np.testing.assert_array_equal(first["label"], again["label"])


@pytest.mark.parametrize("versions", ["1.0.0", "small/1.0.0", "1.0.0/1.0.0"])
def test_what_lies_in_the_folder_of_tfds_itself_runs_no_code(versions, monkeypatch, tmp_path):
    from tensorflow_datasets.core import constants

    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path / "home[1]"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evilmod.py").write_text("raise SystemExit(99)")
    (tmp_path / "home[1]" / "faces" / versions).mkdir(parents=True)
    file = tmp_path / "home[1]" / "faces" / versions / "features.json"
    file.write_text(json.dumps({"type": "evilmod.Image", "content": {}}))
    file.with_name("dataset_info.json").write_text(json.dumps({"name": "faces", "version": "1.0.0"}))
    with pytest.raises(InputError, match=r"features\.json' names 'evilmod.Image', which is code outside"):
        prepared.find(f"faces/{versions.partition('/')[0]}" if "/" in versions else "faces", None)


def test_files_that_are_not_the_originals(monkeypatch, tmp_path):
    """Fashion-MNIST's files have the names of MNIST's."""
    import tensorflow_datasets as tfds

    def refuse(self, **options):
        raise tfds.download.download_manager.NonMatchingChecksumError("Artifact ...")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    with pytest.raises(InputError, match=r"cannot prepare stacked_mnist: .* SHA-256; look at --manual_dir="):
        prepared.load("stacked_mnist", "train", tmp_path, tmp_path, None, "center", 0)
