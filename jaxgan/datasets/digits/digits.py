"""TFDS builder `digits`. Its images are tensors, not encoded files, so preparing it needs no TensorFlow."""

import numpy as np
import tensorflow_datasets as tfds

from jaxgan.datasets.digits import arrays


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits, 8x8 grey, ten classes, one split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=arrays.CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {"train": self._generate_examples("train")}

    def _generate_examples(self, split: str):
        data = arrays.arrays(split)
        for i, (image, label) in enumerate(zip(data["image"], data["label"], strict=True)):
            yield i, {"image": image, "label": int(label)}
