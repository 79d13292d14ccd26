"""Compares `lesion-screen run` with a plain `model.predict` loop on single images: same model, same files, one run.

Usage: compare_predict_loop.py ARCHIVE [IMAGES_OF_THE_LOOP]

The loop goes before and after the screening, so that a machine that slows down slows both. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from model.artifact import read_manifest, shipped_artifact
from model.classifier import load_network
from model.images import decode_image
from model.metadata import UNKNOWN, encode_metadata

COMMAND = Path(sys.executable).with_name("lesion-screen")


def time_loop(network: Any, files: list[Path], size: int) -> float:
    """Score files one by one as most public repositories do; returns images a second."""
    metadata = encode_metadata([UNKNOWN])
    network.predict([np.zeros((1, size, size, 3), np.float32), metadata], verbose=0)
    started = time.monotonic()
    for path in files:
        pixels = decode_image(path.read_bytes(), size).astype(np.float32) / 127.5 - 1
        network.predict([pixels[None], metadata], verbose=0)
    return len(files) / (time.monotonic() - started)


def screen(archive: Path, home: Path) -> dict[str, Any]:
    """Screen the archive into a new home; returns the report with the wall time of the whole command."""
    started = time.monotonic()
    command = [str(COMMAND), "run", str(archive), "--json"]
    environment = {**os.environ, "LESION_SCREEN_HOME": str(home)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
    report: dict[str, Any] = json.loads(done.stdout)
    return {**report, "wall_seconds": time.monotonic() - started}


def main() -> None:
    """Loop, screen, loop; print the ratio."""
    archive = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    files = sorted(archive.rglob("*.jpg"))[:count]
    manifest = read_manifest(shipped_artifact())
    network, _ = load_network(shipped_artifact(), manifest)
    size = manifest.network.input_size
    before = time_loop(network, files, size)
    with tempfile.TemporaryDirectory() as home:
        report = screen(archive, Path(home))
    after = time_loop(network, files, size)
    loop = 2 / (1 / before + 1 / after)
    whole = report["found"] / report["wall_seconds"]
    figures = {
        "images": report["found"],
        "loop_images_per_second": round(loop, 1),
        "run_images_per_second": round(report["images_per_second"], 1),
        "ratio": round(report["images_per_second"] / loop, 1),
        "ratio_with_start_up": round(whole / loop, 1),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
