"""Names on the command line -> modules and objects: `hinge`, or `pkg.module:name` from a fork's own code."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from jaxgan.errors import InputError, unknown


def names(package: ModuleType) -> list[str]:
    """The modules of a package."""
    return [module.name for module in pkgutil.iter_modules(package.__path__)]


def module(kind: str, name: str, package: ModuleType) -> ModuleType:
    """`package.name`, or the module of a dotted path."""
    if "." in name:
        return _import(kind, name)
    if name not in names(package):
        raise unknown(kind, name, names(package), f"or a module of your own: pkg.{name}")
    return importlib.import_module(f"{package.__name__}.{name}")


def member(kind: str, name: str, home: ModuleType, wanted: type) -> Any:
    """The `wanted` object called `name` in the module `home`, or that of `pkg.module:name`."""
    where, colon, attribute = name.partition(":")
    if colon:
        home, name = _import(kind, where), attribute
    choices = [n for n, value in vars(home).items() if isinstance(value, wanted)]
    if name not in choices:
        raise unknown(kind, name, choices, "" if colon else f"or your own: pkg.module:{name}")
    return getattr(home, name)


def _import(kind: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ImportError as error:
        raise InputError(f"cannot import {path!r} for the {kind}: {error}") from None
    except ValueError:
        raise InputError(f"{path!r} is no module path for the {kind}; expected pkg.module") from None
