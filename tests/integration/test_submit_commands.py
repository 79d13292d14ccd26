"""The commands on a real ledger, without workers."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from sqlalchemy import Engine, text

from db.chunks import Rejected, Scored, claim_chunk, record_results
from db.models import activate_first, register_model
from db.pictures import thumb_path
from db.results import ResultRow
from db.runs import cancel_run, claim_run, queue_run, report_epoch
from db.tables import CLASSES
from producer import inspection, training
from producer.cli import cli
from producer.ledger import read_place
from producer.progress import await_batch
from producer.terminal import open_console

MODEL = "a" * 64
PRIOR = dict(zip(CLASSES, (0.03, 0.05, 0.11, 0.01, 0.11, 0.67, 0.02), strict=True))


class Door:
    """The commands in a home of their own."""

    def __init__(self, engine: Engine, root: Path) -> None:
        self.engine = engine
        self.root = root

    def __call__(self, *arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result

    def submit(self) -> int:
        return int(json.loads(self("submit", self.root).stdout)["batch"])

    def screen(self, batch: int) -> None:
        """Do the workers' part: a verdict a file, and the last one is rejected."""
        with self.engine.connect() as connection:
            chunks = connection.execute(text("SELECT id FROM chunk WHERE batch_id = :b"), {"b": batch}).scalars().all()
        for chunk in chunks:
            claim = claim_chunk(self.engine, chunk, worker="w", lease_seconds=30)
            assert claim is not None
            outcomes: list[Scored | Rejected] = []
            for one in claim.items:
                digest = hashlib.sha256((self.root / one.path).read_bytes()).hexdigest()
                outcomes.append(
                    Scored(item_id=one.item_id, image_digest=digest, input_digest=digest, result=_row(digest))
                )
            outcomes[-1] = Rejected(item_id=claim.items[-1].item_id, reason="truncated")
            record_results(self.engine, chunk, claim.attempt, model_digest=MODEL, outcomes=outcomes)


def _row(digest: str) -> ResultRow:
    score = int(digest[:4], 16) / 0x10000 / 2
    return ResultRow(
        input_digest=digest,
        model_digest=MODEL,
        probabilities=(0.0, 0.0, 0.1, 0.1, score, 0.8 - score, 0.0),
        diagnosis="mel",
        confidence=score,
        malignant_score=score,
        referred=False,
        engine="test",
    )


