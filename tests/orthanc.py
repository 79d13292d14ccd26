"""An Orthanc of a test's own with its DICOMweb plugin, which can be killed and started again on the same data."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pytest
import urllib3
from pydantic import SecretStr

from tests.dicoms import PHOTOGRAPH, code, make_dicom
from tests.servers import await_that, die_with_parent, find_port
from worker.dicomweb import DicomWebPlace
from worker.wado import Access

#: Where Debian puts it, which is on no user's path.
_PROGRAM: Final = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
_PLUGIN: Final = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")

USER: Final = "screening"
PASSWORD: Final = "pacs-pass-word"


@dataclass(slots=True, kw_only=True)
class Orthanc:
    """A real PACS on loopback, that asks for a password."""

    folder: Path
    port: int = field(default_factory=find_port)
    #: What else its configuration says, at its next start.
    options: dict[str, object] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    @classmethod
    def prepare(cls) -> Self:
        """Make a folder; nothing runs yet. Without the program a test is skipped on a laptop, and fails in CI."""
        if not (Path(_PROGRAM).exists() and _PLUGIN.exists()):
            told = (
                "Orthanc is not installed (Debian: apt-get install orthanc orthanc-dicomweb): the PACS was NOT tested"
            )
            if os.environ.get("CI"):
                pytest.fail(told)
            pytest.skip(told)
        return cls(folder=Path(tempfile.mkdtemp(prefix="lspacs")))

    @property
    def endpoint(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        """The environment of whoever may use it."""
        return self.settings_through(self.port)

    def settings_through(self, port: int) -> dict[str, str]:
        """Make the environment of whoever may use it by way of another port."""
        return {
            "WORKER_DICOMWEB_SERVER": f"http://127.0.0.1:{port}",
            "WORKER_DICOMWEB_USER": USER,
            "WORKER_DICOMWEB_PASSWORD": PASSWORD,
        }

    def address(self, query: str = "", port: int | None = None) -> str:
        """Name it as a user does, by way of another port perhaps."""
        return f"dicomweb://127.0.0.1:{port or self.port}/dicom-web{'?' if query else ''}{query}"

    def place(self, query: str = "", port: int | None = None, **access: float) -> DicomWebPlace:
        """Name it as an archive's root."""
        server = f"http://127.0.0.1:{port or self.port}"
        way = Access(server=server, user=USER, password=SecretStr(PASSWORD), **access)  # type: ignore[arg-type]
        return DicomWebPlace.at(self.address(query, port), way)

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = self.folder / "orthanc.json"
        data = str(self.folder / "data")
        told = {
            "Name": "test",
            "StorageDirectory": data,
            "IndexDirectory": data,
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "HttpBindAddresses": ["127.0.0.1"],
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "Plugins": [str(_PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "KeepAlive": True,
        }
        settings.write_text(json.dumps(told | self.options), encoding="utf-8")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [_PROGRAM, str(settings)],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - a killed pytest must leave no server
            )
        await_that(self._is_up)

    def _is_up(self) -> bool:
        try:
            return self._call("GET", "/system").status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def _call(self, method: str, path: str, body: bytes | None = None) -> urllib3.BaseHTTPResponse:
        headers = urllib3.make_headers(basic_auth=f"{USER}:{PASSWORD}")
        return urllib3.request(method, self.endpoint + path, body=body, headers=headers, retries=False)

    def store(self, objects: Iterable[bytes]) -> list[str]:
        """Store objects; returns Orthanc's own names for them."""
        answers = [self._call("POST", "/instances", data) for data in objects]
        assert {answer.status for answer in answers} <= {200}, answers[0].data
        return [answer.json()["ID"] for answer in answers]

    def count(self) -> int:
        """Count the instances it has."""
        return int(self._call("GET", "/statistics").json()["CountInstances"])

    def delete(self, name: str) -> None:
        """Delete an instance by Orthanc's name."""
        assert self._call("DELETE", f"/instances/{name}").status == 200

    def kill(self) -> None:
        """End it without warning; idempotent."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        """Kill it and delete its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def skin_object(
    study: int,
    series: int = 0,
    instance: int = 0,
    *,
    brightness: int = 128,
    frames: int = 1,
    syntax: str = "explicit",
    **headers: Any,
) -> bytes:
    """Make a small photograph of one brightness that is called by its numbers."""
    names = {
        "StudyInstanceUID": f"2.25.{study}",
        "SeriesInstanceUID": f"2.25.{study}.{series}",
        "SOPInstanceUID": f"2.25.{study}.{series}.{instance}",
    }
    said = {"PatientID": f"P{study}", "PatientSex": "F", "PatientAge": "054Y", "StudyDate": "20240301"}
    coded: dict[str, Any] = {"AnatomicRegionSequence": [code("SCT", "77568009", "Back")], "Modality": "XC"}
    pixels = [np.full((16, 16, 3), brightness, np.uint8)] * frames
    return make_dicom(pixels, syntax, sop_class=PHOTOGRAPH, **{**names, **said, **coded, **headers})
