"""The installed commands, in a home of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from db.health import check_batch
from db.session import open_ledger
from model.synthetic import synthesize_archive

SHARED = Path(__file__).parents[2].parent / "shared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """Runs `lesion-screen` as a user would."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: object) -> list[str]:
        return [str(Path(sys.executable).with_name("lesion-screen")), *map(str, arguments)]

    def env(self) -> dict[str, str]:
        # To convert the network at every start would cost minutes; whoever tests speed takes the default.
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "LESION_SCREEN_HOME": str(self.home), "WORKER_ENGINE": "tensorflow"}
        return {**os.environ, **quiet, **self.environment}

    def __call__(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments), env=self.env(), capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def report(self, *arguments: object, code: int = 0) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self(*arguments, "--json", code=code).stdout)
        outcomes = ("open", "done", "referred", "rejected", "quarantined")
        assert report["found"] == sum(report[outcome] for outcome in outcomes)
        return report

    def ledger(self) -> Engine:
        return open_ledger(self.environment.get("DB_URL") or f"sqlite:///{self.home / 'ledger.sqlite'}")

    def sound(self, batch: int) -> bool:
        engine = self.ledger()
        try:
            return check_batch(engine, batch) == []
        finally:
            engine.dispose()

    def results(self) -> int:
        engine = self.ledger()
        try:
            with engine.connect() as connection:
                return int(connection.execute(text("SELECT count(*) FROM result")).scalar_one())
        finally:
            engine.dispose()


@pytest.fixture
def screen(tmp_path: Path) -> Screen:
    return Screen(home=tmp_path / "home")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Forty synthetic images and five broken entries."""
    synthesize_archive(tmp_path / "archive", images=40, broken=5, seed=1)
    return tmp_path / "archive"


@pytest.fixture
def ham10000() -> Path:
    """The real archive beside the checkout."""
    folder = SHARED / "ham10000"
    if not folder.is_dir():
        pytest.skip("HAM10000 is not beside the checkout (../shared/ham10000)")
    return folder
