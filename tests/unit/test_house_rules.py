"""House rules that the linter cannot say, held by reading the code's syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for name in ("db", "model", "producer", "worker") for path in (ROOT / name).rglob("*.py"))

#: Each can run its file's code.
CODE_CARRIERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
#: Each builds a network from what a file says.
FOREIGN_LOADERS = {"load_model", "model_from_json", "deserialize_keras_object", "enable_unsafe_deserialization"}
#: Modules that may start TensorFlow when they are imported; every other imports it late, if at all.
HEAVY = {"tensorflow", "keras", "sklearn", "pandas", "h5py"}
LIGHT_MODULES = ("artifact", "classifier", "cli", "errors", "images", "labels", "metadata", "synthetic")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST] | list[ast.stmt]) -> set[str]:
    """Roots of the packages imported."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def names(tree: ast.Module) -> set[str]:
    """Every name that the code takes from somewhere else."""
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return found


def test_there_are_sources_to_read() -> None:
    assert len(SOURCES) > 40


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_loads_code_from_a_file(path: Path) -> None:
    tree = parse(path)

    assert not imported(ast.walk(tree)) & CODE_CARRIERS
    assert not names(tree) & FOREIGN_LOADERS
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


def test_one_module_alone_opens_untrusted_pixels() -> None:
    users = {str(path.relative_to(ROOT)) for path in SOURCES if "PIL" in imported(ast.walk(parse(path)))}

    assert users == {"model/images.py"}


@pytest.mark.parametrize("name", LIGHT_MODULES)
def test_a_light_module_starts_nothing_heavy(name: str) -> None:
    # Conditional imports of the type checker are no statements of the module's body.
    assert not imported(parse(ROOT / "model" / f"{name}.py").body) & HEAVY
