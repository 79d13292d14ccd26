"""Settings of workers and feeders, read from the environment."""

import os
from datetime import datetime, time
from pathlib import Path
from typing import Literal, Self
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from db.errors import SettingsError
from db.settings import StrictSettings
from worker.dicomweb import DicomWebPlace, PacsAddress, is_pacs
from worker.objects import ObjectFolder, is_address, read_address
from worker.wado import Access

#: The part of a worker's stall time that one read from a PACS may take with all its tries.
_PATIENT = 0.75

#: Outside the window only chunks of batches of at least this priority are begun.
_URGENT = 1


class WorkerSettings(StrictSettings):
    """How a worker is fed, how long it may hold a chunk, and how it works inside."""

    model_config = SettingsConfigDict(env_prefix="WORKER_")

    #: URL of the shared Redis; without one `lesion-screen run` starts a private server. With `rediss://` the server's
    #: certificate is always checked, against the system's authorities or those of `?ssl_ca_certs=FILE`.
    broker_url: SecretStr | None = None
    #: Messages kept in Redis; 8 and 2 a running worker where it is not given.
    queue_depth: int | None = Field(default=None, ge=1, le=100_000)
    #: A chunk whose worker is not heard of for so long is another worker's.
    lease_seconds: float = Field(default=30, gt=0)
    heartbeat_seconds: float = Field(default=10, gt=0)
    #: Without progress for so long a worker lets its lease run out.
    stall_seconds: float = Field(default=120, gt=0)
    #: Celery kills the pool's child after so long in one chunk.
    hard_limit_seconds: int = Field(default=540, ge=1)
    #: Celery may deliver an unacknowledged message again after so long.
    visibility_seconds: int = Field(default=600, ge=1)
    #: How long Celery's main process waits after SIGTERM before it ends its child. The child gives its chunk back after
    #: the batch in hand, a second or so on a CPU; the rest is for a slow database.
    shutdown_seconds: float = Field(default=10, gt=0, le=30)
    #: One a core, where it is not given.
    decode_threads: int = Field(default_factory=lambda: min(64, len(os.sched_getaffinity(0))), ge=1, le=64)
    #: Images the network sees at once. Where it is not given, 8 on a CPU (4 with LiteRT), and on a GPU what a probe at
    #: the start finds.
    batch_size: int | None = Field(default=None, ge=1, le=1024)
    #: Which of its machine's GPUs a worker takes, counted from 0; its further children take the next ones.
    gpu_index: int = Field(default=0, ge=0, le=1024)
    #: What computes: "auto" takes LiteRT on a CPU where it is installed, agrees with TensorFlow and is faster.
    engine: Literal["auto", "tensorflow"] = "auto"
    #: What the network computes in. Another one than float32 is taken only where it gives the same verdicts; float16 is
    #: for GPUs, and on CPUs slower.
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    #: Decoded images that wait at most, two batches where that is more; about 250 KB each at 288 x 288.
    decoded_images: int = Field(default=96, ge=1, le=4096)
    #: Outcomes are committed this often, so that a crash costs no more work than that.
    record_seconds: float = Field(default=3, gt=0)
    max_image_bytes: int = Field(default=50 * 1024 * 1024, ge=1)
    #: Where this host has an archive's root: root as submitted to local folder, `s3://bucket/prefix` or
    #: `dicomweb://host/path`.
    archive_roots: dict[str, str] = Field(default_factory=dict)
    #: Address of the S3 server, such as https://objects.hospital.example:9000; Amazon's where it is not given.
    s3_endpoint: str | None = None
    #: The PACS that the credentials below are for, as https://pacs.hospital.example:8443. A dicomweb:// address is
    #: always asked with TLS, unless it leads to this very server and this begins with http://.
    dicomweb_server: str | None = None
    #: For Basic authentication, with the password; or a token, for Bearer. No other server is told them.
    dicomweb_user: str | None = Field(default=None, pattern=r"^[^:\x00-\x1f]+$")
    dicomweb_password: SecretStr | None = None
    dicomweb_token: SecretStr | None = None
    #: A file with the authorities that are believed instead of the system's. Certificates are always checked.
    dicomweb_ca: Path | None = None
    #: A request to a PACS has failed after so many seconds without a byte.
    dicomweb_seconds: float = Field(default=30, gt=0)
    #: Connections that one process keeps to a PACS.
    dicomweb_connections: int = Field(default=4, ge=1, le=64)
    #: A training run whose worker is not heard of for so long is another worker's. A step of training is far shorter.
    run_lease_seconds: float = Field(default=120, gt=0)
    #: Without a step of training for so long a worker lets its run go; the first step of a large network takes minutes.
    run_stall_seconds: float = Field(default=1800, gt=0)
    #: IANA name of the zone that `retrain_cron` and `window` are in.
    timezone: str = "UTC"
    #: When beat asks for a retraining: minute, hour, day of month, month, day of week, as cron has them.
    retrain_cron: str | None = Field(default=None, pattern=r"^\S+( \S+){4}$")
    #: A folder in HAM10000's layout on the training worker's host, whose gate set judges every candidate. Without one
    #: a run is judged on the gate set of its own data, which wrong labels mislead as well: a person decides then.
    gate_data: Path | None = None
    #: A scheduled run is queued only if so many confirmed diagnoses have come since the last run.
    retrain_min_labels: int = Field(default=100, ge=1)
    retrain_recipe: str = "default"
    #: Whether a scheduled run's model becomes the active one where the gate says so.
    retrain_promote: Literal["never", "gate"] = "never"
    #: When bulk screening may begin chunks, such as 20:00-06:00; batches of a priority above 0 always may.
    window: str | None = Field(default=None, pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")
    #: A chunk is not rung twice within so long.
    quiet_seconds: float = Field(default=15, gt=0)
    feeder_interval: float = Field(default=1, gt=0)
    #: What scores images, as `module:attribute`; tests put something light here.
    classifier: str = Field(default="model.classifier:Classifier", pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    #: Tests name a step here at which the process kills itself, once; see `worker.failpoints`.
    failpoint: str | None = Field(default=None, pattern=r"^after_[a-z]+$")
    #: The file that remembers that the failpoint has struck.
    failpoint_file: Path | None = None

    @field_validator("broker_url")
    @classmethod
    def know_broker(cls, address: SecretStr | None) -> SecretStr | None:
        """Refuse what is no address of a Redis.

        Args:
            address: What it is set to; empty is none.

        Returns:
            The same; None where it is empty.

        Raises:
            ValueError: Unless it has a scheme of Redis's, a host, and a port that there can be, if any.
        """
        try:
            found = urlsplit(address.get_secret_value()) if address else None
            sound = found is None or (found.scheme in {"redis", "rediss"} and found.hostname and found.port != 0)
        except ValueError:
            sound = False
        if not sound:
            raise ValueError("this is no address of a Redis; give redis://:PASSWORD@HOST:PORT/NUMBER, or rediss://…")
        return address or None

    @field_validator("timezone")
    @classmethod
    def know_timezone(cls, name: str) -> str:
        """Refuse a time zone that is not there.

        Args:
            name: What it is set to.

        Returns:
            The name, unchanged.

        Raises:
            ValueError: Unless it is an IANA name.
        """
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("no such time zone; give an IANA name such as Europe/Vienna") from None
        return name

    @field_validator("s3_endpoint", "dicomweb_server")
    @classmethod
    def know_endpoint(cls, endpoint: str | None) -> str | None:
        """Refuse what is no bare address of a server.

        Args:
            endpoint: What it is set to; empty is none.

        Returns:
            The address, without a slash at its end.

        Raises:
            ValueError: Unless it is http or https, a host and perhaps a port.
        """
        found = urlsplit(endpoint or "")
        sound = found.scheme in {"http", "https"} and found.hostname and "@" not in found.netloc
        if endpoint and (not sound or found.path.strip("/") or found.query or found.fragment):
            raise ValueError("give http(s)://host:port alone; credentials have settings or files of their own")
        return endpoint.rstrip("/") if endpoint else None

    @field_validator("archive_roots")
    @classmethod
    def know_places(cls, roots: dict[str, str]) -> dict[str, str]:
        """Refuse a place on object storage, or a PACS, that is written wrongly.

        Args:
            roots: What it is set to.

        Returns:
            The same.

        Raises:
            ValueError: If one is.
        """
        try:
            for place in filter(is_address, roots.values()):
                read_address(place)
            for place in filter(is_pacs, roots.values()):
                PacsAddress.read(place)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return roots

    @model_validator(mode="after")
    def keep_limits_in_order(self) -> Self:
        """Refuse limits that would let two workers do the same chunk as a matter of course.

        Returns:
            The settings, unchanged.

        Raises:
            ValueError: Unless heartbeat < lease, for chunks and runs, and stall < hard limit < visibility timeout.
        """
        if not self.heartbeat_seconds < self.lease_seconds:
            raise ValueError("WORKER_HEARTBEAT_SECONDS must be below WORKER_LEASE_SECONDS")
        if not self.heartbeat_seconds < self.run_lease_seconds:
            raise ValueError("WORKER_HEARTBEAT_SECONDS must be below WORKER_RUN_LEASE_SECONDS")
        if not self.stall_seconds < self.hard_limit_seconds < self.visibility_seconds:
            raise ValueError("stall < hard limit < visibility must hold (WORKER_…_SECONDS)")
        return self

    @model_validator(mode="after")
    def insist_on_certificates(self) -> Self:
        """Refuse TLS that would believe anybody.

        Returns:
            The settings, unchanged.

        Raises:
            ValueError: If the address switches the check of the server's certificate or name off.
        """
        told = self.broker_tls() or {}
        weak = told.get("ssl_cert_reqs", "required").lower().removeprefix("cert_") != "required"
        if weak or told.get("ssl_check_hostname", "true").lower() not in {"true", "1", "yes"}:
            raise ValueError("WORKER_BROKER_URL must not switch the check of Redis's certificate off")
        return self

    @model_validator(mode="after")
    def know_whose_credentials(self) -> Self:
        """Refuse credentials that are not whole, or for nobody in particular.

        Returns:
            The settings, unchanged.

        Raises:
            ValueError: Unless a user comes with a password and without a token, and either with a server.
        """
        user, token = self.dicomweb_user is not None, self.dicomweb_token is not None
        if user != (self.dicomweb_password is not None) or (user and token):
            raise ValueError("give WORKER_DICOMWEB_USER and WORKER_DICOMWEB_PASSWORD, or WORKER_DICOMWEB_TOKEN alone")
        if (user or token) and self.dicomweb_server is None:
            raise ValueError("WORKER_DICOMWEB_SERVER must name the server that the credentials are for")
        return self

    def broker_tls(self) -> dict[str, str] | None:
        """Read the options of TLS from the address of Redis.

        Returns:
            Options by name, such as `ssl_ca_certs`; None where the address asks for no TLS.
        """
        address = urlsplit(self.broker_url.get_secret_value()) if self.broker_url else None
        if address is None or address.scheme != "rediss":
            return None
        return {name: value for name, value in parse_qsl(address.query) if name.startswith("ssl_")}

    def is_in_window(self, now: datetime) -> bool:
        """Say whether bulk screening may begin chunks.

        Args:
            now: With a time zone.

        Returns:
            Whether it lies in the window; its end does not, and equal ends are the whole day.
        """
        if self.window is None:
            return True
        begin, end = (time.fromisoformat(part) for part in self.window.split("-"))
        clock = now.astimezone(ZoneInfo(self.timezone)).time()
        if begin < end:
            return begin <= clock < end
        return clock >= begin or clock < end

    def least_priority(self, now: datetime) -> int | None:
        """Say of what priority a batch must be for its chunks to be begun.

        Args:
            now: With a time zone.

        Returns:
            The priority, or None in the window, where any will do.
        """
        return None if self.is_in_window(now) else _URGENT

    def pacs_access(self) -> Access:
        """Say how a PACS is spoken to."""
        return Access(
            server=self.dicomweb_server,
            user=self.dicomweb_user,
            password=self.dicomweb_password,
            token=self.dicomweb_token,
            authorities=self.dicomweb_ca,
            silence=self.dicomweb_seconds,
            # A worker that waits for one instance must not look stalled.
            patience=self.stall_seconds * _PATIENT,
            connections=self.dicomweb_connections,
            longest=self.max_image_bytes,
        )

    def archive_root(self, source: str) -> Path | ObjectFolder | DicomWebPlace | None:
        """Say where this host has an archive.

        Args:
            source: The archive's root as it was submitted.

        Returns:
            The local folder, the place on object storage or the PACS; None where `source` is neither mapped nor
            absolute.

        Raises:
            SettingsError: If it is no folder, and this host has not the extra for that.
        """
        place = self.archive_roots.get(source, source)
        if is_address(place):
            return ObjectFolder.at(place, self.s3_endpoint)
        if is_pacs(place):
            return DicomWebPlace.at(place, self.pacs_access())
        local = Path(place)
        return local if local.is_absolute() else None
