"""What a PACS says of patients, the names of its objects, and its password stay where they belong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydicom import config

from tests.faults.proxy import Proxy
from tests.orthanc import PASSWORD, skin_object
from tests.security.canary import CANARY, files_below, is_in, listen, places, redis_files, redis_keys

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.archive import Archive
    from tests.orthanc import Orthanc
    from tests.servers import RedisServer
    from tests.stack import Stack

#: What every identifier here begins with, and every path.
NAMES = (b"2.25.", b"studies/", b"instances")


def test_what_a_pacs_says_of_patients_is_in_no_log_no_error_and_not_in_redis(
    archive: Archive,
    stack: Stack,
    redis_server: RedisServer,
    orthanc: Orthanc,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a PACS with the canary wherever a header has text, and an object that is none, and one that hangs
    for mode in ("reading_validation_mode", "writing_validation_mode"):
        # Longer than they may be, and in another alphabet.
        monkeypatch.setattr(config.settings, mode, config.IGNORE)
    archive.activate_model()
    gate = Proxy.start(0, orthanc.port)
    stack.environment.update(orthanc.settings_through(gate.port), WORKER_DICOMWEB_SECONDS="0.5")
    said: dict[str, Any] = {
        "PatientName": CANARY,
        "PatientID": CANARY,
        "StudyDescription": CANARY,
        "AccessionNumber": CANARY,
    }
    said |= {"InstitutionName": CANARY, "ReferringPhysicianName": CANARY, "StudyID": CANARY}
    orthanc.store(skin_object(number, **said) for number in range(1, 4))
    orthanc.store([skin_object(4, **said, PatientAge="9XY", PatientSex=CANARY, BodyPartExamined=CANARY)])
    orthanc.store([skin_object(5, **said)[:-300] + b"\0" * 300])
    address = orthanc.address("Modality=XC", gate.port)
    with listen(redis_server) as wire:
        outputs = [stack.command("submit", address)]
        batch = json.loads(outputs[0].stdout)["batch"]
        gate.cuts = lambda data: b"instances/2.25.2" in data
        stack.start_feeder()

        # If it is screened, and the PACS dies with commands and a worker at it
        worker = stack.start_worker()
        stack.until(lambda: archive.counts(batch).open == 0)
        assert archive.counts(batch).reasons == {"not_delivered": 1}
        worker.terminate()
        worker.wait(40)
        orthanc.store([skin_object(6, **said)])
        outputs.append(stack.command("submit", address))
        orthanc.kill()
        stack.start_worker("w2")
        stack.await_log("w2", '"ending": "archive_away"')
        outputs += [stack.command("submit", address, code=3), stack.command("verify", batch, "--rehash", code=3)]
        outputs += [stack.command("submit", f"{address}&PatientName={CANARY}", code=2)]
        outputs += [stack.command("submit", address.replace("//", f"//x:{PASSWORD}@"), code=2)]
        outputs += [stack.command("doctor", "--quick")]
        seen: list[tuple[str, bytes | str]] = [*redis_keys(redis_server), ("the wire", wire.heard)]
    seen += [*redis_files(redis_server), *files_below(stack.folder)]
    seen += [(f"output of {' '.join(one.args[3:4])}", one.stdout + one.stderr) for one in outputs]
    gate.stop()

    # Then nothing of it is anywhere but in the ledger, and the password is not even there
    assert len(seen) > 8
    assert places(seen) == []
    assert [name for name, content in seen if any(part in as_bytes(content) for part in NAMES)] == []
    home = list(files_below(tmp_path / "home"))
    assert [name for name, content in home if is_in(content)]
    assert [name for name, content in [*seen, *home] if PASSWORD.encode() in as_bytes(content)] == []


def as_bytes(content: bytes | str) -> bytes:
    return content.encode(errors="surrogateescape") if isinstance(content, str) else content
