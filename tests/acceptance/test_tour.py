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

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
#: Ends with 1, as the archive has files that cannot be read.
SOME_REJECTED = "lesion-screen run tour/archive"


def tour() -> list[str]:
    """The lines of the shell block below the heading."""
    block = re.search(r"^## A five-minute tour$.*?```sh\n(.*?)```", README, flags=re.DOTALL | re.MULTILINE)
    assert block is not None
    return block[1].splitlines()


def test_each_line_ends_as_it_says_and_leaves_what_it_promises(tmp_path: Path) -> None:
    # Given a folder with the environment in it
    (tmp_path / ".venv").symlink_to(sys.prefix)
    script = "".join(f"{line}\necho $? >> codes\n" for line in tour())
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "WORKER_ENGINE": "tensorflow"}

    # If the lines are typed one after the other
    with (tmp_path / "said").open("w") as file:
        subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, stdout=file, stderr=file, check=True, timeout=500
        )

    # Then each ends with the code that it names
    said = (tmp_path / "said").read_text()
    assert len(tour()) > 10
    codes = (tmp_path / "codes").read_text().split()
    assert codes == ["1" if line.startswith(SOME_REJECTED) else "0" for line in tour()], said
    assert "Traceback" not in said
    assert "Nothing to do" in said
    # And the counts, the table, its other form and the pages say the same as the archive
    made = tmp_path / "tour"
    expected = json.loads((made / "archive" / "expected.json").read_text(encoding="utf-8"))
    summary = json.loads((made / "results" / "summary.json").read_text(encoding="utf-8"))
    with (made / "results" / "results.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert {name: summary[name] for name in expected} == expected
    assert len(rows) == pq.read_table(made / "results" / "results.parquet").num_rows == expected["found"]
    assert f"\n{expected['rejected']} images were not assessed" in said
    assert "<title>Batch 1" in (made / "report" / "index.html").read_text(encoding="utf-8")
    assert "<title>Evaluation" in (made / "report" / "evaluation.html").read_text(encoding="utf-8")