@pytest.fixture
def door(sqlite_ledger: Engine, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Door:
    register_model(sqlite_ledger, digest=MODEL, name="m", backbone="b", metrics={"prior": PRIOR}, data_digest="0" * 64)
    activate_first(sqlite_ledger, MODEL, "test")
    assert own_home
    monkeypatch.setenv("PRODUCER_CHUNK_ITEMS", "4")
    root = tmp_path / "archive"
    root.mkdir()
    for number in range(6):
        (root / f"i{number}.jpg").write_bytes(bytes([number]) * 10)
    (root / "=cmd().jpg").write_bytes(b"formula")
    (root / "metadata.csv").write_text("isic_id,age_approx\ni1,40\ni2,abc\n")
    return Door(sqlite_ledger, root)


def test_submit_prints_json_alone_and_says_how_to_go_on(door: Door) -> None:
    result = door("submit", door.root)

    assert json.loads(result.stdout) == {"batch": 1, "items": 7, "chunks": 2}
    assert "lesion-screen resume 1" in result.stderr
    assert "line 3: bad_age" in result.stderr
    assert "5  images without a row" in result.stderr

    # If it is submitted again, nothing is added, and that is said
    again = door("submit", door.root)
    assert json.loads(again.stdout) == {"batch": 1, "items": 7, "chunks": 2}
    assert "Nothing was added" in again.stderr


def test_submit_lists_every_odd_row_where_it_is_asked_to(door: Door, tmp_path: Path) -> None:
    door("submit", door.root, "--problems", tmp_path / "p.csv")

    assert (tmp_path / "p.csv").read_text().splitlines()[:2] == ["line,reason,image", "3,bad_age,i2"]


def test_hints_name_options_that_the_command_has(door: Door, tmp_path: Path) -> None:
    # Given a table with more odd rows than are shown
    rows = "".join(f"i{number},abc\n" for number in range(20))
    (door.root / "metadata.csv").write_text(f"isic_id,age_approx\n{rows}")
    (tmp_path / "file").write_bytes(b"")

    # If it is submitted with and without a place for them, then that place is named
    assert "--problems FILE lists all" in door("submit", door.root, "--dry-run").stderr
    told = door("submit", door.root, "--problems", tmp_path / "p.csv").stderr
    assert "p.csv lists all" in told.replace("\n", "")

    # If diagnoses are in no file that can be read, then no table of metadata is spoken of
    for name in ("nowhere.csv", "file"):
        refused = door("label", 1, tmp_path / name, code=2).stderr
        assert refused.startswith("Error: The file of diagnoses ")
        assert "--metadata" not in refused

    # If an output cannot be written, then its option is named
    (tmp_path / "dx.csv").write_text("image_id,dx,dx_type,who,when\n")
    for command in (("submit", door.root), ("label", 1, tmp_path / "dx.csv")):
        refused = door(*command, "--problems", tmp_path / "file" / "p.csv", code=2).stderr
        assert "give another place with --problems" in refused


def test_training_beside_services_that_are_up_waits_for_their_worker(
    door: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Given services that are up, and then workers of another command alone
    home = tmp_path / "home"
    monkeypatch.setattr(training, "_await_run", lambda *_: None)
    said = []
    for services in (True, False):
        with ExitStack() as held:
            for name in ("stack.lock", *["serve.pid"] * services):
                file = held.enter_context((home / name).open("w"))
                fcntl.flock(file, fcntl.LOCK_EX)

            # If a run is to be trained here
            run = queue_run(door.engine, {}, "me")
            console = Console(record=True, width=200, file=io.StringIO())
            training._train_here(door.engine, read_place(), run, console)
            said.append(console.export_text())

    # Then it is said who trains it, and when
    assert "their training worker takes the run" in said[0]
    assert "the run begins once that has ended" in said[1]


def test_submit_with_redis_away_saves_everything_and_ends_with_3(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_BROKER_URL", "redis://:secret@127.0.0.1:1/0")

    result = door("submit", door.root, code=3)

    assert json.loads(result.stdout)["items"] == 7
    assert "safe in the ledger" in result.stderr.replace("\n", " ")
    assert "secret" not in result.output
    assert "found" in door("status", "1").stdout
    door("resume", 1, code=3)
    door("run", door.root, code=3)


def test_status_lists_every_batch_with_its_counts(door: Door) -> None:
    # Given a finished batch and a paused one
    first = door.submit()
    door.screen(first)
    (door.root / "more.jpg").write_bytes(b"more")
    second = door.submit()
    door("pause", second)

    # If no batch is named, then each has a line, the newest last, with its counts
    lines = [line.split() for line in door("status").stdout.splitlines()]
    rows = [line for line in lines if line and line[0].isdecimal()]
    assert rows == [
        [str(first), "archive", "finished", "7", "0", "5", "0", "2", "0"],
        [str(second), "archive", "paused", "8", "8", "0", "0", "0", "0"],
    ]
    # And programs are told of the newest, as ever
    assert json.loads(door("status", "--json").stdout)["batch"] == second


@pytest.mark.parametrize("command", ["run", "submit", "status"])
def test_a_database_that_is_away_ends_with_3(door: Door, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_URL", "postgresql+psycopg://u:secret@127.0.0.1:1/x")

    result = door(command, *([] if command == "status" else [door.root]), code=3)

    assert "The ledger does not answer" in result.stderr
    assert "secret" not in result.output


def test_a_batch_that_is_not_there_is_named_with_the_command_that_lists_them(door: Door) -> None:
    for command in ("verify", "resume", "pause", "status"):
        assert "There is no batch 99; `lesion-screen status` lists" in door(command, 99, code=2).stderr


def test_submit_on_a_new_home_makes_its_ledger(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LESION_SCREEN_HOME", str(tmp_path / "new"))

    assert json.loads(door("submit", door.root).stdout)["batch"] == 1
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_status_has_the_promised_names_and_adds_up(door: Door) -> None:
    batch = door.submit()

    status = json.loads(door("status", "--json").stdout)

    names = ["batch", "model", "found", "open", "done", "referred", "rejected", "quarantined"]
    assert list(status) == [*names, "seconds", "images_per_second", "drift"]
    assert (status["batch"], status["model"], status["found"], status["open"]) == (batch, MODEL, 7, 7)
    door.screen(batch)
    status = json.loads(door("status", batch, "--watch", "--json").stdout)
    assert (status["open"], status["done"], status["rejected"]) == (0, 5, 2)
    assert "finished" in door("status", batch, "--watch").stdout
    assert "no batch 99" in door("status", 99, code=2).stderr


def test_long_commands_say_how_far_they_are_in_plain_lines(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given commands that are called by another program, whose patience is short
    monkeypatch.setattr("producer.meter.LINE_SECONDS", 0)
    monkeypatch.setattr(inspection, "_ROWS_A_LOOK", 1)
    monkeypatch.setenv("PRODUCER_CHUNK_ITEMS", "3")
    monkeypatch.setenv("FORCE_COLOR", "1")

    # If an archive, in which a file is missing, is submitted, exported, watched, reported and read again
    with (door.root / "metadata.csv").open("a") as table:
        table.write("gone,50\n")
    submitted = door("submit", door.root)
    batch = json.loads(submitted.stdout)["batch"]
    door.screen(batch)
    exported = door("export", batch, "--out", tmp_path / "x.csv")
    watched = door("status", batch, "--watch")
    reported = door("report", batch, "--out", tmp_path / "report")
    verified = door("verify", batch, "--rehash")

    # Then each says so on standard error, a line a look, and what came of the images
    for said, line in (
        (submitted, r"Writing the ledger: 3 of 8 images, 3 to screen"),
        (submitted, r"Writing the ledger: 8 of 8 images, .*7 to screen, 1 rejected"),
        (exported, r"Writing: 8 of 8 images, .*4 done, 4 rejected"),
        (watched, r"8 of 8 images, 4 done, 4 rejected"),
        (reported, r"Writing the report: 4 lesions.*"),
        (verified, r"Reading files again: 4 of 4 images.*"),
    ):
        assert re.search(f"^{line}$", said.stderr, re.MULTILINE), said.stderr
        assert "\x1b" not in said.stderr


def test_a_batch_of_which_nothing_is_heard_is_spoken_of_once(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a batch that nobody screens
    batch = door.submit()
    monkeypatch.setattr("producer.progress.LISTEN_SECONDS", 0)
    monkeypatch.setattr("producer.progress._LOOK_SECONDS", 0)
    looks, said = iter(range(5)), list[str]()

    def look() -> None:
        next(looks)

    # If it is waited for, and looked at five times
    with pytest.raises(StopIteration):
        await_batch(
            door.engine,
            batch,
            keep_running=look,
            on_status=lambda _status: None,
            on_trouble=said.append,
            unheard="Nothing yet.",
        )

    # Then that is said once
    assert said == ["Nothing yet."]


def test_a_training_run_that_is_waited_for_says_how_far_it_is(
    door: Door, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a run with two of three epochs behind it, which was cancelled then
    monkeypatch.setattr("producer.meter.LINE_SECONDS", 0)
    run = queue_run(door.engine, {}, "me")
    assert claim_run(door.engine, run, worker="w") is not None
    row = {"part": "fold-0", "epoch": 2, "epochs": 3, "size": 128, "loss": 0.5, "seconds": 9.0}
    report_epoch(door.engine, run, 1, row)
    assert cancel_run(door.engine, run, "me")

    # If it is waited for
    training._await_run(door.engine, run, open_console(), lambda: None)

    # Then the epochs are counted beside the log
    said = capsys.readouterr().err
    assert "epoch 2 of 3 at 128 px" in said
    assert "Training: 2 of 3 epochs, fold-0\n" in said


def test_a_batch_is_paused_cancelled_and_resumed(door: Door) -> None:
    batch = door.submit()

    door("pause", batch)
    assert "already" in door("pause", batch).stderr
    assert "paused" in door("status").stdout
    # To wait for a paused batch would be to wait for ever
    json.loads(door("status", "--watch", "--json").stdout)
    door("cancel", batch)
    door("pause", batch, code=2)
    # What is finished needs no worker to be resumed
    with door.engine.begin() as connection:
        connection.execute(text("UPDATE batch SET state = 'open'"))
    door.screen(batch)
    door("pause", batch)
    resumed = door("resume", batch, code=1)
    assert "open again" in resumed.stderr
    assert "Nothing to do" in resumed.stderr


def test_what_failed_is_retried_once_its_cause_is_mended(door: Door) -> None:
    # Given a finished batch with two rejected items
    batch = door.submit()
    door.screen(batch)
    before = json.loads(door("status", batch, "--json").stdout)
    assert (before["done"], before["rejected"]) == (5, 2)

    # If they are retried
    said = door("retry", batch).stderr

    # Then those that name a file are open again, the user is told of the others, and the ledger is sound
    after = json.loads(door("status", batch, "--json").stdout)
    assert f"{after['open']} items of batch {batch} are open again" in said
    assert f"resume {batch}" in said
    assert after["open"] + after["rejected"] == 2
    assert after["done"] == 5
    door("verify", batch)
    assert "no batch 99" in door("retry", 99, code=2).stderr


def test_the_csv_holds_every_item_and_no_formula(door: Door, tmp_path: Path) -> None:
    batch = door.submit()
    door.screen(batch)

    door("export", batch, "--out", tmp_path / "x.csv")

    with (tmp_path / "x.csv").open(newline="") as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    assert len(rows) == 7
    assert rows["'=cmd()"]["path"] == "'=cmd().jpg"
    assert [row["reason"] for row in rows.values()].count("truncated") == 2
    summary = json.loads((tmp_path / "x.csv.summary.json").read_text())
    assert summary["prior"] == PRIOR
    assert "Not a medical device" in summary["notice"]


def test_parquet_holds_the_same_with_prior_and_notice(door: Door, tmp_path: Path) -> None:
    batch = door.submit()
    door.screen(batch)

    door("export", batch, "--format", "parquet", "--out", tmp_path / "x.parquet")

    table = pq.read_table(tmp_path / "x.parquet")
    assert table.num_rows == 7
    assert "=cmd()" in table.column("image_id").to_pylist()
    metadata = table.schema.metadata
    assert json.loads(metadata[b"prior"]) == PRIOR
    assert b"Not a medical device" in metadata[b"notice"]


def test_the_isic_table_has_a_row_a_verdict_with_the_prior_taken_out(door: Door, tmp_path: Path) -> None:
    batch = door.submit()
    door.screen(batch)

    result = door("export", batch, "--format", "isic", "--out", tmp_path / "x.csv")

    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    assert len(rows) == 5
    for row in rows:
        assert sum(float(row[name.upper()]) for name in CLASSES) == pytest.approx(1)
        # 0.1 / 0.01 is more than 0.1 / 0.11
        assert float(row["DF"]) == pytest.approx(11 * float(row["BKL"]))
    assert "2 images without a verdict" in result.stderr


def test_verify_ends_with_0_only_where_everything_holds(door: Door) -> None:
    batch = door.submit()
    door.screen(batch)
    assert "is sound" in door("verify", batch, "--rehash").stderr
    assert json.loads(door("verify", batch, "--json").stdout) == {"batch": batch, "sound": True, "findings": []}

    # If a file changes, only reading it again can tell
    (door.root / "i1.jpg").write_bytes(b"other")
    door("verify", batch)
    result = door("verify", batch, "--rehash", code=1)
    assert "changed_file: i1.jpg" in result.stderr

    # If the archive is away, no file is called missing
    door.root.rename(door.root.with_name("moved"))
    assert "mounted" in door("verify", batch, "--rehash", code=3).stderr

    # If somebody tampers with the ledger, verify says what is broken
    with door.engine.begin() as connection:
        connection.execute(text("UPDATE item SET state = 'done' WHERE reason IS NULL AND image_id = 'i1'"))
        connection.execute(text("UPDATE result SET p_mel = 2"))
    findings = json.loads(door("verify", batch, "--json", code=1).stdout)["findings"]
    assert "probabilities_sum_to_one" in {finding["name"] for finding in findings}


def test_a_second_run_of_a_finished_batch_does_nothing_and_says_so(door: Door, tmp_path: Path) -> None:
    batch = door.submit()
    door.screen(batch)

    result = door("run", door.root, "--out", tmp_path / "out", code=1)

    assert f"Nothing to do: batch {batch}" in result.stderr
    assert "Most suspicious first" in result.stdout
    assert "Not a medical device" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["problems.csv", "results.csv", "summary.json"]
    # No stack was started
    assert not (tmp_path / "home/redis").exists()
    only = door("run", door.root, "--json", code=1)
    assert json.loads(only.stdout)["found"] == 7
    assert only.stderr == ""


def test_help_starts_nothing_heavy_and_is_quick() -> None:
    # If the help is asked for in a fresh interpreter
    program = (
        "import sys\nfrom producer.cli import cli\n"
        "try: cli(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'tensorflow', 'keras', 'pandas', 'numpy', 'sqlalchemy', 'celery', 'kombu', 'redis', 'PIL', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)

    assert done.returncode == 0, done.stderr
    assert "Not a medical device" in done.stdout


def test_the_audit_trail_names_submits_and_exports_and_shows_every_tampering(door: Door, tmp_path: Path) -> None:
    # Given a batch that was submitted, paused, resumed and exported
    batch = door.submit()
    door.screen(batch)
    door("pause", batch)
    exported = door("export", batch, "--out", tmp_path / "x.csv")
    summary = json.loads((tmp_path / "x.csv.summary.json").read_text())
    head = summary["audit_head"]
    assert head in exported.stderr
    with door.engine.connect() as connection:
        trail = connection.execute(text("SELECT action, subject FROM audit ORDER BY id")).all()
    assert [row.action for row in trail] == ["activate_model", "submit_batch", "pause_batch", "export_batch"]
    assert {row.subject for row in trail[1:]} == {f"batch {batch}"}

    # Then it is sound, with the head that the export printed, also after more was done
    assert json.loads(door("verify", "--audit", "--json").stdout) == {"sound": True, "head": head, "findings": []}
    door("export", batch, "--out", tmp_path / "y.csv")
    door("verify", "--audit", "--head", head)

    # If its newest entries are removed, the chain is sound in itself, and a head that was kept tells
    with door.engine.begin() as connection:
        connection.execute(text("DELETE FROM audit WHERE action = 'export_batch'"))
    assert "can only be told with --head" in door("verify", "--audit").stderr
    result = json.loads(door("verify", "--audit", "--head", head, "--json", code=1).stdout)
    assert [finding["name"] for finding in result["findings"]] == ["audit_head_is_known"]

    # If an entry is edited, no head is needed
    with door.engine.begin() as connection:
        connection.execute(text("UPDATE audit SET actor = 'somebody else' WHERE action = 'submit_batch'"))
    assert "audit_chain_is_intact" in door("verify", "--audit", code=1).stderr


def test_forget_asks_before_it_erases_and_never_says_the_name(door: Door, tmp_path: Path) -> None:
    # Given an archive whose table names a patient
    (door.root / "metadata.csv").write_text("isic_id,patient_id\ni0,Zauberfrau\ni1,Zauberfrau\n")
    batch = door.submit()
    door.screen(batch)
    store = tmp_path / "home" / "store"
    with door.engine.connect() as connection:
        theirs = connection.execute(text("SELECT input_digest FROM item WHERE image_id = 'i0'")).scalar_one()
    # And a thumbnail of an image, and a map of it that an earlier version drew
    drawn = [store / thumb_path(theirs), store / "maps" / f"{theirs}.{'a' * 16}"]
    for path in drawn:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"a picture")

    # If the answer is no, nothing is erased
    refused = CliRunner().invoke(cli, ["forget", "Zauberfrau"], input="n\n")
    assert refused.exit_code == 2
    assert "Nothing was erased" in refused.stderr
    assert json.loads(door("status", batch, "--json").stdout)["found"] == 7

    # And with --yes, or a reference on standard input, it is
    said = CliRunner().invoke(cli, ["forget", "-", "--yes"], input="Zauberfrau\n")
    assert said.exit_code == 0
    assert "2 items and 2 verdicts of batch 1 are erased" in said.stderr
    assert "Not reached" in said.stderr
    assert "Zauberfrau" not in said.output
    # With what was drawn of the images
    assert [path.exists() for path in drawn] == [False, False]
    assert json.loads(door("status", batch, "--json").stdout)["found"] == 5
    door("verify", batch)
    door("verify", "--audit")
    door("export", batch, "--out", door.root.parent / "x.csv")
    assert len((door.root.parent / "x.csv").read_text().splitlines()) == 6
    # And once more it is said that nothing is there
    assert "nothing of a patient of that name" in door("forget", "Zauberfrau", "--yes").stderr
    assert "No patient was named" in CliRunner().invoke(cli, ["forget", "-", "--yes"], input="\n").stderr


def test_purge_erases_what_is_old_and_finished_and_names_what_it_leaves(door: Door) -> None:
    # Given an old batch that is finished, and an old one that is not
    finished = door.submit()
    door.screen(finished)
    (door.root / "more.jpg").write_bytes(b"more")
    working = door.submit()
    with door.engine.begin() as connection:
        connection.execute(text("UPDATE batch SET opened_at = opened_at - 31 * 86400"))

    # If batches older than a month are purged
    said = door("purge", "--older-than", "30d", "--yes").stderr

    # Then the first is gone, and the other is named
    assert f"Left, because they are not finished: batch {working}" in said
    assert f"7 items and 5 verdicts of batch {finished} are erased" in said
    assert "no batch" in door("status", finished, code=2).stderr
    door("verify", working)
    # And where nothing is left to erase, what an earlier purge could not delete of the pictures goes
    left = Path(os.environ["LESION_SCREEN_HOME"]) / "store" / "thumbs" / ("f" * 64)
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"a picture whose verdict is erased")
    os.utime(left, (0, 0))
    assert "No finished batch is older" in door("purge", "--older-than", "30", "--yes").stderr
    assert not left.exists()
    assert "365d" in door("purge", "--older-than", "soon", "--yes", code=2).stderr


def test_what_holds_patient_data_is_its_owners_alone(door: Door, tmp_path: Path) -> None:
    # Given the usual umask, which lets everybody read
    old = os.umask(0o022)
    try:
        # If a batch is submitted to a ledger outside the home, and exported
        batch = door.submit()
        door("export", batch, "--out", tmp_path / "new" / "x.csv")
    finally:
        os.umask(old)

    # Then folders and files that were made are closed to others
    for path in [tmp_path / "new", *(tmp_path / "new").iterdir(), *(tmp_path / "home").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path.name


def test_another_model_is_promoted_and_what_it_changes_is_listed(door: Door, tmp_path: Path) -> None:
    # Given a finished batch, and a second model with another operating point
    other = "b" * 64
    for digest, threshold in ((MODEL, 0.2), (other, 0.1)):
        with door.engine.begin() as connection:
            connection.execute(text("DELETE FROM model_version WHERE digest = :d"), {"d": digest})
        accuracy = {"value": 0.75, "low": 0.7, "high": 0.8}
        metrics = {"prior": PRIOR, "operating_point": {"threshold": threshold}, "balanced_accuracy": accuracy}
        register_model(door.engine, digest=digest, name="m", backbone="b", metrics=metrics, data_digest="0" * 64)
    door("models", "promote", MODEL[:8], "--why", "the first")
    batch = door.submit()
    door.screen(batch)

    # If it is promoted, and the batch screened again
    assert "another_reason" not in door("models", "promote", "bbbbbb", "--why", "another_reason").stderr
    assert "was already active" in door("models", "promote", "bbbbbb", "--why", "again").stderr
    again = json.loads(door("rescreen", batch).stdout)
    assert again["model"] == other
    columns = (
        "input_digest",
        *(f"p_{name}" for name in CLASSES),
        "confidence",
        "malignant_score",
        "referred",
        "engine",
    )
    same = ", ".join((*columns, "created_at"))
    with door.engine.begin() as connection:
        connection.execute(
            text(
                f"INSERT INTO result (model_digest, diagnosis, {same}) SELECT :o, 'nv', {same} FROM result"  # noqa: S608
            ),
            {"o": other},
        )

    # Then what changed is counted, listed and written
    counted = json.loads(door("changes", batch, "--from", MODEL[:6], "--to", other[:6], "--json").stdout)
    assert counted["compared"] == 5
    assert counted["newly_prioritised"] + counted["other_diagnosis"] == 5
    said = door("changes", batch, "--from", MODEL[:6], "--to", other[:6], "--out", tmp_path / "c.csv")
    assert "of 5 went from not prioritised to prioritised" in said.stderr
    assert "Not a medical device" in said.stderr
    with (tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert {row["after_diagnosis"] for row in rows} == {"nv"}
    assert all(not row["path"].startswith("=") for row in rows)
    # And going back is one command, with a reason
    assert "Give the reason" in door("models", "rollback", "--why", " ", code=2).stderr
    door("models", "rollback", "--why", "too many")
    listed = json.loads(door("models", "list", "--json").stdout)["models"]
    assert {model["digest"]: model["state"] for model in listed} == {MODEL: "active", other: "retired"}
    assert "0.750 (0.700 to 0.800)" in door("models", "list").stdout
    assert json.loads(door("models", "show", MODEL[:6]).stdout)["metrics"]["operating_point"] == {"threshold": 0.2}
    assert "nothing to go back to" in door("models", "rollback", "--why", "more", code=2).stderr
    door("verify", "--audit")


def test_confirmed_diagnoses_are_fed_back_line_by_line(door: Door, tmp_path: Path) -> None:
    # Given a screened batch, and a file with good lines, the ISIC Archive's words, and every kind of bad line
    batch = door.submit()
    door.screen(batch)
    lines = [
        "who,image_id,dx,dx_type,when",
        "Dr. A,i0,mel,histo,2026-01-31",
        "Dr. A,i1,Nevus,serial imaging showing no change,2026-01-31T10:00:00",
        "Dr. A,nowhere,mel,histo,2026-01-31",
        "Dr. A,i3,angina,histo,2026-01-31",
        "Dr. A,i3,mel,guess,2026-01-31",
        ",i3,mel,histo,2026-01-31",
        "Dr. A,i3,mel,histo,31.1.2026",
        "Dr. A,i3,mel,histo,2999-01-01",
        "Dr. A,,mel,histo,2026-01-31",
    ]
    (tmp_path / "dx.csv").write_text("\n".join(lines) + "\n")

    # If it is fed back
    said = door("label", batch, tmp_path / "dx.csv", "--problems", tmp_path / "odd.csv", code=1).stderr

    # Then the good lines count, and each bad one is named with its line
    assert "2 diagnoses are new" in said
    assert "2 images of the batch can be learned from" in said
    with (tmp_path / "odd.csv").open(newline="") as file:
        odd = {int(row["line"]): row["reason"] for row in csv.DictReader(file)}
    assert odd == {
        4: "unknown_image",
        5: "unknown_diagnosis",
        6: "unknown_dx_type",
        7: "nobody_named",
        8: "bad_date",
        9: "bad_date",
        10: "no_image_named",
    }
    # And a contradiction is said, not settled
    (tmp_path / "more.csv").write_text("image_id,dx,dx_type,who,when\ni0,nv,histo,Dr. B,2026-02-01\n")
    counted = json.loads(door("label", batch, tmp_path / "more.csv", "--json", code=1).stdout)
    assert counted == {"batch": batch, "added": 1, "known": 0, "problems": {}, "confirmed": 1, "conflicting": 2}
    # And a file without the columns is refused in a sentence
    (tmp_path / "bad.csv").write_text("image,dx\ni0,mel\n")
    assert "lacks the column image_id, dx_type, who, when" in door("label", batch, tmp_path / "bad.csv", code=2).stderr
    door("verify", "--audit")
