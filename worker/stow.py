"""Storing in a PACS: STOW-RS (PS3.18, 10.5), many objects a request, and what became of each of them."""

import json
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from worker.errors import PacsRefuses, PacsUnavailable
from worker.patience import pause
from worker.wado import JSON, WebServer

#: Times a request is sent; storing the same objects again changes nothing.
_TRIES: Final = 5
#: Seconds; a server that takes no connection for so long is away.
_CONNECT_SECONDS: Final = 5.0
#: An answer names each object; longer ones are no answer.
_ANSWER_BYTES: Final = 1 << 22

#: Refusals that pass: request timeout, too early, too many requests, and a server in trouble.
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
#: PS3.18, table 10.5.3-1: all stored, some stored, none stored.
_ACCEPTED, _CONFLICT, _OK = 202, 409, 200
_TOO_LARGE: Final = 413

#: Failure Reason "Duplicate SOP Instance" (PS3.18, I.2.2; PS3.7, C.5.3): it is there, which is all that is wanted.
_DUPLICATE: Final = 0x0111
#: What is said of an object that the answer does not name (PS3.7, C.5.8, "Processing failure").
_UNNAMED: Final = 0x0110

_REFERENCED_SOPS, _FAILED_SOPS = "00081199", "00081198"
_INSTANCE, _REASON = "00081155", "00081197"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What became of one request."""

    #: Instance UIDs that the PACS has now, or had before.
    there: frozenset[str]
    #: Instance UID to Failure Reason (0008,1197).
    failed: Mapping[str, int] = field(default_factory=dict)


def store_objects(server: WebServer, objects: Sequence[tuple[str, bytes]]) -> Stored:
    """Store objects in a PACS. Idempotent: an object that is there already counts as stored.

    Args:
        server: Who is to have them.
        objects: Instance UID and file (PS3.10) of each.

    Returns:
        Which are there, and why the others are not.

    Raises:
        PacsUnavailable: If the server does not answer, or is in trouble, however often it is asked.
        PacsRefuses: If it lets us store nothing.
    """
    boundary = _boundary_of([data for _, data in objects])
    body = b"".join(_part(boundary, data) for _, data in objects) + f"--{boundary}--\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    for attempt in range(1, _TRIES + 1):
        status, answer = _post(server, kind, body)
        if status is not None and status not in _PASSING:
            return _read_answer(status, answer, [uid for uid, _ in objects])
        if attempt < _TRIES:
            time.sleep(pause(attempt))
    raise PacsUnavailable("The PACS does not answer, or is in trouble; look at it, and send again.")


def _boundary_of(files: Sequence[bytes]) -> str:
    # Fixed, so that a request is the same when it is sent again; and in none of the files.
    boundary = "lesion-screen"
    while any(f"--{boundary}".encode() in data for data in files):
        boundary += "-"
    return boundary


def _part(boundary: str, data: bytes) -> bytes:
    return f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + data + b"\r\n"


def _post(server: WebServer, kind: str, body: bytes) -> tuple[int | None, bytes]:
    from urllib3 import Timeout
    from urllib3.exceptions import HTTPError

    headers = {"Content-Type": kind, "Accept": JSON, "Accept-Encoding": "identity"}
    written = server.access.authorization() if server.is_ours else None
    if written is not None:
        headers["Authorization"] = written
    try:
        response = server.open_pool().urlopen(
            "POST",
            f"{server.path}/studies",
            body=body,
            headers=headers,
            retries=False,
            # It could lead to any host.
            redirect=False,
            timeout=Timeout(connect=_CONNECT_SECONDS, read=server.access.silence),
            preload_content=False,
            decode_content=False,
        )
        try:
            return response.status, response.read(_ANSWER_BYTES)
        finally:
            response.close()
    except (HTTPError, ssl.SSLError, ConnectionError):
        return None, b""


def _read_answer(status: int, answer: bytes, sent: Sequence[str]) -> Stored:
    if status == _TOO_LARGE:
        return Stored(there=frozenset(), failed=dict.fromkeys(sent, _UNNAMED))
    if status not in {_OK, _ACCEPTED, _CONFLICT}:
        raise PacsRefuses(
            f"The PACS does not let us store (HTTP {status}); check WORKER_DICOMWEB_SERVER and the credentials."
        )
    try:
        told = json.loads(answer)
        told = told[0] if isinstance(told, list) else told
        there = {_value(item, _INSTANCE) for item in _items(told, _REFERENCED_SOPS)}
        failed = {_value(item, _INSTANCE): int(_value(item, _REASON)) for item in _items(told, _FAILED_SOPS)}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        # A server may answer 200 without a word (PS3.18, 10.5.3.1): then all is stored.
        if status == _OK and not answer.strip():
            return Stored(there=frozenset(sent))
        return Stored(there=frozenset(), failed=dict.fromkeys(sent, _UNNAMED))
    there |= {uid for uid, reason in failed.items() if reason == _DUPLICATE}
    lost = {uid: failed.get(uid, _UNNAMED) for uid in sent if uid not in there}
    return Stored(there=frozenset(uid for uid in sent if uid in there), failed=lost)


def _items(told: Any, tag: str) -> list[Any]:
    return list(told.get(tag, {}).get("Value", []))


def _value(item: Any, tag: str) -> str:
    return str(item[tag]["Value"][0])
