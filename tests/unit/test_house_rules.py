"""House rules that the linter cannot say, held by reading the code's syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for name in ("db", "model", "producer", "worker") for path in (ROOT / name).rglob("*.py"))

#: Each can run its file's code.
CODE_CARRIERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "jsonpickle", "joblib", "marshal", "shelve"}
#: Parsers of such files.
CODE_CARRIERS |= {"torch", "yaml", "code", "codeop", "runpy", "imp"}
#: Each builds a network, or any object, from what a file says.
FOREIGN_LOADERS = {
    *("load_model", "model_from_json", "model_from_config", "deserialize"),
    *("deserialize_keras_object", "enable_unsafe_deserialization", "custom_object_scope", "saved_model"),
    *("read_pickle", "to_pickle", "hub", "TFSMLayer"),
}
#: Each runs a text.
RUNNERS = {"eval", "exec", "compile", "__import__"}
#: Modules that may start TensorFlow when they are imported; every other imports it late, if at all.
HEAVY = {"tensorflow", "keras", "sklearn", "pandas", "h5py", "matplotlib"}
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


def ways_to_run_a_file(tree: ast.Module) -> list[str]:
    """Name whatever in a module could run what stands in a file."""
    found = sorted(imported(ast.walk(tree)) & CODE_CARRIERS) + sorted(names(tree) & FOREIGN_LOADERS)
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and (node.arg, True) in {
            *(("allow_pickle", is_not(node.value, value=False)), ("safe_mode", is_not(node.value, value=True))),
            ("shell", is_not(node.value, value=False)),
        }:
            found.append(str(node.arg))
        # A method of that name, such as re.compile or a network's, is another thing.
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RUNNERS:
            found.append(node.func.id)
    return found


def is_not(node: ast.expr, *, value: bool) -> bool:
    return not (isinstance(node, ast.Constant) and node.value is value)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_loads_code_from_a_file(path: Path) -> None:
    assert ways_to_run_a_file(parse(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import torch.hub",
        "import yaml",
        "keras.models.load_model(path)",
        "from keras.models import load_model as innocent",
        "tf.saved_model.load(path)",
        "layers.deserialize(config)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "pd.read_pickle(path)",
        "keras.load(path, safe_mode=False)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "run(line, shell=True)",
    ],
)
def test_each_way_to_run_a_file_is_known(line: str) -> None:
    assert ways_to_run_a_file(ast.parse(line))


def test_names_that_only_look_alike_are_none() -> None:
    assert ways_to_run_a_file(ast.parse("re.compile(x); np.load(p, allow_pickle=False); network.compile()")) == []


def test_one_module_alone_opens_untrusted_pixels() -> None:
    users = {str(path.relative_to(ROOT)) for path in SOURCES if "PIL" in imported(ast.walk(parse(path)))}

    assert users == {"model/images.py"}


def test_one_module_alone_draws_and_nothing_waits_for_it_to_be_imported() -> None:
    users = {str(path.relative_to(ROOT)) for path in SOURCES if "matplotlib" in imported(ast.walk(parse(path)))}
    early = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in parse(path).body
        if isinstance(node, ast.ImportFrom) and node.module == "model.plots"
    }

    assert users == {"model/plots.py"}
    assert early == set()


@pytest.mark.parametrize("name", LIGHT_MODULES)
def test_a_light_module_starts_nothing_heavy(name: str) -> None:
    # Conditional imports of the type checker are no statements of the module's body.
    assert not imported(parse(ROOT / "model" / f"{name}.py").body) & HEAVY
