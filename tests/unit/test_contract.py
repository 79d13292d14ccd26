"""What a claim check accepts."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from worker import contract
from worker.contract import CONTRACT_VERSION, ClaimCheck

HONEST: dict[str, Any] = {"version": 1, "batch": 2, "chunk": 3, "items": 256, "model": "a" * 64}


def test_a_claim_check_survives_the_wire() -> None:
    sent = ClaimCheck.model_validate(HONEST)

    assert ClaimCheck.model_validate_json(sent.model_dump_json()) == sent


def test_a_claim_check_is_at_most_a_kilobyte() -> None:
    largest = ClaimCheck(version=CONTRACT_VERSION, batch=2**63 - 1, chunk=2**63 - 1, items=1_000_000, model="f" * 64)

    assert len(largest.model_dump_json()) < 1024


@pytest.mark.parametrize(
    "forged",
    [
        {"batch": 0},
        {"batch": -1},
        {"chunk": 2**63},
        {"chunk": "3"},
        {"chunk": True},
        {"chunk": 3.0},
        {"items": -1},
        {"model": "A" * 64},
        {"model": "../../etc/passwd"},
        {"model": "a" * 64 + "\n"},
        {"path": "patient.jpg"},
        {"version": 0},
    ],
)
def test_a_forged_claim_check_is_refused_and_not_quoted(forged: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        ClaimCheck.model_validate(HONEST | forged)

    assert "patient.jpg" not in str(refused.value)
    assert "passwd" not in str(refused.value)


def test_names_on_the_wire_never_change() -> None:
    assert contract.SCREEN_CHUNK == "lesion_screen.screen_chunk"
    assert contract.TRAIN_MODEL == "lesion_screen.train_model"
    assert contract.RENDER_CHUNK == "lesion_screen.render_chunk"
    queues = (contract.SCREENING_QUEUE, contract.RENDERING_QUEUE, contract.TRAINING_QUEUE)
    assert queues == ("screening", "rendering", "training")


def loaded_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_contract_starts_neither_celery_nor_anything_heavier() -> None:
    assert not {"celery", "kombu", "sqlalchemy", "tensorflow", "numpy"} & loaded_by("import worker.contract")


@pytest.mark.parametrize("module", ["worker.app", "worker.tasks", "worker.doorbell"])
def test_a_parent_process_never_imports_tensorflow_nor_opens_the_ledger(module: str) -> None:
    assert not {"tensorflow", "keras", "numpy", "sqlalchemy", "PIL", "pandas"} & loaded_by(f"import {module}")


@pytest.mark.parametrize("module", ["worker.feeder", "worker.register", "worker.child", "worker.answering"])
def test_feeder_registration_and_an_idle_child_import_no_tensorflow(module: str) -> None:
    assert not {"tensorflow", "keras"} & loaded_by(f"import {module}")
