"""What the ledger keeps of DICOM objects: frames and identifiers, on both databases."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from alembic import command
from sqlalchemy import text

from db.batches import ItemRow, finish_loading
from db.erasure import forget_patient, purge_batches
from db.labels import LabelRow, add_labels, confirmed_images
from db.migrations.upgrade import migration_config
from db.models import register_model
from db.pictures import scored_items
from db.rescreen import copy_batch
from db.session import check_revision, open_ledger, upgrade_schema

if TYPE_CHECKING:
    from tests.conftest import Scene

STUDY, SERIES, INSTANCE = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2", "2.25." + "9" * 59
IDENTIFIERS = "frame, study_uid, series_uid, instance_uid"


def frame(scene: Scene, number: int | None) -> ItemRow:
    """Describe a frame of an object."""
    one = replace(scene.item("a.dcm"), image_id=f"a#{number}", patient_ref="p1", frame=number)
    return replace(one, study_uid=STUDY, series_uid=SERIES, instance_uid=INSTANCE)


def screened(scene: Scene) -> int:
    """Open a batch of two frames of one object and a JPEG, all scored."""
    batch = scene.load([frame(scene, 1), frame(scene, 2), scene.item("b.jpg")])
    finish_loading(scene.engine, batch, "f" * 64)
    claim = scene.claim(scene.chunks(batch)[0])
    scene.finish(claim)
    return batch


def test_a_claim_says_which_frame_of_which_object(scene: Scene) -> None:
    # Given a batch of two frames and a JPEG
    batch = scene.load([frame(scene, 1), frame(scene, 2), scene.item("b.jpg")])
    finish_loading(scene.engine, batch, "f" * 64)

    # If it is claimed
    claim = scene.claim(scene.chunks(batch)[0])

    # Then the worker hears of the frames, and the ledger has the identifiers
    assert [(one.path, one.frame) for one in claim.items] == [("a.dcm", 1), ("a.dcm", 2), ("b.jpg", None)]
    assert scene.sql(f"SELECT {IDENTIFIERS} FROM item ORDER BY id") == [  # noqa: S608 - our own columns
        (1, STUDY, SERIES, INSTANCE),
        (2, STUDY, SERIES, INSTANCE),
        (None, None, None, None),
    ]


def test_a_batch_under_another_model_has_the_same_frames(scene: Scene) -> None:
    # Given a screened batch and another model
    batch = screened(scene)
    register_model(scene.engine, digest="c" * 64, name="m", backbone="b", metrics={}, data_digest="0" * 64)

    # If it is screened again
    copied = copy_batch(scene.engine, batch, "c" * 64, "me").batch_id

    # Then each item is what it was
    rows = f"SELECT path, {IDENTIFIERS} FROM item WHERE batch_id = :b ORDER BY id"  # noqa: S608 - our own columns
    assert scene.sql(rows, b=copied) == scene.sql(rows, b=batch)
    # And pictures are drawn of the right frame
    assert [one.frame for one in scored_items(scene.engine, scene.chunks(batch)[0])[1]] == [1, 2, None]


def test_two_frames_of_one_file_are_two_images_to_learn_from(scene: Scene) -> None:
    # Given two frames of one file, of different diagnoses
    batch = scene.load([frame(scene, 1), frame(scene, 2)])
    finish_loading(scene.engine, batch, "f" * 64)
    claim = scene.claim(scene.chunks(batch)[0])
    scored = [scene.scored(one) for one in claim.items]
    assert {one.image_digest for one in scored} == {"b" * 64}
    scene.record(claim, *scored)

    # If both are fed back
    rows = [
        LabelRow(line=n, image_id=f"a#{n}", dx=dx, dx_type="histo", labelled_by="me", labelled_on="2026-01-31")
        for n, dx in ((1, "nv"), (2, "mel"))
    ]
    assert add_labels(scene.engine, batch, rows, "me").added == 2

    # Then they contradict nothing
    confirmed = confirmed_images(scene.engine)
    assert [(one.frame, one.dx) for one in confirmed.images] == [(1, "nv"), (2, "mel")]
    assert confirmed.conflicting == ()


def test_nothing_names_a_forgotten_patients_studies(scene: Scene) -> None:
    # Given a screened batch of one patient's frames and a JPEG of nobody's
    screened(scene)

    # If the patient is forgotten
    assert forget_patient(scene.engine, "p1", "officer", remove_file=lambda _path: None).items == 2

    # Then no identifier is left
    assert scene.sql("SELECT path, study_uid, series_uid, instance_uid FROM item") == [("b.jpg", None, None, None)]
    assert STUDY not in str(scene.sql("SELECT subject, detail FROM audit"))


def test_nothing_names_the_studies_of_a_batch_that_was_purged(scene: Scene) -> None:
    # Given a screened batch that is old
    batch = screened(scene)
    scene.sql("UPDATE batch SET opened_at = opened_at - 8640000 WHERE id = :b", b=batch)

    # If what is old is purged; then no item is left to name them
    assert purge_batches(scene.engine, 30, "officer").items == 3
    assert scene.sql("SELECT count(*) FROM item") == [(0,)]


def test_items_of_an_earlier_ledger_are_no_dicom_objects(ledger_url: str) -> None:
    # Given a ledger of the revision before, with a batch in it
    engine = open_ledger(ledger_url)
    with engine.begin() as connection:
        config = migration_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0006")
        connection.execute(
            text(
                "INSERT INTO batch (name, source, state, priority, manifest_digest, model_digest, created_at,"
                " touched_at) VALUES ('b', '/a', 'open', 0, 'f', 'a', 1, 1)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO chunk (batch_id, state, attempt, crashes, items, open_count, done_count, referred_count,"
                " rejected_count, quarantined_count) VALUES (1, 'open', 0, 0, 1, 1, 0, 0, 0, 0)"
            )
        )
        connection.execute(
            text("INSERT INTO item (batch_id, chunk_id, path, state, marks) VALUES (1, 1, 'a.jpg', 'open', 0)")
        )

    # If it is upgraded
    upgrade_schema(engine)

    # Then nothing is lost, and the item has neither frame nor identifier
    check_revision(engine)
    with engine.connect() as connection:
        found = connection.execute(text(f"SELECT path, state, {IDENTIFIERS} FROM item")).all()  # noqa: S608 - ours
    assert [tuple(row) for row in found] == [("a.jpg", "open", None, None, None, None)]
    engine.dispose()
