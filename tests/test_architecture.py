"""The law of docs/architecture.md, held by reading the sources."""

from __future__ import annotations

import ast
import runpy
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
ROOMS = {
    "edgeprune": "edgeprune",
    "models": "edgeprune.models",
    "devices": "edgeprune.devices",
    "pipelines": "edgeprune.pipelines",
}
TENSORFLOW = {"tensorflow", "tf_keras", "tensorflow_model_optimization"}


def _modules() -> dict[str, ast.Module]:
    """Module name -> its tree, for every file of the four rooms."""
    found = {}
    for folder, package in ROOMS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = _modules()


def _imports(module: str, tree: ast.AST, module_level: bool = False) -> set[str]:
    """Full names that a module imports: anywhere, or at module level outside ``if TYPE_CHECKING``."""
    nodes = ast.walk(tree)
    if module_level:
        assert isinstance(tree, ast.Module)
        checking = [
            node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ]
        kept = [
            node for node in tree.body if node not in checking and not isinstance(node, (ast.FunctionDef, ast.ClassDef))
        ]
        nodes = (inner for node in kept for inner in ast.walk(node))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; write the full name"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_mechanism_imports_no_room_around_it(module):
    outer = tuple(package for package in ROOMS.values() if package != "edgeprune")
    if not module.startswith(outer):
        assert not [name for name in _imports(module, MODULES[module]) if name.startswith(outer)]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_the_keras_room_imports_tensorflow(module):
    imported = {name.split(".")[0] for name in _imports(module, MODULES[module])}
    assert module.startswith("edgeprune.keras") or not imported & TENSORFLOW


@pytest.mark.parametrize("module", sorted(MODULES))
def test_one_module_imports_tfmot(module):
    """It takes long to import, and says what is missing."""
    imported = {name.split(".")[0] for name in _imports(module, MODULES[module])}
    assert module == "edgeprune.keras.tfmot" or "tensorflow_model_optimization" not in imported


@pytest.mark.parametrize("module", sorted(MODULES))
def test_the_keras_room_is_entered_only_when_something_is_done(module):
    imported = _imports(module, MODULES[module], module_level=True)
    assert module.startswith("edgeprune.keras") or not [name for name in imported if name.startswith("edgeprune.keras")]


def test_no_import_cycles():
    graph = {name: _imports(name, tree, module_level=True) & MODULES.keys() - {name} for name, tree in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_the_wheel_has_one_top_level_name_and_every_module(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    assert {name.split(".")[0] for name in given["packages"]} == {"edgeprune"}
    folders = {package: given["package_dir"].get(package, package.replace(".", "/")) for package in given["packages"]}
    packed = {
        f"{package}.{path.stem}".removesuffix(".__init__")
        for package, folder in folders.items()
        for path in (ROOT / folder).glob("*.py")
    }
    assert packed == MODULES.keys()
