"""Malformed configs and checkpoints for the table of `malformed`."""

import functools
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.malformed_data import Case, Make
from tests.runs import TINY, program


@functools.cache
def good_run() -> Path:
    """A run of ten steps, made once in a process."""
    workdir = Path(tempfile.mkdtemp(prefix="jaxgan-malformed-")) / "run"
    code, _, err = program(workdir, *TINY, "--steps=10")
    assert code == 0, err
    return workdir


def forget_run() -> None:
    """Removes what `good_run` made."""
    if good_run.cache_info().currsize:
        shutil.rmtree(good_run().parent, ignore_errors=True)
        good_run.cache_clear()


def stored_run(folder: Path) -> Path:
    """A copy of the good run."""
    shutil.copytree(good_run(), folder / "run")
    return folder / "run"


def sampled(folder: Path, *given: str) -> list[str]:
    return [f"--run={folder / 'run'}", f"--out={folder / 'grid.png'}", *given]


def config_cases() -> Iterator[Case]:
    def with_text(content: bytes) -> Make:
        def make(folder: Path) -> list[str]:
            (stored_run(folder) / "config.json").write_bytes(content)
            return sampled(folder)

        return make

    texts = {
        "nothing": b"",
        "random bytes": bytes(range(256)) * 4,
        "UTF-16": '{"config": {}}'.encode("utf-16"),
        "a list": b"[]",
        "a number": b"5",
        "no networks": b'{"config": {}}',
        "a network of a list": b'{"config": {}, "networks": {"generator": {"path": []}}}',
        "a network of null": b'{"config": {}, "networks": {"generator": null}}',
        "a network of text": b'{"config": {}, "networks": {"generator": "x"}}',
        "not a number": b'{"config": {"x": NaN}}',
        "infinity": b'{"config": {"x": -Infinity}}',
        "two entries of one name": b'{"config": {}, "config": {}}',
        "brackets beyond counting": b'{"config": ' + b"[" * 10**6,
        "brackets that close": b'{"config": {"x": ' + b"[" * 900 + b"]" * 900 + b"}}",
        "a number beyond counting": b'{"config": {"x": ' + b"9" * 10**5 + b"}}",
        "a file that is too long": b'{"config": {"x": "' + b"x" * 2**24 + b'"}}',
        "a comma too many": b'{"config": {},}',
    }
    for name, content in texts.items():
        yield Case(
            f"config: {name}", with_text(content), ("expected" if b"networks" in content else "run",), "generate"
        )

    def with_network(change: Callable[[dict], object], *given: str) -> Make:
        def make(folder: Path) -> list[str]:
            file = stored_run(folder) / "config.json"
            stored = json.loads(file.read_text())
            change(stored["networks"]["generator"])
            file.write_text(json.dumps(stored))
            return sampled(folder, *given)

        return make

    def argument(**given) -> Callable[[dict], object]:
        return lambda network: network["arguments"].update(given)

    changes: dict[str, tuple[Callable[[dict], object], tuple[str, ...]]] = {
        f"path {path}": (lambda network, path=path: network.update(path=path), ("network",) if ":" not in path else ())
        for path in (
            "os:system", "subprocess:Popen", "jaxgan...evil:Generator", "jaxgan.models...:Generator", "builtins:exec",
            "jaxgan.../../evil:Generator", "jaxgan.models.../evil:Generator", "jaxgan.losses:np.load",
            "jaxgan.models.dcgan:nn.Module", "jaxgan.models.dcgan:nn", "jaxgan.models.dcgan:__builtins__",
            "jaxgan.models.dcgan:Generator.__init__", "jaxgan.models:dcgan", ":", "", "a:b:c", "jaxgan.models.dcgan:",
            "experiments.image:Config", "jaxgan.models.none:Generator", "jaxgan.models.classifier:Classifier",
        )
    }  # fmt: skip
    changes |= {
        "a path of a number": (lambda network: network.update(path=5), ("network",)),
        "arguments of text": (lambda network: network.update(arguments="x"), ("network",)),
        "an unknown argument": (argument(colour=1), ("'colour'",)),
        "the argument parent": (argument(parent=1), ("'parent'",)),
        "a width beyond counting": (argument(width=10**9), ("width", "1,000,000,000")),
        "a width of many digits": (argument(width=10**4000), ("width",)),
        "a width that is not the weights'": (argument(width=64), ("does not fit",)),
        "a width below zero": (argument(width=-4), ("does not fit",)),
        "a width of text": (argument(width="4"), ("does not fit",)),
        "a width of a dict": (argument(width={"a": 1}), ("does not fit",)),
        "a latent of 0": (argument(latent=0), ("does not fit",)),
        "a latent of half": (argument(latent=8.5), ("does not fit",)),
        "images beyond counting": (argument(shape=[10**6, 10**6, 1]), ("does not fit",)),
        "images of another rank": (argument(shape=[8]), ("does not fit",)),
        "images of no pixels": (argument(shape=[0, 0, 0]), ("does not fit",)),
        "images of words": (argument(shape="abc"), ("does not fit",)),
        "classes beyond counting": (argument(num_classes=10**6), ("does not fit",)),
        "numbers of objects": (argument(dtype="object"), ("dtype", "float32")),
        "numbers of a list": (argument(dtype=["f4", "f4"]), ("dtype",)),
        "numbers of a petabyte": (argument(dtype="S1000000000000000"), ("dtype",)),
    }
    for name, (change, words) in changes.items():
        yield Case(f"config: {name}", with_network(change), words, "generate")

    def kinds(make_file: Callable[[Path], object]) -> Make:
        def make(folder: Path) -> list[str]:
            (stored_run(folder) / "config.json").unlink()
            make_file(folder / "run" / "config.json")
            return sampled(folder)

        return make

    yield Case("config: a pipe", kinds(os.mkfifo), ("config.json",), "generate")
    yield Case("config: a folder", kinds(lambda path: path.mkdir()), ("config.json",), "generate")
    yield Case("config: a link to itself", kinds(lambda path: path.symlink_to(path)), ("run",), "generate")
    yield Case(
        "config: a link to a device", kinds(lambda path: path.symlink_to("/dev/zero")), ("config.json",), "generate"
    )

    def of_data(**changed) -> Make:
        def make(folder: Path) -> list[str]:
            file = stored_run(folder) / "config.json"
            stored = json.loads(file.read_text())
            stored["config"].update(changed)
            file.write_text(json.dumps(stored))
            return [f"--run={folder / 'run'}", "--num=20", "--features=pixels"]

        return make

    yield Case("evaluate: a data set of a number", of_data(dataset=5), ("dataset",), "evaluate")
    yield Case("evaluate: a data set elsewhere", of_data(dataset="ns:x"), ("'ns'",), "evaluate")
    yield Case("evaluate: a size of a list", of_data(size=[8, 8]), ("size",), "evaluate")
    yield Case("evaluate: channels of text", of_data(channels="1"), ("channels",), "evaluate")
    yield Case("evaluate: a size beyond memory", of_data(size="10000"), ("memory",), "evaluate")

    def imported(place: str = "tfds", file: str = "features.json", dataset: str = "faces") -> Make:
        def make(folder: Path) -> list[str]:
            version = folder / place / "faces" / "1.0.0"
            version.mkdir(parents=True)
            (folder / "evil.py").write_text("raise SystemExit(99)")
            feature = {"pythonClassName": "evil.Image", "jsonFeature": {"json": "{}"}}
            features = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict"}
            features |= {"featuresDict": {"features": {"image": feature}}}
            described = {"name": "faces", "version": "1.0.0", "splits": []}
            (version / "features.json").write_text(json.dumps(features if file == "features.json" else {}))
            described |= {} if file == "features.json" else {"features": features}
            (version / "dataset_info.json").write_text(json.dumps(described))
            return of_data(dataset=dataset, data_dir=str(folder / place))(folder)

        return make

    yield Case("evaluate: a data set that imports", imported(), ("evil",), "evaluate")
    yield Case("evaluate: one in a folder like a pattern", imported("x[1]"), ("evil",), "evaluate")
    yield Case("evaluate: one by another name", imported(dataset="Faces"), ("evil",), "evaluate")
    yield Case("evaluate: one in its other file", imported(file="dataset_info.json"), ("evil",), "evaluate")
    yield Case("evaluate: one beside the data set", imported(dataset="faces/.."), ("faces/..",), "evaluate")


