"""The one object in a multipart/related answer (RFC 2387), taken out with a limit on everything around it."""

import re
from email.message import Message
from typing import Final

#: Bytes that may stand around the object: a preamble, the delimiters and the part's own headers.
OVERHEAD_BYTES: Final = 1 << 16

_OBJECT: Final = "application/dicom"
#: RFC 2046, 5.1.1; servers are known to write more than its 70 characters.
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,199}[0-9A-Za-z'()+_,./:=?-]")


class BrokenAnswer(ValueError):  # noqa: N818 - says what is the case
    """What a server sent is not one whole DICOM object; nothing of it is in the text."""


def take_object(content_type: str, body: bytes, limit: int) -> bytes:
    """Take the DICOM object out of an answer of WADO-RS (PS3.18, 8.6.1.2 and 10.4).

    Args:
        content_type: The answer's, as the server wrote it.
        body: The answer's, whole or cut off at no less than `limit` + `OVERHEAD_BYTES`.
        limit: Bytes of the object at most; what is longer is cut off there.

    Returns:
        The object's bytes.

    Raises:
        BrokenAnswer: If there is no object, more than one, or one without an end.
    """
    header = _parse(content_type)
    if header.get_content_type() == _OBJECT:
        return body[:limit]
    boundary = header.get_boundary() if header.get_content_type() == "multipart/related" else None
    if boundary is None or not _BOUNDARY.fullmatch(boundary):
        raise BrokenAnswer("The answer is no multipart one.")
    return _take_part(body, b"--" + boundary.encode("ascii"), limit)


def _parse(content_type: str) -> Message:
    message = Message()
    # Later lines of a folded header would be headers of their own.
    message["Content-Type"] = " ".join(content_type.split())
    return message


def _take_part(body: bytes, delimiter: bytes, limit: int) -> bytes:
    begin = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter, 0, OVERHEAD_BYTES) + 2
    if begin == 1:
        raise BrokenAnswer("The answer has no part.")
    line = body.find(b"\r\n", begin + len(delimiter), begin + OVERHEAD_BYTES)
    if line < 0 or body[begin + len(delimiter) : line].strip(b" \t"):
        raise BrokenAnswer("The answer has no part.")
    # A part without headers begins with an empty line at once.
    blank = body.find(b"\r\n\r\n", line, line + OVERHEAD_BYTES)
    if blank < 0 or not _is_object(body[line:blank]):
        raise BrokenAnswer("The answer's part is no DICOM object.")
    start = blank + 4
    end = body.find(b"\r\n" + delimiter, start)
    if end >= 0 and not body.startswith(b"--", end + 2 + len(delimiter)):
        raise BrokenAnswer("The answer has several parts.")
    if end < 0 and len(body) - start <= limit:
        raise BrokenAnswer("The answer's part has no end.")
    return body[start : min(end if end >= 0 else len(body), start + limit)]


def _is_object(headers: bytes) -> bool:
    for line in headers.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-type":
            return _parse(value).get_content_type() == _OBJECT
    # It is what the answer as a whole says.
    return True
