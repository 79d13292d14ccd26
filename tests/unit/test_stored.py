"""What a model states of itself is shown as far as it can be read, and believed only where it is the model's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from model.artifact import CARD, MANIFEST, read_manifest, shipped_artifact
from model.gate import GateDecision, GateReport
from model.report import Evaluation
from producer.stored import Figure, Gate, StoredEvaluation, gate_verdict, read_card, read_judged_point
from worker.register import register_manifest
from worker.shelf import FolderShelf


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with the shipped model's papers."""
    folder = tmp_path / "models" / digest()
    folder.mkdir(parents=True)
    for name in (MANIFEST, CARD):
        shutil.copy(shipped_artifact() / name, folder)
    return tmp_path


def digest() -> str:
    return read_manifest(shipped_artifact()).digest


def judged() -> Evaluation:
    return Evaluation.model_validate(read_manifest(shipped_artifact()).metrics)


def stated(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What registering the shipped model puts into the ledger."""
    kept: dict[str, Any] = {}
    monkeypatch.setattr("worker.register.register_model", lambda _engine, **row: kept.update(row))
    register_manifest(None, read_manifest(shipped_artifact()))  # type: ignore[arg-type]
    return dict(json.loads(json.dumps(kept["metrics"])))


def test_everything_that_the_shipped_model_states_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = StoredEvaluation.of(stated(monkeypatch))

    assert {name for name, value in found if value is None} == set()
    assert found.balanced_accuracy is not None
    assert found.balanced_accuracy.tell() == f"{judged().balanced_accuracy:.3f}"


@pytest.mark.parametrize("spoilt", ["text", [1, 2], {"value": "<b>"}, {"value": float("nan")}, -1.5, None])
def test_a_figure_that_cannot_be_read_hides_no_other(spoilt: object, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = stated(monkeypatch)

    for name in metrics.keys() & StoredEvaluation.model_fields.keys():
        found = StoredEvaluation.of(metrics | {name: spoilt})
        assert getattr(found, name) is None
        assert sum(value is None for _, value in found) == 1


def test_a_confusion_matrix_of_another_shape_is_none() -> None:
    assert StoredEvaluation.of({"confusion": [[1] * 7] * 7}).confusion is not None
    for odd in ([[1] * 7] * 6, [[1] * 7] * 6 + [[1] * 6], [[1] * 7] * 6 + [[-1] * 7]):
        assert StoredEvaluation.of({"confusion": odd}).confusion is None


def test_a_figure_says_when_it_is_undefined_and_when_its_interval_is_not_known() -> None:
    assert Figure(value=None).tell() == "undefined"
    assert Figure(value=0.5).tell(".1%") == "50.0%"
    assert Figure(value=0.5, low=0.25, high=1).tell(".1%") == "50.0% (25.0% to 100.0%)"


def test_the_operating_point_is_read_from_the_manifest_that_the_digest_names_and_from_no_other(store: Path) -> None:
    point = read_judged_point(FolderShelf(store), digest())
    assert point is not None
    assert point.sensitivity.tell(".1%") == f"{judged().operating_point.sensitivity:.1%}"

    # If a figure is changed, then it is not the model's manifest any more
    path = store / "models" / digest() / MANIFEST
    text = path.read_text(encoding="utf-8")
    count = judged().operating_point.histology_lesions
    changed = text.replace(f'"histology_lesions": {count}', f'"histology_lesions": {count + 1}')
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    assert read_judged_point(FolderShelf(store), digest()) is None
    for junk in ("", "[", "null", "[" * 100_000, "{}"):
        path.write_text(junk, encoding="utf-8")
        assert read_judged_point(FolderShelf(store), digest()) is None
    path.unlink()
    assert read_judged_point(FolderShelf(store), digest()) is None


def test_a_card_is_text_whatever_its_bytes_and_one_that_is_too_large_is_none(store: Path) -> None:
    path = store / "models" / digest() / CARD
    assert "Not a medical device" in str(read_card(FolderShelf(store), digest()))

    path.write_bytes(b"\xff\xfe card")
    assert read_card(FolderShelf(store), digest()) == "\ufffd\ufffd card"
    path.write_bytes(b"x" * 1_000_001)
    assert read_card(FolderShelf(store), digest()) is None
    path.unlink()
    assert read_card(FolderShelf(store), digest()) is None


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize("verdict", ["promote", "refuse", "undecided", None])
def test_a_gate_is_read_and_ends_as_the_gate_itself_says(verdict: Any, independent: bool) -> None:
    decision = None
    if verdict is not None:
        decision = GateDecision(
            verdict=verdict, reasons=("why",), images=2, lesions=2, malignant_lesions=1, draws=10, seed=0
        )
    report = GateReport(active="a", gate_set="b", uses=1, independent=independent, decision=decision)

    kept = report.model_dump(mode="json")

    assert gate_verdict(kept) == report.verdict
    found = Gate.of(kept)
    assert found is not None
    assert (found.decision and found.decision.reasons) == (decision and ("why",))
    assert Gate.of({"odd": 1}) is None
    assert Gate.of(None) is None
