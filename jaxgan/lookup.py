"""Names on the command line -> modules and objects: `hinge`, or `pkg.module:name` from a fork's own code."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from jaxgan.errors import InputError, unknown


def names(package: ModuleType) -> list[str]:
    """The modules of a package."""
    return [module.name for module in pkgutil.iter_modules(package.__path__)]


def module(kind: str, name: str, package: ModuleType, needed: Sequence[str]) -> ModuleType:
    """`package.name`, or a module of one's own, `pkg.module` or `module`, which has the attributes `needed`."""
    found = None
    if "." in name and not name.endswith(".py"):  # a file's name is no module's
        found = _import(kind, name)
    elif name in names(package):
        found = importlib.import_module(f"{package.__name__}.{name}")
    elif name.isidentifier() and importlib.util.find_spec(name):  # a file in the folder, foo.py, is the module foo
        found = _import(kind, name)
    if found is None or any(not hasattr(found, attribute) for attribute in needed):
        inside = {n: importlib.import_module(f"{package.__name__}.{n}") for n in names(package)}
        choices = [n for n, m in inside.items() if all(hasattr(m, attribute) for attribute in needed)]
        own = f"pkg.{name.removesuffix('.py')}"
        raise unknown(kind, name, choices, f"or a module of your own, {own}, with {' and '.join(needed)}")
    return found


def member(kind: str, name: str, home: ModuleType, wanted: type) -> Any:
    """The `wanted` object called `name` in the module `home`, or that of `pkg.module:name`."""
    where, colon, attribute = name.partition(":")
    if colon:
        home, name = _import(kind, where), attribute
    choices = [n for n, value in vars(home).items() if isinstance(value, wanted)]
    if colon and name not in choices and hasattr(home, name):
        fields = f"({', '.join(wanted._fields)})" if hasattr(wanted, "_fields") else "(...)"
        raise InputError(
            f"the {kind} {where}:{name} is a {type(getattr(home, name)).__name__}; "
            f"expected a {wanted.__module__}.{wanted.__name__}: write {name} = {wanted.__name__}{fields}"
        )
    if name not in choices:
        raise unknown(kind, name, choices, "" if colon else f"or your own: pkg.module:{name}")
    return getattr(home, name)


def _import(kind: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ImportError as error:
        raise InputError(f"cannot import {path!r} for the {kind}: {error}") from None
    except (ValueError, TypeError):  # an empty name, or one that begins with a dot
        raise InputError(f"{path!r} is no module path for the {kind}; expected pkg.module") from None
