"""The canary: a name that is nowhere else, planted wherever an archive has names, and every way to find it again."""

import base64
import io
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from pydicom import dcmread

from tests.dicoms import PHOTOGRAPH, make_dicom, write_dicom
from tests.servers import RedisServer, await_that

#: In the place of a patient's name. ASCII, so that no encoding hides it.
CANARY: Final = "Zilpzalp-Kanarienvogel"


def _forms() -> tuple[bytes, ...]:
    plain = CANARY.lower().encode()
    # Within base64 a text has one of three looks, by its place; its ends mix with what stands beside it.
    encoded = [base64.b64encode(b"\0" * shift + CANARY.encode())[4:-4].lower() for shift in range(3)]
    return (
        plain,
        plain.replace(b"-", b"_"),
        CANARY.encode().hex().encode(),
        CANARY.lower().encode("utf-16-le"),
        *encoded,
    )


_FORMS: Final = _forms()


def is_in(content: bytes | str) -> bool:
    """Say whether the canary is in a text, as it is, in base64, in hexadecimal or in UTF-16."""
    lowered = (content.encode(errors="surrogateescape") if isinstance(content, str) else content).lower()
    return any(form in lowered for form in _FORMS)


def places(contents: Iterable[tuple[str, bytes | str]]) -> list[str]:
    """Name the places whose content, or whose own name, holds the canary."""
    return [name for name, content in contents if is_in(content) or is_in(name)]


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Read every file below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


def redis_keys(server: RedisServer) -> Iterator[tuple[str, bytes]]:
    """Dump every key that a server has now."""
    with server.client as client:
        # Compressed, a name would not be found.
        client.config_set("rdbcompression", "no")
        for key in client.scan_iter():
            yield f"key {key!r}", key + (client.dump(key) or b"")


def redis_files(server: RedisServer) -> Iterator[tuple[str, bytes]]:
    """Let a server write its snapshot, end it, and read all that it has on disk: snapshot, append-only files, log."""
    with server.client as client:
        client.config_set("rdbcompression", "no")
        client.save()
    server.kill()
    yield from files_below(server.folder)


class Wire:
    """All that is said to a Redis server, published messages included, as its MONITOR tells it."""

    def __init__(self, server: RedisServer) -> None:
        self.heard = b""
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._socket.sendall(f"AUTH {server.password}\r\nMONITOR\r\n".encode())
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        await_that(lambda: self.heard.count(b"+OK") == 2)

    def _listen(self) -> None:
        heard = io.BytesIO()
        while piece := self._socket.recv(1 << 16):
            heard.write(piece)
            self.heard = heard.getvalue()

    def close(self) -> None:
        """Hang up."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._listener.join()
        self._socket.close()


@contextmanager
def listen(server: RedisServer) -> Iterator[Wire]:
    """Listen to a server."""
    wire = Wire(server)
    try:
        yield wire
    finally:
        wire.close()


def draw(brightness: int, image_format: str = "JPEG") -> bytes:
    """Draw an image that carries the canary in its EXIF block."""
    exif = Image.Exif()
    exif[0x010E] = f"{CANARY}, left arm"
    out = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), brightness, np.uint8)).save(out, image_format, exif=exif)
    assert is_in(out.getvalue())
    return out.getvalue()


def draw_object(brightness: int) -> bytes:
    """Make a DICOM object with the canary in its patient's name and identifiers, in comments and in a private tag."""
    pixels = np.full((40, 40, 3), brightness, np.uint8)
    names: dict[str, Any] = dict.fromkeys(("PatientName", "PatientID", "PatientComments", "StudyDescription"), CANARY)
    made = dcmread(io.BytesIO(make_dicom(pixels, sop_class=PHOTOGRAPH, seed=brightness, **names)))
    made.private_block(0x0009, CANARY, create=True).add_new(0x01, "LO", CANARY)
    return write_dicom(made)


#: Brightness of the image that kills whoever decodes it, where LIGHT_VICTIM says so.
DEADLY: Final = 7


def plant(root: Path) -> None:
    """Make an archive with the canary in folder, file names, EXIF, DICOM headers and every column of its table."""
    ward = root / f"{CANARY}-ward"
    ward.mkdir(parents=True)
    whole = draw(100)
    files = {
        **{f"good_{number}.jpg": draw(number) for number in (50, 100, 250)},
        "good.png": draw(60, "PNG"),
        "deadly.png": draw(DEADLY, "PNG"),
        "truncated.jpg": whole[:-12],
        "empty.jpg": b"",
        "page.jpg": f"<html>{CANARY}</html>".encode(),
        "drawing.jpg": f"%!PS-Adobe-3.0 {CANARY}".encode(),
        "scan.dcm": CANARY.encode() * 50,
        "object.dcm": draw_object(120),
        "object": draw_object(130),
    }
    for name, content in files.items():
        (ward / f"{CANARY}_{name}").write_bytes(content)
    (ward / f"{CANARY}_link.jpg").symlink_to("/etc/hostname")
    table = [
        "isic_id,age_approx,sex,anatom_site_general,lesion_id,patient_id,diagnosis_1",
        *(f"{CANARY}_{name},50,{CANARY},{CANARY},L-{CANARY},P-{CANARY},{CANARY}" for name in files),
        f"{CANARY}_gone,{CANARY},male,back,L1,P-{CANARY},",
        f"../{CANARY},50,male,back,L1,P-{CANARY},",
        f"{CANARY},too,few",
        f"{'x' * 501},50,{CANARY * 30},back,L1,P1,",
    ]
    (root / "metadata.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
