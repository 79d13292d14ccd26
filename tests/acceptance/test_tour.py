"""The README's tour, line by line as it stands there."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
#: The tour is made once: both tests in one process.
pytestmark = pytest.mark.xdist_group("tour")

#: Ends with 1, as the archive has files that cannot be read.
SOME_REJECTED = "lesion-screen run tour/archive"


def tour() -> list[str]:
    """The lines of the shell block below the heading."""
    block = re.search(r"^## A five-minute tour$.*?```sh\n(.*?)```", README, flags=re.DOTALL | re.MULTILINE)
    assert block is not None
    return block[1].splitlines()


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after the tour, each line's exit code and output in it."""
    folder = tmp_path_factory.mktemp("toured")
    (folder / ".venv").symlink_to(sys.prefix)
    script = "".join(f"{line}\necho $? >> codes\n" for line in tour())
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "WORKER_ENGINE": "tensorflow"}
    with (folder / "said").open("w") as said:
        subprocess.run(
            ["bash", "-c", script], cwd=folder, env=environment, stdout=said, stderr=said, check=True, timeout=500
        )
    return folder


def test_each_line_ends_as_it_says(toured: Path) -> None:
    codes = (toured / "codes").read_text().split()
    said = (toured / "said").read_text()

    assert len(tour()) > 10
    assert codes == ["1" if line.startswith(SOME_REJECTED) else "0" for line in tour()], said
    assert "Traceback" not in said
    assert "Nothing to do" in said


def test_what_it_promises_is_there(toured: Path) -> None:
    # Given what the synthetic archive holds, and what became of it
    made = toured / "tour"
    expected = json.loads((made / "archive" / "expected.json").read_text(encoding="utf-8"))
    summary = json.loads((made / "results" / "summary.json").read_text(encoding="utf-8"))
    with (made / "results" / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    # Then the counts, the table, its other form and the pages say the same
    assert {name: summary[name] for name in expected} == expected
    assert len(rows) == pq.read_table(made / "results" / "results.parquet").num_rows == expected["found"]
    assert f"\n{expected['rejected']} images were not assessed" in (toured / "said").read_text()
    assert "<title>Batch 1" in (made / "report" / "index.html").read_text(encoding="utf-8")
    assert "<title>Evaluation" in (made / "report" / "evaluation.html").read_text(encoding="utf-8")
