"""The packages fit together, and into an environment of their own."""

from __future__ import annotations

import re
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import db.tables
import model.labels

ROOT = Path(__file__).parents[2]


def test_ledger_and_model_name_the_same_diagnoses_in_the_same_order() -> None:
    assert tuple(db.tables.CLASSES) == tuple(model.labels.CLASSES)


@pytest.mark.parametrize("name", ["worker", "producer", "model", "db"])
def test_no_other_installed_distribution_provides_our_names(name: str) -> None:
    assert set(packages_distributions().get(name, ["lesion-screen"])) == {"lesion-screen"}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_pins_every_package_by_hash_and_names_no_host(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")

    assert "://" not in text
    pins = re.findall(r"^([a-z0-9][a-z0-9._-]*)(?:\[[a-z,]+\])?==", text, re.MULTILINE)
    assert len(pins) > 50
    assert text.count("--hash=sha256:") >= len(pins)


def test_nothing_imports_the_roots_bare() -> None:
    bare = re.compile(r"^\s*import (model|db|worker|producer)\s*$", re.MULTILINE)

    guilty = [
        path.name
        for folder in ("model", "db", "worker", "producer")
        for path in (ROOT / folder).rglob("*.py")
        if bare.search(path.read_text(encoding="utf-8"))
    ]

    assert guilty == []