def checkpoint_cases() -> Iterator[Case]:
    def changed(change: Callable[[Path], object]) -> Make:
        def make(folder: Path) -> list[str]:
            change(stored_run(folder) / "checkpoints" / "10")
            return sampled(folder)

        return make

    def replaced(name: str, content: bytes) -> Callable[[Path], object]:
        return lambda step: (step / name).write_bytes(content)

    def piped(name: str) -> Callable[[Path], object]:
        def change(step: Path) -> None:
            (step / name).unlink()
            os.mkfifo(step / name)

        return change

    def looped(step: Path) -> None:
        shutil.rmtree(step)
        step.symlink_to(step)

    def elsewhere(step: Path) -> None:
        shutil.rmtree(step)
        step.symlink_to("/")

    def absurd(step: Path) -> None:
        """Arrays of a petabyte, in the description of each."""
        import tensorstore

        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{step}/state/"}).result()
        for key in store.list().result():
            if key.endswith((b".zarray", b"zarr.json")):
                described = json.loads(store[key])
                described["shape"] = [10**5 for _ in described["shape"]]
                described["chunks"] = [10**5 for _ in described.get("chunks", ())]
                store[key] = json.dumps(described).encode()

    def leaves(step: Path) -> None:
        """A table that agrees with itself."""
        file = step / "_CHECKPOINT_METADATA"
        found = json.loads(file.read_text())
        table = found["custom_metadata"]["leaves"]
        for entry in table.values():
            entry[1] = [10**7 for _ in entry[1]]
        found["custom_metadata"]["crc"] = zlib.crc32(json.dumps(table, sort_keys=True).encode())
        file.write_text(json.dumps(found))

    def all_of(pattern: str, content: bytes) -> Callable[[Path], object]:
        return lambda step: [path.write_bytes(content) for path in step.rglob(pattern) if path.is_file()]

    table: dict[str, Callable[[Path], object]] = {
        "nothing in it": lambda step: (shutil.rmtree(step), step.mkdir()),
        "a file of its name": lambda step: (shutil.rmtree(step), step.write_text("x")),
        "a link to itself": looped,
        "a link to the root": elsewhere,
        "no table": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
        "a table of random bytes": replaced("_CHECKPOINT_METADATA", bytes(range(256))),
        "a table of brackets": replaced("_CHECKPOINT_METADATA", b"[" * 10**6),
        "a table of a list": replaced("_CHECKPOINT_METADATA", b"[]"),
        "a table of pipes": piped("_CHECKPOINT_METADATA"),
        "a tree of random bytes": replaced("state/_METADATA", bytes(range(256))),
        "a tree of nothing": replaced("state/_METADATA", b"{}"),
        "a tree of brackets": replaced("state/_METADATA", b"[" * 10**6),
        "an index of random bytes": replaced("state/manifest.ocdbt", bytes(range(256))),
        "an index of pipes": piped("state/manifest.ocdbt"),
        "arrays beyond counting": absurd,
        "a table beyond counting": leaves,
        "numbers of zeros": all_of("d/*", bytes(1000)),
        "no numbers": lambda step: [shutil.rmtree(path) for path in list(step.rglob("d"))],
    }
    for name, change in table.items():
        yield Case(f"checkpoint: {name}", changed(change), ("checkpoint",), "generate")

    def none(folder: Path) -> list[str]:
        shutil.rmtree(stored_run(folder) / "checkpoints")
        return sampled(folder)

    yield Case("checkpoint: none", none, ("no checkpoint",), "generate")
