"""Paths that a table names, and files opened below a root."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.paths import open_below, safe_relative, split_suffix

#: Text that is made of what makes paths dangerous.
_nasty = st.lists(
    st.sampled_from(["..", ".", "/", "\\", "~", "a", "b.jpg", "C:", "file://", "\0", " ", "\n", "é", "%2e%2e"]),
    max_size=8,
).map("".join)


@given(st.one_of(st.text(), _nasty))
def test_a_path_from_a_table_stays_below_the_root_or_is_refused(text: str) -> None:
    # If any text whatever is read as a path
    path = safe_relative(text)

    # Then it is refused, or leads below the root, and means the same when it is read again
    if path is not None:
        parts = PurePosixPath(path).parts
        assert parts
        assert ".." not in parts
        assert not PurePosixPath(path).is_absolute()
        assert os.path.normpath(f"/archive/{path}").startswith("/archive/")
        assert "\0" not in path
        assert safe_relative(path) == path


@pytest.mark.parametrize(
    "text",
    [
        "../a.jpg",
        "a/../../b.jpg",
        "/etc/passwd.jpg",
        "~/a.jpg",
        "~root/a.jpg",
        "file:///etc/a.jpg",
        "https://host/a.jpg",
        "C:\\a.jpg",
        "c:a.jpg",
        "\\\\server\\share\\a.jpg",
        "..\\a.jpg",
        "a\0.jpg",
        "a\n.jpg",
        "",
        ".",
        "./",
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(text: str) -> None:
    assert safe_relative(text) is None


@pytest.mark.parametrize(
    ("text", "path"),
    [("a.jpg", "a.jpg"), ("./a//b.jpg", "a/b.jpg"), ("part 1\\ä.PNG", "part 1/ä.PNG"), ("a..b.jpg", "a..b.jpg")],
)
def test_a_path_below_the_root_is_read_with_forward_slashes(text: str, path: str) -> None:
    assert safe_relative(text) == path


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("a.jpg", ("a", "jpg")),
        ("a.b.JPEG", ("a.b", "jpeg")),
        ("d/a.DcM", ("d/a", "dcm")),
        ("a.txt", ("a.txt", None)),
        ("ISIC_1", ("ISIC_1", None)),
        (".jpg", (".jpg", None)),
        ("d/.png", ("d/.png", None)),
        ("", ("", None)),
    ],
)
def test_only_the_ending_of_an_image_is_split_off(name: str, split: tuple[str, str | None]) -> None:
    assert split_suffix(name) == split


@given(st.text())
def test_splitting_never_loses_a_letter(name: str) -> None:
    stem, suffix = split_suffix(name)

    assert stem == name if suffix is None else name.lower() == f"{stem}.{suffix}".lower()


def test_a_file_below_the_root_is_opened(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.jpg").write_bytes(b"pixels")

    with open_below(tmp_path, "d/a.jpg") as file:
        assert file.read() == b"pixels"


def test_neither_a_link_nor_a_pipe_nor_a_way_out_is_opened(tmp_path: Path) -> None:
    # Given a secret beside the archive, and every way to it
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "file.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.jpg")
    (root / "directory.jpg").mkdir()

    # Then none is taken
    ways = ["file.jpg", "folder/secret.jpg", "../secret.jpg", str(tmp_path / "secret.jpg"), "pipe.jpg", "directory.jpg"]
    for way in [*ways, "", "a\0b", "missing.jpg"]:
        with pytest.raises(OSError, match=r".+"), open_below(root, way):
            pass
