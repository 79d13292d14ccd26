"""Pictures are kept in a folder or on object storage alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from db.pictures import thumb_path
from model.images import DecodedImage
from producer.erasing import sweep_pictures
from tests.objects import BUCKET
from worker.errors import ShelfUnavailable
from worker.objects import ObjectFolder
from worker.pictures import PictureStore
from worker.shelf import FolderShelf, ObjectShelf, Shelf, shelf_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Scene
    from tests.objects import ObjectServer


@pytest.fixture(params=["folder", "objects"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    if request.param == "folder":
        return shelf_of(tmp_path / "store", None)
    server: ObjectServer = request.getfixturevalue("object_server")
    for name, value in server.settings.items():
        request.getfixturevalue("monkeypatch").setenv(name, value)
    return shelf_of(tmp_path, ObjectFolder.at(f"s3://{BUCKET}/store", server.endpoint))


def test_what_one_host_draws_another_finds_and_erases(shelf: Shelf, scene: Scene) -> None:
    # Given two images that a worker has drawn, one with a verdict
    pictures = PictureStore(shelf=shelf)
    image = DecodedImage(pixels=np.full((32, 32, 3), 90, np.uint8), shown=(32, 32))
    for digest in ("1" * 64, "2" * 64):
        pictures.draw(digest, image)
    pictures.await_drawn()

    # Then whoever asks the store sees both
    assert [pictures.has_thumbnail(one * 64) for one in "123"] == [True, True, False]
    thumb = shelf.read(thumb_path("1" * 64))
    assert thumb is not None
    assert thumb.startswith(b"\xff\xd8")
    assert shelf.read(thumb_path("3" * 64)) is None

    # If the one without a verdict is settled, then it is gone, and deleting it again is no error
    pictures.settle(frozenset({"1" * 64}))
    assert [pictures.has_thumbnail(one * 64) for one in "12"] == [True, False]
    shelf.delete(thumb_path("2" * 64))

    # And a sweep leaves what is young
    assert sweep_pictures(scene.engine, shelf) == 0
    assert [name for name, _ in shelf.names("thumbs")] == ["1" * 64]
    assert list(shelf.names("nothing")) == []


def test_a_path_beyond_the_store_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()

    FolderShelf(tmp_path / "store").delete("../kept")

    assert (tmp_path / "kept").exists()


def test_a_store_that_does_not_answer_is_said(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in object_server.settings.items():
        monkeypatch.setenv(name, value)
    shelf = ObjectShelf(ObjectFolder.at(f"s3://{BUCKET}/store", "http://127.0.0.1:1"))

    with pytest.raises(ShelfUnavailable, match="does not answer"):
        list(shelf.names("thumbs"))
    assert shelf.read("thumbs/x") is None
