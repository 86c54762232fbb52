"""Imports run downwards only, heavy packages have one door each, and names with an underscore stay at home."""

import ast
import functools
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("jaxgan", "experiments")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imported(path):
    """(full name, alias, line, whether it runs on import of the module) of each; `from a import b` is a.b."""
    module, tree = name_of(path), ast.parse(path.read_text())
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    inner = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, alias.asname or alias.name.split(".")[0], node.lineno, node not in inner
        elif isinstance(node, ast.ImportFrom):
            home = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                yield f"{home}.{alias.name}", alias.asname or alias.name, node.lineno, node not in inner


def resolve(name):
    """The module of ours that a full name is, or is an attribute of; None: not ours."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


@functools.cache
def direct(module, late=True):
    names = (name for name, _, _, at_import in imported(MODULES[module]) if late or at_import)
    return frozenset(map(resolve, names)) - {None, module, *PACKAGES}


@functools.cache
def reachable(module, late=True):
    """All modules of ours that a module imports, itself or through others; `late`: inside of functions too."""
    seen, todo = set(), [module]
    while todo:
        new = direct(todo.pop(), late) - seen
        seen |= new
        todo += new
    return frozenset(seen)


def within(module, *homes):
    return any(module == home or module.startswith(f"{home}.") for home in homes)


GAME = (
    "jaxgan.game",
    "jaxgan.adversarial",
    "jaxgan.pathlength",
    "jaxgan.losses",
    "jaxgan.penalties",
    "jaxgan.regularisers",
    "jaxgan.augment",
)
RUN = (
    "jaxgan.loop",
    "jaxgan.parallel",
    "jaxgan.hosts",
    "jaxgan.checkpoint",
    "jaxgan.shelf",
    "jaxgan.leaves",
    "jaxgan.report",
    "jaxgan.trained",
    "jaxgan.config",
    "jaxgan.workdir",
    "jaxgan.preemption",
    "jaxgan.play",
)
DATA = (
    "jaxgan.data",
    "jaxgan.classes",
    "jaxgan.sources",
    "jaxgan.folders",
    "jaxgan.archives",
    "jaxgan.prepared",
    "jaxgan.images",
    "jaxgan.tables",
    "jaxgan.encoding",
    "jaxgan.datasets",
)

# Who never meets whom, not even through a third: the arrows of the design, read as walls.
WALLS = {
    "jaxgan": ("experiments",),
    "jaxgan.layers": ("jaxgan.models", "jaxgan.metrics", *GAME, *RUN, *DATA),
    "jaxgan.models": ("jaxgan.metrics", *GAME, *RUN, *DATA),
    "jaxgan.losses": ("jaxgan.models", "jaxgan.metrics", "jaxgan.game", "jaxgan.adversarial", *RUN, *DATA),
    "jaxgan.penalties": ("jaxgan.models", "jaxgan.metrics", "jaxgan.game", "jaxgan.adversarial", *RUN, *DATA),
    "jaxgan.regularisers": ("jaxgan.models", "jaxgan.metrics", "jaxgan.game", "jaxgan.adversarial", *RUN, *DATA),
    "jaxgan.orthogonal": ("jaxgan.models", "jaxgan.metrics", "jaxgan.layers", *GAME, *RUN, *DATA),
    "jaxgan.mmd": ("jaxgan.models", "jaxgan.metrics", "jaxgan.layers", *GAME, *RUN, *DATA),
    "jaxgan.augment": ("jaxgan.models", "jaxgan.metrics", "jaxgan.game", "jaxgan.adversarial", *RUN, *DATA),
    "jaxgan.game": ("jaxgan.models", "jaxgan.metrics", "jaxgan.layers", *GAME[1:], *RUN, *DATA),
    "jaxgan.adversarial": ("jaxgan.models", "jaxgan.metrics", *RUN, *DATA),
    "jaxgan.several": ("jaxgan.models", "jaxgan.metrics", *GAME[1:], *RUN, *DATA),
    "jaxgan.anomaly": ("jaxgan.loop", "jaxgan.parallel", "jaxgan.report"),
    "jaxgan.pathlength": ("jaxgan.models", "jaxgan.metrics", *RUN, *DATA),
    "jaxgan.parallel": ("jaxgan.models", "jaxgan.metrics", "jaxgan.loop", *GAME[1:], *DATA),
    "jaxgan.checkpoint": ("jaxgan.models", "jaxgan.metrics", "jaxgan.loop", *GAME, *DATA),
    "jaxgan.report": ("jaxgan.models", "jaxgan.metrics", "jaxgan.loop", *GAME, *DATA),
    "jaxgan.hosts": ("jaxgan.models", "jaxgan.metrics", "jaxgan.layers", *GAME, *RUN[:2], *RUN[3:], *DATA),
    "jaxgan.loop": ("jaxgan.models", "jaxgan.metrics", "jaxgan.layers", *GAME[1:]),
    "jaxgan.play": ("jaxgan.models", "jaxgan.metrics", "jaxgan.layers", *GAME[1:]),
    "jaxgan.metrics": (*GAME, *RUN),
    **dict.fromkeys(DATA, ("jaxgan.models", "jaxgan.metrics", "jaxgan.layers", *GAME, *RUN)),
}


@pytest.mark.parametrize("home", sorted(WALLS))
def test_imports_run_downwards(home):
    for module in MODULES:
        if within(module, home):
            crossed = {other for other in reachable(module) if within(other, *WALLS[home])}
            # The package itself is a door to sampling, opened when `jaxgan.load` is called.
            assert not crossed or module == "jaxgan", f"{module} reaches {sorted(crossed)}"


def test_walls_stand_somewhere():
    """A module that moved takes its wall with it."""
    homes = {*WALLS, *(other for walls in WALLS.values() for other in walls)}
    assert homes <= set(MODULES)


def test_no_circles():
    assert [module for module in MODULES if module in reachable(module, late=False)] == []
    # Nor where a function imports upwards.
    assert [module for module in MODULES if module in reachable(module)] == []


PEER = ("experiments.torch_peer", "experiments.torch_r3gan")  # a process of its own, which needs PyTorch and no JAX

# {package: the modules that may import it}; all but the builders of data sets only inside of functions.
DOORS = {
    "orbax": ("jaxgan.checkpoint",),
    "tensorflow_datasets": ("jaxgan.prepared", "jaxgan.datasets"),
    "tensorboardX": ("jaxgan.report",),
    "tensorflow": (),
    "torch": PEER,
    "pickle": (),
}


@pytest.mark.parametrize("package", DOORS)
def test_one_door_for_each_heavy_package(package):
    for module, path in MODULES.items():
        for name, _, line, at_import in imported(path):
            if within(name, package):
                assert within(module, *DOORS[package]), f"{path.name}:{line} imports {name}"
                alone = within(module, "jaxgan.datasets", *PEER)
                assert not at_import or alone, f"{path.name}:{line} imports {name} at once"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_private_names_stay_at_home(module):
    """Neither `from a import _b` nor `a._b` of a module of ours or of another's."""
    path = MODULES[module]
    modules = {}
    for name, alias, line, _ in imported(path):
        last = name.rpartition(".")[2]
        assert not any(part.startswith("_") and not part.startswith("__") for part in name.split(".")), (
            f"{line}: {name}"
        )
        if name in MODULES or last == alias.split(".")[0] or alias != last:
            modules[alias] = name
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            # PyTorch has no other name for its updates of many tensors at once, nor Python for an exit at once.
            private = node.attr.startswith("_") and not node.attr.startswith(("__", "_foreach_", "_exit"))
            assert not private, f"{path.name}:{node.lineno} uses {node.value.id}.{node.attr}"


def packages_after(statement):
    """Top-level packages that a fresh interpreter has imported after a statement."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


SCRIPTS = [n for n in MODULES if n.startswith("experiments.") and n not in PEER]
LATER = {"orbax", "tensorflow_datasets", "tensorflow", "tensorboardX", "sklearn", "torch"}


def test_a_bare_import_is_light():
    loaded = packages_after("import jaxgan, jaxgan.flags, jaxgan.config, jaxgan.errors")
    assert not loaded & (LATER | {"jax", "flax", "optax", "numpy", "scipy", "PIL"})


def test_an_experiment_imports_nothing_heavy():
    """What --help needs. JAX, Flax and Optax come with it; the rest when it is used."""
    loaded = packages_after("import " + ", ".join(SCRIPTS))
    assert "jax" in loaded and not loaded & LATER


def test_flags_are_not_defined_by_an_import():
    """Tests and notebooks import any number of experiments."""
    code = f"from absl import flags\nimport {', '.join(SCRIPTS)}\nprint(*flags.FLAGS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"steps", "loss", "model", "preset", "workdir"} & set(done.stdout.split())
