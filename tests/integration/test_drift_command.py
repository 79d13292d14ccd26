"""What the commands say of a batch's drift."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine

from producer.cli import cli
from tests.archive import Archive
from tests.conftest import Scene
from worker.drift import measure_finished


@pytest.fixture
def scene(sqlite_ledger: Engine, own_home: Path) -> Scene:
    """A ledger with a model that states a reference."""
    Archive(engine=sqlite_ledger, root=own_home.parent).activate_model()
    return Scene(engine=sqlite_ledger)


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def _finish(scene: Scene, images: int) -> int:
    batch, (chunk,) = scene.open(images)
    scene.finish(scene.claim(chunk))
    return batch


def test_status_warns_of_a_batch_that_is_unlike_the_reference(scene: Scene) -> None:
    # Given 500 images of one and the same score, of patients of forty
    batch = _finish(scene, 500)

    # If nothing was measured yet, nothing is said, and how it comes to be is
    assert "Drift" not in run("status", batch).stdout
    assert json.loads(run("status", batch, "--json").stdout)["drift"] is None
    assert "the feeder does so once it is finished" in run("drift", batch, code=2).stderr

    # If it was, then the sentence names what is unlike, and not what is alike
    measure_finished(scene.engine)
    said = " ".join(run("status", batch).stdout.split())
    assert "Drift: unlike what its model was judged on in malignant score (PSI" in said
    assert "body site" not in said
    figures = json.loads(run("status", batch, "--json").stdout)["drift"]
    assert figures["verdicts"] == {
        "age": "none",
        "localization": "none",
        "malignant_score": "major",
    }
    shown = run("drift", batch).stdout
    assert "malignant score" in shown
    assert "major" in shown


def test_a_small_batch_gets_no_verdict(scene: Scene) -> None:
    batch = _finish(scene, 20)
    measure_finished(scene.engine)
    assert "Drift" not in run("status", batch).stdout
    assert "20 images are too few to tell: it takes 500." in " ".join(run("drift", batch).stdout.split())
    assert "too few images" in run("drift", batch).stdout


def test_a_batch_is_accepted_with_a_reason(scene: Scene) -> None:
    batch = _finish(scene, 500)
    measure_finished(scene.engine)
    assert "together" in run("drift", batch, "--accept", code=2).stderr
    assert "together" in run("drift", batch, "--why", "x", code=2).stderr

    said = run("drift", batch, "--accept", "--why", "looked at a hundred").stderr
    assert f"are from now on compared with batch {batch}" in " ".join(said.split())

    second = _finish(scene, 500)
    measure_finished(scene.engine)
    assert "Drift" not in run("status", second).stdout
    assert f"against batch {batch}" in run("drift", second).stdout
