"""The report command over a real worker, and what erasing leaves of pictures."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from db.pictures import thumb_path
from producer.erasing import sweep_pictures
from worker.shelf import FolderShelf

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from tests.archive import Archive
    from tests.conftest import Scene
    from tests.stack import Stack


def read_calls(folder: Path, name: str) -> list[Any]:
    text = (folder / "data" / name).read_text(encoding="ascii")
    return list(json.loads("[" + text[text.index("(") + 1 : text.rindex(")")] + "]"))


@pytest.fixture
def ledger(sqlite_ledger: Engine) -> Engine:
    """Take SQLite alone: what is read of a ledger for a report is tested on both."""
    return sqlite_ledger


def test_a_report_holds_the_ranking_and_has_the_rest_drawn_when_asked_to(
    archive: Archive, stack: Stack, tmp_path: Path
) -> None:
    # Given an archive that a real worker has screened: two dark images, a bright one, one to refer, a broken one
    assert stack.register_model().returncode == 0
    rows = [*archive.draw(2), *archive.draw(1, first=200), *archive.draw(1, first=250)]
    archive.spoil("broken.jpg", b"\xff\xd8\xffnonsense")
    stack.start_worker()
    stack.start_feeder()
    stack.command("submit", archive.root)
    stack.until(lambda: archive.counts(1).open == 0)
    out = tmp_path / "report"

    # If a report is written
    said = stack.command("report", 1, "--out", out, "--budget", 2, "--prevalence", "0.1").stderr

    # Then the bright ones come first, with pictures, and the dark ones have none
    _, lesions = read_calls(out, "part-0.js")
    assert [image["path"] for (image,) in lesions] == ["250.png", "200.png", "001.png", "000.png"]
    assert ["thumb" in image for (image,) in lesions] == [True, True, False, False]
    assert [image["evidence"] for (image,) in lesions] == [[[255, 0], [0, 0]]] * 3 + [[[0, 0], [0, 0]]]
    assert lesions[0][0]["referred"] == "too close to call"
    assert read_calls(out, "unread-0.js") == [0, [["rejected", "not_an_image", "broken", "broken.jpg", None, None]]]
    assert read_calls(out, "index.js")[0]["totals"] == {"lesions": 4, "left_out": 0, "unread": 1, "open": 0}
    assert "4 lesions are ranked" in said
    assert "1 images were not assessed and must be read by hand" in said
    assert "must be read by hand" in (out / "index.html").read_text(encoding="utf-8")
    # And it is its owner's alone, and audited
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {0o600}
    assert {out.stat().st_mode & 0o777, (out / "data").stat().st_mode & 0o777} == {0o700}
    assert archive.number("SELECT count(*) FROM audit WHERE action = 'export_batch' AND detail = 'report'") == 1

    # If it is written again with all pictures, of the first two lesions only
    said = stack.command("report", 1, "--out", out, "--all", "--top", 2).stderr

    # Then all are drawn, the rest is said to be left out, and nothing of the first report stays behind
    assert "2 lesions rank lower and were left out" in said
    assert {path.name for path in (tmp_path / "home" / "store" / "thumbs").iterdir()} == {
        row[0] for row in _sql(archive, "SELECT input_digest FROM item WHERE input_digest IS NOT NULL")
    }
    assert len(read_calls(out, "part-0.js")[1]) == 2
    stack.command("report", 1, "--out", out)
    assert all("thumb" in image for (image,) in read_calls(out, "part-0.js")[1])
    assert len(rows) == 4


def _sql(archive: Archive, query: str) -> list[tuple[Any, ...]]:
    with archive.engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def test_an_erased_patient_is_not_in_a_report_that_is_written_again(
    archive: Archive, stack: Stack, tmp_path: Path
) -> None:
    # Given a report with a patient in it
    assert stack.register_model().returncode == 0
    archive.draw(3, first=200)
    (archive.root / "metadata.csv").write_text("isic_id,patient_id\n200,Zauberfrau\n201,other\n")
    stack.start_worker()
    stack.start_feeder()
    stack.command("submit", archive.root)
    stack.until(lambda: archive.counts(1).open == 0)
    out, store = tmp_path / "report", tmp_path / "home" / "store"
    stack.command("report", 1, "--out", out)
    assert any("Zauberfrau" in path.read_text(encoding="utf-8") for path in out.rglob("*.js"))
    assert len(list((store / "thumbs").iterdir())) == 3

    # And a page that a longer report has left
    (out / "data" / "part-9.js").write_text("Zauberfrau")

    # If the patient is forgotten and the report written again
    stack.command("forget", "Zauberfrau", "--yes")
    stack.command("report", 1, "--out", out)

    # Then neither store nor report knows of the patient
    assert len(list((store / "thumbs").iterdir())) == 2
    assert not any("Zauberfrau" in path.read_text(encoding="utf-8") for path in out.rglob("*") if path.is_file())


def test_a_prevalence_makes_no_sense_without_a_budget_and_beyond_one(archive: Archive, stack: Stack) -> None:
    batch = archive.load(archive.draw(1))

    assert "--budget" in stack.command("report", batch, "--out", "x", "--prevalence", "0.1", code=2).stderr
    said = stack.command("report", batch, "--out", "x", "--budget", 5, "--prevalence", "11", code=2).stderr
    assert "between 0 and 1" in said


def test_pictures_without_a_verdict_are_swept_once_they_are_old(scene: Scene, tmp_path: Path) -> None:
    # Given pictures with a verdict, without one, a half-written one, one that was drawn just now, and the map of an
    # earlier version
    batch, (chunk,) = scene.open(1)
    claim = scene.claim(chunk)
    scene.record(claim, scene.scored(claim.items[0], "1" * 64))
    former = f"maps/{'1' * 64}.{'a' * 16}"
    for name in (thumb_path("1" * 64), thumb_path("2" * 64), former):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    draft, fresh = tmp_path / "thumbs" / f".{'1' * 64}.123", tmp_path / thumb_path("3" * 64)
    draft.touch()
    for path in tmp_path.glob("*s/*"):
        if path.is_file():
            os.utime(path, (0, 0))
    os.utime(draft, (0, 0))
    fresh.touch()

    # If they are swept twice
    deleted = [sweep_pictures(scene.engine, FolderShelf(tmp_path)) for _ in range(2)]

    # Then what has a verdict, or may still get one, is left
    assert deleted == [3, 0]
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*s/*")}
    assert left == {thumb_path("1" * 64), thumb_path("3" * 64)}
    assert sweep_pictures(scene.engine, FolderShelf(tmp_path / "nowhere")) == 0
    assert batch
