"""`make demo`: screens the synthetic archive and checks the ledger's counts against what was drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

COMMAND = Path(sys.executable).with_name("lesion-screen")
#: Exit code of a screening that ended with some images rejected.
SOME_FAILED = 1


def main() -> int:
    """Screen, verify and compare; say where the results lie."""
    archive, results = Path(sys.argv[1]), Path(sys.argv[2])
    expected = json.loads((archive / "expected.json").read_text(encoding="utf-8"))
    screened = subprocess.run([COMMAND, "run", archive, "--name", "demo", "--out", results], check=False)
    if screened.returncode != SOME_FAILED:
        sys.stderr.write(f"The screening ended with exit code {screened.returncode}; {SOME_FAILED} was expected.\n")
        return 1
    summary = json.loads((results / "summary.json").read_text(encoding="utf-8"))
    found = {key: summary[key] for key in expected}
    if found != expected or summary["open"] or summary["quarantined"]:
        sys.stderr.write(f"The counts are {found}; {expected} was expected.\n")
        return 1
    if subprocess.run([COMMAND, "verify", str(summary["batch"])], check=False).returncode:
        return 1
    broken = sum(expected["reasons"].values())
    sys.stdout.write(
        f"\nThe demo ended as it should: {expected['found'] - broken} synthetic images scored, {broken} broken ones "
        f"rejected with their reasons.\nResults: {results / 'results.csv'} and {results / 'summary.json'}\n"
        "Screen an archive of your own: .venv/bin/lesion-screen run ARCHIVE --out results\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
