"""The object in a multipart answer, among whatever a server may put around it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.multipart import OVERHEAD_BYTES, BrokenAnswer, take_object

KIND = 'multipart/related; type="application/dicom"; boundary=edge'
HEAD = b"--edge\r\nContent-Type: application/dicom\r\n\r\n"
END = b"\r\n--edge--"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (KIND, HEAD + b"object" + END),
        (KIND, HEAD + b"object" + END + b"\r\n"),
        (KIND, b"preamble\r\n" + HEAD + b"object" + END + b"\r\nepilogue"),
        (KIND, b"\r\n" + HEAD + b"object" + END),
        (KIND, b"--edge \t\r\ncontent-type:application/dicom; transfer-syntax=1.2\r\nX: y\r\n\r\nobject" + END),
        (KIND, b"--edge\r\n\r\nobject" + END),
        ("MULTIPART/Related; boundary=\"ed ge\"; type='x'", HEAD.replace(b"edge", b"ed ge") + b"object\r\n--ed ge--"),
        ("multipart/related;\r\n boundary=edge", HEAD + b"object" + END),
        ("application/dicom", b"object"),
        ("Application/DICOM; transfer-syntax=1.2.840.10008.1.2.4.50", b"object"),
    ],
)
def test_the_object_is_found_however_a_server_writes_it(kind: str, body: bytes) -> None:
    assert take_object(kind, body, 100) == b"object"
    assert take_object(kind, body, 3) == b"obj"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("", b"object"),
        ("text/html", b"<html>"),
        ("application/json", b"[]"),
        ("multipart/related", HEAD + b"object" + END),
        ("multipart/related; boundary=", HEAD + b"object" + END),
        (f"multipart/related; boundary={'x' * 300}", HEAD + b"object" + END),
        ('multipart/related; boundary="a\u00fcb"', HEAD + b"object" + END),
        ("multipart/mixed; boundary=edge", HEAD + b"object" + END),
        (KIND, b""),
        (KIND, b"object"),
        (KIND, b"--edge"),
        (KIND, b"--edge--"),
        (KIND, b"--edgecase\r\nContent-Type: application/dicom\r\n\r\nobject" + END),
        (KIND, b"--edge\r\nContent-Type: image/jpeg\r\n\r\nobject" + END),
        (KIND, b"--edge\r\nContent-Type: application/dicom\r\nobject"),
        # Cut off, though it was not too long.
        (KIND, HEAD + b"object"),
        (KIND, HEAD + b"object\r\n--edg"),
        # One instance was asked for.
        (KIND, HEAD + b"object\r\n" + HEAD + b"another" + END),
        (KIND, b"x" * OVERHEAD_BYTES + b"\r\n" + HEAD + b"object" + END),
        (KIND, b"--edge\r\nX: " + b"y" * OVERHEAD_BYTES + b"\r\nContent-Type: application/dicom\r\n\r\nobject" + END),
    ],
)
def test_anything_else_is_refused_and_not_repeated(kind: str, body: bytes) -> None:
    with pytest.raises(BrokenAnswer) as refused:
        take_object(kind, body, 100)
    assert "object" not in str(refused.value).replace("DICOM object", "")


def test_an_object_that_is_too_long_is_cut_off_where_its_end_was_not_read() -> None:
    assert take_object(KIND, HEAD + b"x" * 1000, 100) == b"x" * 100


@given(kind=st.text(max_size=80) | st.just(KIND), body=st.binary(max_size=200), around=st.sampled_from([b"", HEAD]))
def test_whatever_comes_is_an_object_or_refused(kind: str, body: bytes, around: bytes) -> None:
    with contextlib.suppress(BrokenAnswer):
        assert len(take_object(kind, around + body, 50)) <= 50


@given(data=st.binary(max_size=2000))
def test_any_bytes_come_through_unchanged(data: bytes) -> None:
    if b"\r\n--edge" not in data:
        assert take_object(KIND, HEAD + data + END, 4000) == data
