"""A conversion is kept for the next start, and what is found there is believed only where it is whole and ours."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model import litert
from model.classifier import Classifier
from model.converted import ConvertedGraphs
from model.engine import FrozenGraph

if TYPE_CHECKING:
    from pathlib import Path

    from model.build import BuiltModel


class Graph:
    """A graph whose conversion takes no time and is counted."""

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.conversions = 0

    def fingerprint(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    def convert(self) -> bytes:
        self.conversions += 1
        return f"flatbuffer of {self.name}".encode() * 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "converted"


def convert(folder: Path, graph: Graph) -> bytes:
    return ConvertedGraphs(folder).convert(graph)  # type: ignore[arg-type]


def test_a_graph_is_converted_once(folder: Path) -> None:
    graph, other = Graph(), Graph("b")

    # If it is converted twice, and another one in between
    found = [convert(folder, one) for one in (graph, other, graph)]

    # Then each gets its own, and nothing but the two is left, for their owner's eyes only
    assert found == [graph.convert(), other.convert(), graph.convert()]
    assert (graph.conversions, other.conversions) == (3, 2)
    assert len(list(folder.iterdir())) == 2
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "grown", "written by others", "a folder"])
def test_what_is_not_whole_or_not_surely_ours_is_converted_anew(folder: Path, damage: str) -> None:
    # Given a kept conversion that something has happened to
    graph = Graph()
    whole = convert(folder, graph)
    (kept,) = folder.iterdir()
    data = bytearray(kept.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
    kept.write_bytes({"cut": bytes(data[:-1]), "empty": b"", "grown": bytes(data) + b"x"}.get(damage, bytes(data)))
    if damage == "written by others":
        kept.chmod(0o620)
    if damage == "a folder":
        kept.unlink()
        kept.mkdir()

    # If it is asked for, then it is made anew, and kept again where that is possible
    assert convert(folder, graph) == whole
    assert graph.conversions == 2
    convert(folder, graph)
    assert graph.conversions == (3 if damage == "a folder" else 2)
    assert [path.name for path in folder.iterdir()] == [kept.name]


def test_a_place_that_takes_nothing_costs_nothing(tmp_path: Path) -> None:
    # Given a file where the folder would be
    (tmp_path / "cache").touch()

    assert convert(tmp_path / "cache" / "converted", graph := Graph()) == graph.convert()


def test_the_oldest_go(folder: Path) -> None:
    # Given five graphs, converted one after the other
    graphs = [Graph(str(number)) for number in range(5)]
    for age, graph in enumerate(graphs):
        convert(folder, graph)
        os.utime(folder / f"{graph.fingerprint()}.tflite", (age, age))

    # If a sixth comes
    convert(folder, Graph("new"))

    # Then it and the three before it are there
    kept = {path.stem for path in folder.iterdir()}
    assert kept == {graph.fingerprint() for graph in [*graphs[2:], Graph("new")]}


def test_a_load_is_spared_the_conversion_and_not_the_comparison(
    artifact: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a model that was loaded before
    monkeypatch.setattr(litert, "is_faster", lambda *_: True)
    first = Classifier.load(artifact, engine="auto", converted=folder)
    assert first.engine_name == "litert"
    (kept,) = folder.iterdir()
    compared: list[Any] = []

    def agree(one: Any, other: Any, _samples: Any) -> bool:
        compared.append((one.name, other.name))
        return len(compared) == 1

    def fail(_frozen: Any) -> bytes:
        raise AssertionError("converted again")

    # If it is loaded again, then nothing is converted
    with monkeypatch.context() as patch:
        patch.setattr("model.engine.FrozenGraph.convert", fail)
        patch.setattr(litert, "agree", agree)
        again = Classifier.load(artifact, engine="auto", converted=folder)
        refused = Classifier.load(artifact, engine="auto", converted=folder)

    # And what is kept was compared each time, and decides nothing by itself
    assert compared == [("tensorflow-frozen", "litert")] * 2
    assert (again.engine_name, refused.engine_name) == ("litert", "tensorflow-frozen")
    assert list(folder.iterdir()) == [kept]


def test_another_network_or_another_library_is_another_graph(
    artifact: Path, built_model: BuiltModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a model that is loaded twice, and the same network with another temperature
    one, same = (FrozenGraph.fingerprint(Classifier.load(artifact)._engine) for _ in range(2))  # type: ignore[arg-type]
    given: dict[str, Any] = {"input_size": 64, "prior": np.full(7, 1 / 7), "spaces": built_model.spaces}
    graphs = [FrozenGraph(built_model.network, temperature=warm, **given) for warm in (1.0, 1.1)]
    cold, warm = (graph.fingerprint() for graph in graphs)

    # Then only what computes the same has the same name
    assert one == same
    assert len({one, cold, warm}) == 3

    # And what another version of the library made is another's
    monkeypatch.setattr("ai_edge_litert.__version__", "0.0.0")
    assert graphs[0].fingerprint() != cold
