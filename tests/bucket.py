"""A stand-in for `gs://`: buckets in a local folder, with what an object store cannot do.

    with pytest.MonkeyPatch.context() as patch:
        store = bucket.install(tmp_path, patch)        # gs://bucket/run is then tmp_path/bucket/run
        small.run("gs://bucket/run")

An object appears when its upload is complete, and nothing can be appended to it. There are no directories: making one
does nothing, and one exists while an object lies below it. Moving one copies and deletes object by object. All of
etils' own code for buckets runs (the store is the fsspec file system of `gs://`), and of Orbax's all but two calls:
the one that asks Google whether a bucket has real folders, and the one that names TensorStore's driver for it.

What it does not imitate: time (each request of a real bucket takes some 50 ms, and one object takes one write a
second); lost connections, retries, credentials, permissions; listings that the client caches; TensorStore's driver for
buckets, which writes files here, and whose unfinished files are seen; an object and a folder of the same name; buckets
with real folders, which can rename them; generations and conditions on them; and limits on names.
"""

import importlib.machinery
import io
import os
import shutil
import sys
import threading
import types
from pathlib import Path

import fsspec
from etils.epath import backend, gpath
from orbax.checkpoint._src.path import gcs_utils

UPLOADS = ".uploads"


def install(root, patch):
    """Until `patch` ends, gs:// is in the folder `root`. Returns the class of the file system."""
    (root / "bucket").mkdir(parents=True, exist_ok=True)
    (root / UPLOADS).mkdir(exist_ok=True)
    store = type("Here", (Store,), {"root": root, "lock": threading.RLock()})
    patch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: store())
    patch.setattr(gpath, "_is_tf_installed", lambda: False)  # which would be asked for gs://
    for name in ("google.cloud", "google.cloud.storage"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        if name == "google.cloud.storage" or name not in sys.modules:
            patch.setitem(sys.modules, name, module)
    patch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    patch.setattr(gcs_utils, "get_kvstore_for_gcs", lambda path: {"driver": "file", "path": f"{store.local(path)}/"})
    return store


class Store(fsspec.AbstractFileSystem):
    protocol = ("gs", "gcs")
    cachable = False
    root: Path
    lock: threading.RLock
    changes = 0  # objects written or deleted, but those of TensorStore
    fault = None  # called with the name of each before it is written
    watch = None  # called with the number of changes after each

    @classmethod
    def local(cls, path):
        return cls.root / cls._strip_protocol(str(path))

    @classmethod
    def objects(cls, path):
        """The names of the objects at or below `path`."""
        top = cls.local(path)
        found = [top] if top.is_file() else [Path(d) / name for d, _, names in os.walk(top) for name in names]
        # TensorStore's files have a lock beside them while they are written.
        return sorted(file.relative_to(cls.root).as_posix() for file in found if not file.name.endswith(".__lock"))

    @classmethod
    def changed(cls):
        cls.changes += 1
        if cls.watch:
            cls.watch(cls.changes)

    def info(self, path, **_):
        name, local = self._strip_protocol(path), self.local(path)
        if local.is_file():
            stat = local.stat()
            return {"name": name, "size": stat.st_size, "type": "file", "mtime": stat.st_mtime}
        if ("/" not in name and local.is_dir()) or self.objects(path):
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **_):
        top = self._strip_protocol(path)
        below = {name[len(top) :].lstrip("/").split("/")[0] for name in self.objects(path)} - {""}
        found = [self.info(f"{top}/{name}") for name in sorted(below)] or [self.info(path)]
        found = [] if found[0] == {"name": top, "size": 0, "type": "directory"} else found
        return found if detail else [entry["name"] for entry in found]

    def _open(self, path, mode="rb", **_):
        if mode == "rb":
            return io.BytesIO(self.cat_file(path))
        if mode != "wb":
            raise NotImplementedError(f"mode {mode!r}: an object is written once, and whole")
        return Upload(self, path)

    def cat_file(self, path, start=None, end=None, **_):
        return self.local(self.info(path)["name"]).read_bytes()[start:end]

    def put_object(self, path, data):
        local = self.local(path)
        if not (self.root / self._strip_protocol(path).split("/")[0]).is_dir():
            raise FileNotFoundError(f"no such bucket: {path}")
        if fault := type(self).fault:
            fault(self._strip_protocol(path))
        with self.lock:
            part = self.root / UPLOADS / "part"
            part.write_bytes(data)
            local.parent.mkdir(parents=True, exist_ok=True)
            part.replace(local)
            self.changed()

    def rm_file(self, path):
        with self.lock:
            self.local(path).unlink()
            self.changed()

    def rm(self, path, recursive=False, maxdepth=None):
        names = self.objects(path) if recursive else [self._strip_protocol(path)]
        if not names or (not recursive and not self.local(path).is_file()):
            raise FileNotFoundError(path)
        for name in names[::-1]:  # in the worst order: what marks a checkpoint as whole goes last
            self.rm_file(name)
        if recursive:  # TensorStore's directories, which are nothing
            shutil.rmtree(self.local(path), ignore_errors=True)

    def mv(self, path1, path2, recursive=False, maxdepth=None, **_):
        top, names = self._strip_protocol(path1), self.objects(path1)
        for name in names:
            self.put_object(self._strip_protocol(path2) + name[len(top) :], self.cat_file(name))
            self.rm_file(name)

    def mkdir(self, path, create_parents=True, **_):
        pass

    def makedirs(self, path, exist_ok=False):
        pass


class Upload(io.BytesIO):
    """An object that is not there before it is whole."""

    def __init__(self, store, path):
        super().__init__()
        self._store, self._path = store, path

    def close(self):
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._store.put_object(self._path, data)


def copies(store, root, at):
    """After each change whose number is in `at`, a copy of the bucket: what is left if the machine is lost then."""

    def watch(number):
        if number in at:
            shutil.copytree(store.root, root / str(number), ignore=shutil.ignore_patterns(UPLOADS, "*.__lock"))

    store.watch = watch
