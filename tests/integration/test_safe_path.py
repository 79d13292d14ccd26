"""What lies in the folder that a command is typed in is never run, whatever it is called."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from db.evidence import pack_evidence
from db.instances import ScreenedInstance
from producer import serving
from producer.blending import Blender
from producer.cli import cli
from producer.errors import ServiceProblem
from worker.register import register_shipped_model

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine


FINDING = ScreenedInstance(
    item_id=1,
    path="a.dcm",
    frame=None,
    instance_uid="1.2",
    image_digest="b" * 64,
    input_digest="c" * 64,
    model_digest="d" * 64,
    diagnosis="nv",
    confidence=0.9,
    malignant_score=0.1,
    probabilities=(0.0, 0.0, 0.0, 0.0, 0.1, 0.9, 0.0),
    referred=False,
    refer_reason=None,
    engine="test",
    evidence=pack_evidence([[0.0, 1.0], [1.0, 0.0]]),
    created_at=0.0,
)


class Shelf:
    """A store whose every picture is none."""

    def read(self, _name: str) -> bytes:
        return b"no picture"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules that bear our packages' names and leave a trace where one is run."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for name in ("worker", "producer", "db"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'trace')!r}, 'w').close()", encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def test_doctor_loads_the_model_by_our_own_program(sqlite_ledger: Engine, own_home: Path, here: Path) -> None:
    register_shipped_model(sqlite_ledger, own_home / "store")

    told = CliRunner().invoke(cli, ["doctor"])

    assert not (here / "trace").exists()
    assert "repeats its golden prediction" in " ".join(told.stdout.split())


def test_overlays_are_drawn_by_our_own_program(own_home: Path, here: Path) -> None:
    with Blender(Shelf(), own_home) as blender:  # type: ignore[arg-type]
        drawn = blender.blend(FINDING)

    assert not (here / "trace").exists()
    assert drawn is None


def test_services_are_started_by_our_own_program(
    sqlite_ledger: Engine, own_home: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a machine whose background process says only how it is used
    register_shipped_model(sqlite_ledger, own_home / "store")
    said: list[str] = []

    def start(command: list[str], **given: Any) -> None:
        given = {name: value for name, value in given.items() if name not in {"stdout", "stderr"}}
        done = subprocess.run(
            [*command[:3], "--help"], capture_output=True, text=True, timeout=60, check=False, **given
        )
        said.append(done.stdout)
        raise ServiceProblem("Far enough.")

    monkeypatch.setattr(serving, "_insist_on_port", lambda: None)
    monkeypatch.setattr(serving, "subprocess", SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL))

    # If it is started
    told = CliRunner().invoke(cli, ["up"])

    # Then it is ours
    assert told.exit_code == 3
    assert not (here / "trace").exists()
    assert "Screen archives" in said[0]
