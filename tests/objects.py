"""An S3 server of a test's own, which can be killed and started again; it forgets what it had."""

import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from tests.servers import await_that, die_with_parent, find_port
from worker.objects import ObjectFolder

BUCKET: Final = "archive"
KEY_ID: Final = "test-key-id"
SECRET: Final = "test-secret-key"


@dataclass(slots=True, kw_only=True)
class ObjectServer:
    """moto's S3 on loopback."""

    port: int = field(default_factory=find_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def endpoint(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        """The environment of whoever may use it."""
        return {
            "WORKER_S3_ENDPOINT": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            # Nothing is looked for beyond this machine.
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Start it, with an empty bucket, and wait until it answers."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - a killed pytest must leave no server
        )
        await_that(self._is_up)

    def _is_up(self) -> bool:
        try:
            self.call("create_bucket", Bucket=BUCKET)
        except BotoCoreError:
            return False
        return True

    def kill(self) -> None:
        """End it without warning; idempotent."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def call(self, method: str, **arguments: Any) -> Any:
        """Do something as its owner."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            config=Config(retries={"total_max_attempts": 1}),
        )
        with closing(client):
            return getattr(client, method)(**arguments)

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Write objects."""
        for key, data in objects.items():
            self.call("put_object", Bucket=BUCKET, Key=key, Body=data)

    def copy(self, folder: Path, prefix: str) -> None:
        """Write every file of a folder."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        self.put({f"{prefix}/{path.relative_to(folder)}": path.read_bytes() for path in files})

    def keys(self) -> list[str]:
        """List what it has."""
        return [found["Key"] for found in self.call("list_objects_v2", Bucket=BUCKET).get("Contents", [])]

    def folder(self, prefix: str) -> ObjectFolder:
        """Name a place on it."""
        return ObjectFolder.at(f"s3://{BUCKET}/{prefix}", self.endpoint)
