"""`lesion-screen submit --dry-run`: what an archive would cost, and nothing written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from model.synthetic import synthesize_archive

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Scene
    from tests.stack import Stack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    synthesize_archive(tmp_path / "images", images=6, broken=5, seed=2)
    return tmp_path / "images"


def forecast(stack: Stack, folder: Path) -> tuple[dict[str, Any], str]:
    done = stack.command("submit", "--dry-run", folder)
    return dict(json.loads(done.stdout)), " ".join(done.stderr.split())


def test_before_anything_was_screened_the_rate_is_not_made_up(stack: Stack, scene: Scene, folder: Path) -> None:
    # Given a ledger without a batch
    # If an archive is asked about
    told, said = forecast(stack, folder)

    # Then it is counted, nobody guesses how long it takes, and nothing was written
    assert told["items"] == 6 + 5
    assert told["rejected"] == 1
    assert told["image_bytes"] == sum(
        path.stat().st_size for path in folder.rglob("*") if path.suffix in {".jpg", ".jpeg", ".png", ".dcm"}
    )
    assert told["hours"] is told["images_per_second"] is None
    assert "How long it takes is not known" in said
    assert "Nothing was written." in said
    assert scene.sql("SELECT count(*) FROM batch") == [(0,)]


def test_the_hours_are_those_of_the_newest_batches(stack: Stack, scene: Scene, folder: Path) -> None:
    # Given 300 images that were screened at 2 a second, and a newer batch that waits
    batch, (chunk,) = scene.open(300)
    scene.finish(scene.claim(chunk))
    scene.sql("UPDATE batch SET opened_at = (SELECT recorded_at - 150 FROM chunk WHERE id = :c)", c=chunk)
    scene.open(5)

    # If an archive is asked about
    told, said = forecast(stack, folder)

    # Then
    assert told["images_per_second"] == pytest.approx(2, abs=0.01)
    assert told["hours"] == pytest.approx(10 / 2 / 3600, rel=0.01)
    assert told["ledger_bytes"] == 11 * {"sqlite": 700, "postgresql": 1600}[scene.engine.dialect.name]
    assert "About 1 min at 2.0 images/s" in said
    assert batch == 1


@pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)
def test_an_archive_that_is_a_batch_already_is_said(stack: Stack, folder: Path) -> None:
    stack.register_model()
    batch = json.loads(stack.command("submit", folder).stdout)["batch"]

    told, said = forecast(stack, folder)

    assert told["batch"] == batch
    assert f"batch {batch} is this very archive" in said
