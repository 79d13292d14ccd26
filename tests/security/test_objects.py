"""Names of objects, which may be patients', and credentials stay where they belong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.objects import KEY_ID, SECRET
from tests.security.canary import CANARY, files_below, is_in, listen, places, plant, redis_files, redis_keys

if TYPE_CHECKING:
    from pathlib import Path

    from tests.archive import Archive
    from tests.objects import ObjectServer
    from tests.servers import RedisServer
    from tests.stack import Stack


def test_names_of_objects_and_credentials_are_in_no_log_no_error_and_not_in_redis(
    archive: Archive, stack: Stack, redis_server: RedisServer, object_server: ObjectServer, tmp_path: Path
) -> None:
    # Given an archive on object storage with the canary in its prefix, its keys, its images and its table
    archive.activate_model()
    stack.environment.update(object_server.settings)
    plant(tmp_path / "planted")
    object_server.copy(tmp_path / "planted", f"{CANARY}-bucket")
    place = f"s3://archive/{CANARY}-bucket"
    with listen(redis_server) as wire:
        said = [stack.command("submit", place)]
        batch = json.loads(said[0].stdout)["batch"]
        stack.start_feeder()

        # If it is screened, and the server dies with commands and a worker at it
        worker = stack.start_worker()
        stack.until(lambda: archive.counts(batch).open == 0, 90)
        assert set(archive.counts(batch).reasons) >= {"truncated", "empty_file", "not_an_image", "missing_image"}
        worker.terminate()
        worker.wait(40)
        object_server.put({f"{CANARY}-bucket/late.png": b"1"})
        said.append(stack.command("submit", place))
        object_server.kill()
        stack.start_worker("w2")
        stack.await_log("w2", '"ending": "archive_away"')
        said += [stack.command("submit", place, code=3), stack.command("verify", batch, "--rehash", code=3)]
        said += [stack.command("submit", f"s3://{KEY_ID}:{SECRET}@archive/{CANARY}", code=2)]
        said += [stack.command("doctor", "--quick", code=0)]
        seen: list[tuple[str, bytes | str]] = [*redis_keys(redis_server), ("the wire", wire.heard)]
    seen += [*redis_files(redis_server), *files_below(stack.folder)]
    seen += [(f"output of {' '.join(one.args[3:4])}", one.stdout + one.stderr) for one in said]

    # Then nothing of it is anywhere but in the ledger, and the credentials are not even there
    assert len(seen) > 8
    assert places(seen) == []
    home = list(files_below(tmp_path / "home"))
    assert [name for name, content in home if is_in(content)]
    assert [name for name, content in [*seen, *home] if has_credentials(content)] == []


def has_credentials(content: bytes | str) -> bool:
    known = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    return KEY_ID.encode() in known or SECRET.encode() in known
