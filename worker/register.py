"""Registers the shipped model: `python -m worker.register` prepares a ledger and a store for their first batch."""

import errno
import sys
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from db.errors import LedgerError
from db.models import activate_first, active_model, register_model
from db.refusals import explain_refusal
from db.session import open_ledger, upgrade_schema
from db.settings import DbSettings, HomeSettings, read_settings
from model.artifact import Manifest, read_manifest, shipped_artifact
from model.errors import ModelError, StoreUnavailable
from worker.objects import ObjectFolder
from worker.settings import WorkerSettings
from worker.store import ArtifactStore, place_of_objects

_ACTOR = "worker.register"

_USAGE = 2
_UNAVAILABLE = 3


def register_shipped_model(engine: Engine, store: Path, objects: ObjectFolder | None = None) -> str:
    """Put the shipped model into the store and the ledger, and make it active where no model is. Idempotent.

    Args:
        engine: The ledger, with the newest schema.
        store: Folder of the artifact store on this host.
        objects: The artifact store, where it is on object storage.

    Returns:
        Digest of the active model, which may be another one.

    Raises:
        ArtifactError: If the shipped model is damaged.
        StoreUnavailable: If object storage does not answer.
    """
    shipped = shipped_artifact()
    manifest = read_manifest(shipped)
    ArtifactStore(folder=store, objects=objects).install(shipped)
    register_manifest(engine, manifest)
    activate_first(engine, manifest.digest, _ACTOR)
    active = active_model(engine)
    return active.digest if active else manifest.digest


def register_manifest(engine: Engine, manifest: Manifest, *, parent: str | None = None) -> None:
    """Register a model that is in the store, as a candidate. Idempotent.

    Args:
        engine: The ledger.
        manifest: Its manifest.
        parent: Digest of the model that it was trained from.
    """
    register_model(
        engine,
        digest=manifest.digest,
        name=manifest.name,
        backbone=manifest.network.backbones,
        # What exports and reports need of a model without opening its artifact.
        metrics={
            **manifest.metrics,
            "prior": dict(zip(manifest.classes, manifest.prior, strict=True)),
            "operating_point": manifest.operating_point.model_dump(mode="json"),
        },
        data_digest=manifest.training.data_digest,
        parent=parent,
        reference=None if manifest.reference is None else manifest.reference.model_dump(mode="json"),
    )


def main() -> int:
    """Upgrade the schema of the ledger that the environment names, register the shipped model, print the active one.

    Returns:
        0, 2 where a setting or the shipped model is wrong, 3 where database, disk or object storage does not take it.
    """
    try:
        home = read_settings(HomeSettings)
        engine = open_ledger(read_settings(DbSettings).ledger_url(home))
        upgrade_schema(engine)
        objects = place_of_objects(home, read_settings(WorkerSettings))
        sys.stdout.write(f"{register_shipped_model(engine, home.store_path, objects)}\n")
    except StoreUnavailable as error:
        sys.stderr.write(f"{error} Check LESION_SCREEN_STORE, WORKER_S3_ENDPOINT and the credentials.\n")
        return _UNAVAILABLE
    except (LedgerError, ModelError) as error:
        sys.stderr.write(f"{error}\n")
        return _USAGE
    except SQLAlchemyError as error:
        sentence = explain_refusal(error, owner=True)
        if sentence is None:
            raise
        sys.stderr.write(f"{sentence}\n")
        return _UNAVAILABLE
    except OSError as error:
        # A full disk, say; the model is registered only once it is in the store.
        name = errno.errorcode.get(error.errno or 0, "an I/O error")
        sys.stderr.write(f"Ledger or model store cannot be written ({name}); mend that, then run this again.\n")
        return _UNAVAILABLE
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
