"""`make bench`: ours and three usual ways side by side, on the same files with the same weights; tables and a plot.

Usage: bench.py [--images DIR] [--backbone NAME] [--rounds 5] [--count 2048] [--camera-count 96] [--out bench]

All contenders are started first. Each round goes through all of them, in another order each time, so that a machine
that slows down slows all; what counts is the median of the ratios within a round. Start-up is left out of the rates and
measured by itself. DIR holds JPEG files, such as HAM10000's; without it lesions are drawn. The model is the shipped
one; `--backbone` takes another network at 224 pixels with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from db.session import open_ledger
from db.tables import Result
from model.artifact import shipped_artifact
from model.classifier import Classifier
from model.images import decode_image, encode_image
from model.metadata import UNKNOWN
from model.synthetic import draw_lesion
from tests.benchmarks import measure_ledger
from tests.benchmarks.bound import Bound
from tests.benchmarks.contenders import Contender, Dataset, Loop, OneImageTasks, Ours, Probabilities, own_environment
from tests.benchmarks.drawing import draw_bars
from tests.benchmarks.profiling import account
from tests.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.classifier import Prediction

COMMAND: Final = Path(sys.executable).with_name("lesion-screen")
#: HAM10000's size, and a 12-megapixel camera's.
LESION_SIZE: Final = (600, 450)
CAMERA_SIZE: Final = (4000, 3000)
RANDOM_INPUT_SIZE: Final = 224
AGREEMENT: Final = 1e-4
#: Of fewer the bound would be the noise of half a second.
_BOUND_FILES: Final = 64
#: Ratios of rates unless the sentence says something else; the source of each is the project's own plan.
GOALS: Final = {
    "tensorflow_to_loop": (8.0, "lesion-screen on TensorFlow against the predict loop"),
    "tensorflow_to_tasks": (6.0, "lesion-screen on TensorFlow against Celery with an image a task"),
    "auto_to_loop": (12.0, "lesion-screen against the predict loop"),
    "auto_to_dataset": (1.5, "lesion-screen against tf.data + predict"),
    "tensorflow_to_bound": (0.9, "lesion-screen on TensorFlow, share of what decoding and network alone allow"),
    "auto_to_bound": (0.9, "lesion-screen, share of what decoding and network alone allow"),
    "first_result_seconds": (15.0, "seconds from `run` to the first verdict, at most"),
    "loaded_a_second": (20_000.0, "items a second that a producer writes into SQLite"),
    "ledger_to_rate": (100.0, "images a second that the feeder rings for, against those that one worker scores"),
}
_AT_MOST: Final = {"first_result_seconds"}


@dataclass(slots=True, kw_only=True)
class Race:
    """What came of some rounds on one kind of files."""

    #: Contender, or "bound (…)", to images a second in each round.
    rates: dict[str, list[float]] = field(default_factory=dict)
    #: Largest difference from the predict loop's probabilities.
    difference: float = 0.0

    def median(self, name: str) -> float:
        return statistics.median(self.rates[name])

    def ratio(self, name: str, other: str) -> float:
        """Median of the ratios within a round."""
        return statistics.median(one / two for one, two in zip(self.rates[name], self.rates[other], strict=True))


def make_sources(given: Path | None) -> tuple[list[bytes], list[bytes]]:
    """Read or draw the images; returns them as JPEG files, and a dozen of them as a camera makes them."""
    if given is not None:
        files = [path.read_bytes() for path in sorted(given.glob("*.jpg"))]
    else:
        generator = np.random.default_rng(0)
        files = [encode_image(draw_lesion(generator), size=LESION_SIZE) for _ in range(24)]
    camera = [encode_image(decode_image(file, CAMERA_SIZE)) for file in files[:12]]
    return files, camera


def fill(folder: Path, sources: Sequence[bytes], count: int, mark: str) -> list[Path]:
    """Write JPEG files whose bytes nobody has seen before, by a comment in each: what was seen is not scored again."""
    folder.mkdir(parents=True)
    files = []
    for number in range(count):
        comment = f"{mark} {number}".encode()
        data = sources[number % len(sources)]
        path = folder / f"image_{number:05d}.jpg"
        path.write_bytes(data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:])
        files.append(path)
    return files


def race(
    contenders: Sequence[Contender],
    bounds: Sequence[Bound],
    sources: Sequence[bytes],
    folder: Path,
    *,
    rounds: int,
    count: int,
) -> Race:
    """Let all run in turn on the same new files, so many rounds."""
    result = Race()
    for number in range(rounds):
        files = fill(folder / f"round_{number}", sources, count, f"{folder.name} {number}")
        answers: dict[str, Probabilities] = {}
        first = number % len(contenders)
        for one in [*contenders[first:], *contenders[:first]]:
            share = files if one.share == 1 else files[: max(8, int(len(files) * one.share))]
            seconds, answers[one.name] = one.run(share)
            result.rates.setdefault(one.name, []).append(len(share) / seconds)
        for bound in bounds:
            result.rates.setdefault(bound.name, []).append(bound.measure(files[: max(_BOUND_FILES, count // 4)]))
        expected = answers[Loop.name]
        for found in answers.values():
            shared = expected.keys() & found.keys()
            result.difference = max(result.difference, *(np.abs(found[key] - expected[key]).max() for key in shared))
        for path in files:
            path.unlink()
        sys.stderr.write(f"{folder.name}, round {number + 1} of {rounds}\n")
    return result


def time_first_result(folder: Path, sources: Sequence[bytes], number: int) -> float:
    """Type `lesion-screen run` in a new home; returns the seconds until a verdict is in the ledger."""
    fill(folder / f"first_{number}", sources, 8, f"first {number}")
    home = folder / f"home_first_{number}"
    begun = time.perf_counter()
    process = subprocess.Popen(
        [COMMAND, "run", folder / f"first_{number}", "--json"],
        env={**own_environment(), "LESION_SCREEN_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not _has_result(home / "ledger.sqlite"):
        assert process.poll() is None, "the run ended without a verdict"
        time.sleep(0.05)
    seconds = time.perf_counter() - begun
    process.wait()
    return seconds


def _has_result(ledger: Path) -> bool:
    if not ledger.exists():
        return False
    engine = open_ledger(f"sqlite:///{ledger}")
    try:
        with engine.connect() as connection:
            return bool(connection.scalar(select(func.count()).select_from(Result)))
    except DBAPIError:
        # The tables are only being made.
        return False
    finally:
        engine.dispose()


def measure_queue(folder: Path, items: int) -> dict[str, Any]:
    """Measure queue and ledger with one client on SQLite; see `measure_ledger`."""
    broker = RedisServer.prepare()
    try:
        broker.start()
        given = argparse.Namespace(items=items, processes=1, chunk_items=256)
        return measure_ledger.measure(f"sqlite:///{folder / 'queue.sqlite'}", broker.url, given)
    finally:
        broker.remove()


def judge(figures: dict[str, float]) -> list[str]:
    """Hold figures against the goals, a line each."""
    lines = []
    for name, found in figures.items():
        goal, sentence = GOALS[name]
        met = found <= goal if name in _AT_MOST else found >= goal
        lines.append(f"| {'pass' if met else '**missed**'} | {sentence} | {goal:,.1f} | {found:,.2f} |")
    return lines


def write_tables(out: Path, report: dict[str, Any], races: dict[str, Race], goals: list[str]) -> None:
    """Write bench.json and bench.md."""
    (out / "bench.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {report['model']}, {report['cores']} cores, {report['rounds']} rounds", ""]
    for kind, one in races.items():
        lines += [
            f"## {kind}",
            "",
            "| way | images/s, median (least to most) | times the predict loop |",
            "|---|---|---|",
        ]
        for name, rates in one.rates.items():
            spread = f"{one.median(name):,.1f} ({min(rates):,.1f} to {max(rates):,.1f})"
            lines.append(f"| {name} | {spread} | {one.ratio(name, Loop.name):.1f} |")
        lines += ["", f"Largest difference in probability from the predict loop: {one.difference:.1e}.", ""]
    lines += ["## Goals", "", "| | what | goal | found |", "|---|---|---|---|", *goals, ""]
    lines += ["## Where an image's time goes", "", "| step | core-milliseconds |", "|---|---|"]
    lines += [f"| {step} | {spent:.2f} |" for step, spent in report["profile"].items()]
    (out / "bench.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def package(backbone: str | None, folder: Path, sources: Sequence[bytes]) -> Path:
    """Return the shipped model, or another network with random weights as an artifact.

    Random weights know nothing of a lesion. So that as many pictures are drawn as in real work, it flags the share of
    the sources that the shipped model flags or refers, and refers none.
    """
    if backbone is None:
        return shipped_artifact()
    from model.network import NetworkConfig
    from model.package import package_model
    from tests.random_model import draw_model

    built = draw_model(NetworkConfig.model_validate({"backbone": backbone, "input_size": RANDOM_INPUT_SIZE}))
    about = {"name": f"{backbone}, random weights", "data": "noise", "git_commit": "unknown"}
    package_model(built, folder / "draft", **about)
    share = np.mean([one.prioritised or one.referred for one in _score(shipped_artifact(), sources)])
    scores = [one.malignant_score for one in _score(folder / "draft", sources)]
    flagging = replace(built.operating_point, threshold=float(np.quantile(scores, 1 - share)))
    referring_none = replace(built.referral, max_distance=1e9, min_confidence=0.0)
    package_model(replace(built, operating_point=flagging, referral=referring_none), folder / "model", **about)
    return folder / "model"


def _score(model: Path, sources: Sequence[bytes]) -> list[Prediction]:
    classifier = Classifier.load(model)
    return classifier.classify(np.stack([classifier.decode(one).pixels for one in sources]), [UNKNOWN] * len(sources))


def bench(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Race, measure start-up and queue, and write everything down."""
    sources, camera = make_sources(given.images)
    model = package(given.backbone, folder, sources)
    fill(folder / "warm_up", sources, 16, "warm-up")
    tensorflow = Ours(model, folder / "tensorflow", "tensorflow", folder / "warm_up")
    auto = Ours(model, folder / "auto", "auto", folder / "warm_up")
    tasks = OneImageTasks(model, folder)
    with ExitStack() as stack:
        contenders: list[Contender] = [tensorflow, auto, Loop(model), Dataset(model), tasks]
        for one in contenders:
            stack.enter_context(one)
        tasks.run(sorted((folder / "warm_up").iterdir()))
        bounds = {
            one.name: stack.enter_context(Bound(f"bound of {one.name}", model, one.engine))
            for one in (tensorflow, auto)
        }
        both = list(bounds.values())
        lesions = race(contenders, both, sources, folder / "lesions", rounds=given.rounds, count=given.count)
        cameras = race(
            contenders, both, camera, folder / "camera", rounds=max(3, given.rounds // 2), count=given.camera_count
        )
        steps = bounds[auto.name].time_steps(fill(folder / "profile", sources, 128, "profile"), folder / "pictures")
    races = {"JPEG files of HAM10000's size": lesions, "12-megapixel JPEG files": cameras}
    ledger = measure_queue(folder, 50_000)
    figures = {
        "tensorflow_to_loop": lesions.ratio(tensorflow.name, Loop.name),
        "tensorflow_to_tasks": lesions.ratio(tensorflow.name, OneImageTasks.name),
        "auto_to_loop": lesions.ratio(auto.name, Loop.name),
        "auto_to_dataset": lesions.ratio(auto.name, Dataset.name),
        "tensorflow_to_bound": lesions.ratio(tensorflow.name, f"bound of {tensorflow.name}"),
        "auto_to_bound": lesions.ratio(auto.name, f"bound of {auto.name}"),
        "loaded_a_second": ledger["loaded_a_second"],
        "ledger_to_rate": ledger["rung_a_second"] / lesions.median(auto.name),
    }
    if given.backbone is None:
        # It is the shipped model that `run` takes.
        first = [time_first_result(folder, sources, number) for number in range(3)]
        figures["first_result_seconds"] = statistics.median(first)
    name = given.backbone or "The shipped model"
    report = {
        "model": name,
        "engines": {one.name: one.engine_name for one in (tensorflow, auto)},
        "cores": len(os.sched_getaffinity(0)),
        "rounds": given.rounds,
        "rates": {kind: one.rates for kind, one in races.items()},
        "difference": {kind: one.difference for kind, one in races.items()},
        "figures": figures,
        "ledger": ledger,
        "profile": account(steps, ledger, lesions.median(auto.name)),
    }
    goals = judge(figures)
    write_tables(given.out, report, races, goals)
    draw_bars(given.out / "bench.png", name, {kind: one.rates for kind, one in races.items()})
    return report


def main() -> int:
    """Bench; returns 1 where a way's probabilities differ from the others'."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--backbone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--camera-count", type=int, default=96)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        report = bench(given, Path(folder))
    sys.stdout.write((given.out / "bench.md").read_text(encoding="utf-8"))
    worst = max(report["difference"].values())
    if worst > AGREEMENT:
        sys.stderr.write(f"The probabilities differ by {worst:.1e}, more than {AGREEMENT:.0e}.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
