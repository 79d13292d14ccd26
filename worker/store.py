"""The artifact store: a folder, or object storage with a folder of this host in front of it that is checked."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from db.settings import HomeSettings
from model.artifact import (
    CARD,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_WEIGHTS_BYTES,
    WEIGHTS,
    artifact_path,
    holds_artifact,
    install_artifact,
    read_manifest,
)
from model.card import GATE
from model.errors import ArtifactError, StoreUnavailable
from worker.objects import ObjectFolder, is_address
from worker.settings import WorkerSettings

#: Most bytes of each file of an artifact, in the order in which they are written: the last one makes it visible.
_FILES: Final = {WEIGHTS: MAX_WEIGHTS_BYTES, CARD: MAX_MANIFEST_BYTES, MANIFEST: MAX_MANIFEST_BYTES}


def place_of_objects(home: HomeSettings, settings: WorkerSettings) -> ObjectFolder | None:
    """Say where on object storage the store is.

    Args:
        home: Names the store.
        settings: Name the server.

    Returns:
        The place, or None where the store is a folder.

    Raises:
        SettingsError: If the address is not sound, or the extra `s3` is not installed.
    """
    return ObjectFolder.at(home.store, settings.s3_endpoint) if home.store and is_address(home.store) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactStore:
    """Where models are kept.

    Attributes:
        folder: The store's folder, or this host's copy of what it has used of a store on object storage.
        objects: The store on object storage, where it is there.
    """

    folder: Path
    objects: ObjectFolder | None = None

    @classmethod
    def open(cls, home: HomeSettings, settings: WorkerSettings) -> Self:
        """Find the store that the settings name; nothing is asked yet.

        Args:
            home: Names the store.
            settings: Name the server of object storage.

        Returns:
            The store.

        Raises:
            SettingsError: If its address is not sound, or the extra `s3` is not installed.
        """
        return cls(folder=home.store_path, objects=place_of_objects(home, settings))

    def fetch(self, digest: str) -> Path:
        """Return a model's folder on this host; its files are whole and the digest's where they had to be fetched.

        Args:
            digest: The model.

        Returns:
            The folder; of a store that is a folder it may be missing.

        Raises:
            ArtifactError: If object storage has not the model, or another one in its place.
            StoreUnavailable: If object storage does not answer.
        """
        if self.objects is not None and not holds_artifact(self.folder, digest):
            self._download(self.objects, digest)
        return artifact_path(self.folder, digest)

    def install(self, source: Path) -> Path:
        """Put an artifact into the store, whole or not at all; idempotent, and safe beside other installers.

        Args:
            source: Its folder.

        Returns:
            Its folder on this host.

        Raises:
            ArtifactError: If the artifact is damaged.
            StoreUnavailable: If object storage does not answer, or does not keep what it was given.
        """
        folder = install_artifact(source, self.folder)
        if self.objects is not None:
            self._upload(self.objects, folder)
        return folder

    def publish_gate(self, digest: str) -> None:
        """Let others see what the gate wrote beside a model of this host.

        Args:
            digest: The model.

        Raises:
            StoreUnavailable: If object storage does not answer.
        """
        if self.objects is None:
            return
        for name in (GATE, CARD):
            data = (artifact_path(self.folder, digest) / name).read_bytes()
            _write(self.objects, _key(digest, name), data)

    def _download(self, objects: ObjectFolder, digest: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetched-", dir=self.folder) as name:
            fetched = Path(name)
            # The manifest first: without it there is no model, whatever else lies there.
            for part in reversed(_FILES):
                data = _read(objects, _key(digest, part), _FILES[part] + 1)
                if data is not None:
                    (fetched / part).write_bytes(data)
                if part == MANIFEST and read_manifest(fetched).digest != digest:
                    raise ArtifactError("The artifact store has another model under this digest.")
            install_artifact(fetched, self.folder)

    @staticmethod
    def _upload(objects: ObjectFolder, folder: Path) -> None:
        digest = folder.name
        parts = {name: (folder / name).read_bytes() for name in _FILES if (folder / name).is_file()}
        kept = {name: _read(objects, _key(digest, name), _FILES[name] + 1) for name in (MANIFEST, WEIGHTS)}
        if all(kept[name] == parts[name] for name in kept):
            return
        for name, data in parts.items():
            _write(objects, _key(digest, name), data)
            if name == WEIGHTS and _digest(_read(objects, _key(digest, name), len(data) + 1)) != _digest(data):
                raise StoreUnavailable("Object storage does not give back what was written to it.")


def _key(digest: str, name: str) -> str:
    return f"models/{digest}/{name}"


def _digest(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def _read(objects: ObjectFolder, key: str, limit: int) -> bytes | None:
    try:
        return objects.read(key, limit)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnavailable(f"The artifact store does not answer ({type(error).__name__}).") from None


def _write(objects: ObjectFolder, key: str, data: bytes) -> None:
    try:
        objects.write(key, data)
    except OSError as error:
        raise StoreUnavailable(f"The artifact store cannot be written ({type(error).__name__}).") from None
