"""TFDS builder `stacked_mnist`. Its images are tensors, not encoded files, so preparing it needs no TensorFlow."""

import gzip
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from jaxgan import images

Digits = tuple[np.ndarray, np.ndarray]  # uint8 (n, 28, 28) and their classes, integers (n,)
FILES = {"train": "train", "test": "t10k"}  # splits of MNIST and how their files begin


class StackedMnist(tfds.core.GeneratorBasedBuilder):
    """MNIST digits drawn at random, three at a time, one in each channel; the class is 100 r + 10 g + b.

    Of arXiv:1611.02163 (section 3.3.1), with the 128,000 training images of arXiv:1712.04086 (section 4.2), drawn from
    MNIST's training digits. The test split draws from its test digits, as many images as the protocol has samples.
    """

    VERSION = tfds.core.Version("1.0.0")
    EXAMPLES: Mapping[str, int] = {"train": 128_000, "test": 26_000}
    # TFDS looks for MNIST's files in the manual folder by the names that stand here, or downloads them.
    url_infos = tfds.builder_cls("mnist").url_infos

    def _info(self) -> tfds.core.DatasetInfo:
        # As bytes rather than integers, the images are written three times as fast: 154,000 in 40 s. In the files they
        # are compressed to 750 bytes each, a third of their size.
        pixels = tfds.features.Tensor(shape=(28, 28, 3), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES)
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {"image": pixels, "label": tfds.features.ClassLabel(names=[f"{i:03}" for i in range(1000)])}
            ),
            supervised_keys=("image", "label"),
            homepage="https://arxiv.org/abs/1611.02163",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        digits = prepared(self.data_dir_root) or original(dl_manager, self.url_infos)
        return {
            split: self._generate_examples(*digits[split], self.EXAMPLES[split], seed)
            for seed, split in enumerate(FILES)
        }

    def _generate_examples(self, digits: np.ndarray, labels: np.ndarray, n: int, seed: int):
        # Sorted by their pixels first, so that the stacks do not depend on where the digits were read.
        order = np.array(sorted(range(len(digits)), key=lambda i: digits[i].tobytes()))
        drawn = np.random.default_rng(seed).integers(len(digits), size=(n, 3))
        for i, rows in enumerate(order[drawn]):
            r, g, b = labels[rows].tolist()
            yield i, {"image": np.stack(list(digits[rows]), axis=-1), "label": 100 * r + 10 * g + b}


def prepared(data_dir: epath.PathLike) -> dict[str, Digits] | None:
    """MNIST as TFDS has already prepared it beside this set; None where it has not, or not for random access."""
    builder = tfds.builder("mnist", data_dir=data_dir, try_gcs=False)
    formats = builder.info.available_file_formats() if builder.is_prepared() else set()
    if not formats & tfds.core.FileFormat.with_random_access():
        return None

    def read(split: str) -> Digits:
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        records = source.__getitems__(list(range(len(source))))
        digits = [images.decode(r["image"], None, 1)[..., 0] for r in records]
        return np.stack(digits), np.array([int(r["label"]) for r in records])

    return {split: read(split) for split in FILES}


def original(dl_manager: tfds.download.DownloadManager, url_infos: Mapping[str, Any]) -> dict[str, Digits]:
    """MNIST's own four files, from the manual folder or from the network. TFDS compares their checksums."""
    paths = dl_manager.download({info.filename: url for url, info in url_infos.items()})

    def idx(name: str, header: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress(paths[name].read_bytes()), np.uint8, offset=header)

    return {
        split: (
            idx(f"{start}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28),
            idx(f"{start}-labels-idx1-ubyte.gz", 8).astype(np.int64),
        )
        for split, start in FILES.items()
    }
