"""The whole loop on a labelled archive, as a hospital would live it; hours on a CPU at a real budget.

    python tests/acceptance/retraining_loop.py DATA WORK WEIGHTS 2x96

DATA is HAM10000's folder, WORK a new folder, WEIGHTS the backbone's, and 2x96 the budget. A model is trained on the
first half of the lesions and promoted by hand; the second half is screened; its diagnoses are confirmed; a model is
trained on those, judged and promoted or not; the archive is screened again, and what changed is listed. Then a data set
with shuffled labels is trained on, which the gate must refuse. One JSON line for each step.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).with_name("lesion-screen")
TABLE = "HAM10000_metadata.csv"
REFUSED = 1


def main() -> int:
    """Live through the loop; 1 where the gate let the sabotage pass."""
    data, work, weights, stages = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    with (data / TABLE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lesions = sorted({row["lesion_id"] for row in rows})
    random.Random(0).shuffle(lesions)
    early = set(lesions[: len(lesions) // 2])
    halves = [row for row in rows if row["lesion_id"] in early], [row for row in rows if row["lesion_id"] not in early]
    first, second = lay_out(data, work / "first", halves[0]), lay_out(data, work / "second", halves[1])
    screen = Screen(work / "home", data)
    budget = ("--stages", stages, "--weights", weights)

    old = screen.train("train the first half", "--data", first, *budget)["model"]
    screen("promote it", "models", "promote", old, "--why", "the first model of this archive")
    batch = screen("screen the second half", "run", second, "--json")["batch"]
    labels = work / "labels.csv"
    with labels.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image_id", "dx", "dx_type", "who", "when"))
        table.writerows((row["image_id"], row["dx"], row["dx_type"], "pathology", "2026-01-31") for row in halves[1])
    screen("confirm its diagnoses", "label", batch, labels, "--json")
    run = screen.train(
        "learn from them", "--labels-from-ledger", "--from", old, "--stages", stages, "--promote", "gate"
    )
    new = run["model"]
    again = screen("screen it again", "rescreen", batch, "--model", new)["batch"]
    screen("wait for it", "resume", again, "--json")
    screen("what changed", "changes", batch, "--from", old, "--to", new, "--json")

    shuffled = [row["dx"] for row in halves[1]]
    random.Random(1).shuffle(shuffled)
    spoilt = [{**row, "dx": dx} for row, dx in zip(halves[1], shuffled, strict=True)]
    sabotage = lay_out(data, work / "sabotage", spoilt)
    run = screen.train("learn from shuffled labels", "--data", sabotage, "--from", old, "--stages", stages, *GATED)
    return 0 if run["verdict"] == "refuse" else REFUSED


GATED = ("--promote", "gate")


class Screen:
    """Runs commands in a home of its own, and says what each printed and took."""

    def __init__(self, home: Path, gate_data: Path) -> None:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DB_", "WORKER_"))}
        self.environment = inherited | {"LESION_SCREEN_HOME": str(home), "WORKER_GATE_DATA": str(gate_data)}

    def __call__(self, step: str, *arguments: object) -> dict[str, Any]:
        """Run a command and read its JSON, where it prints some."""
        started = time.monotonic()
        command = [str(COMMAND), *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True, check=False)
        printed: dict[str, Any] = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        sys.stdout.write(json.dumps({"step": step, "seconds": round(time.monotonic() - started), **printed}) + "\n")
        sys.stdout.flush()
        return printed

    def train(self, step: str, *arguments: object) -> dict[str, Any]:
        """Train, wait, and show what the gate said."""
        run = self(step, "train", *arguments, "--json")
        shown = json.loads(
            subprocess.run(
                [str(COMMAND), "models", "show", run["model"]],
                env=self.environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for figure in ((shown["gate"] or {}).get("decision") or {}).get("figures", ()):
            sys.stdout.write(json.dumps(figure) + "\n")
        for reason in ((shown["gate"] or {}).get("decision") or {}).get("reasons", ()):
            sys.stdout.write(f"{reason}\n")
        return run


def lay_out(data: Path, folder: Path, rows: list[dict[str, str]]) -> Path:
    """Put rows and their images into a folder of their own."""
    files = {path.stem: path for path in data.rglob("*.jpg")}
    folder.mkdir(parents=True)
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    for row in rows:
        shutil.copyfile(files[row["image_id"]], folder / f"{row['image_id']}.jpg")
    return folder


if __name__ == "__main__":
    sys.exit(main())
