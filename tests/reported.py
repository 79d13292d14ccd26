"""A screened batch of DICOM objects: files, verdicts in a ledger, pictures in a store; and tools to judge reports."""

import hashlib
import io
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    VLPhotographicImageStorage,
)
from sqlalchemy import Engine, text

from db.batches import ItemRow, add_chunk, finish_loading, start_batch
from db.chunks import Scored, claim_chunk, record_results
from db.evidence import pack_evidence
from db.models import register_model
from db.results import ResultRow
from db.tables import CLASSES
from model.images import DecodedImage
from tests.archive import MODEL
from tests.security.canary import CANARY
from worker.pictures import PictureStore
from worker.shelf import FolderShelf

#: When every verdict was recorded.
RECORDED_AT: Final = 1_700_000_000.25

#: For the diagnosis of every image that is drawn.
EVIDENCE: Final = pack_evidence(np.eye(4).tolist())


def photograph(number: int, *, frames: int = 1, **headers: Any) -> Dataset:
    """Make a photograph of a patient whose every name is the canary; headers that are None are left out."""
    made = Dataset()
    made.SOPClassUID = VLPhotographicImageStorage
    made.StudyInstanceUID, made.SeriesInstanceUID = f"1.2.3.{number // 2 + 1}", f"1.2.3.{number // 2 + 1}.9"
    made.SOPInstanceUID, made.InstanceNumber = f"1.2.3.{number // 2 + 1}.9.{number + 1}", number + 1
    made.Modality, made.BurnedInAnnotation = "XC", "NO"
    made.PatientName, made.PatientID = f"{CANARY}^Änne", f"{CANARY} 7"
    made.PatientBirthDate, made.PatientSex, made.PatientAge = "19500102", "F", "074Y"
    made.IssuerOfPatientID = made.OtherPatientNames = CANARY
    made.StudyDate, made.StudyTime, made.StudyID = "20240301", "101112", CANARY[:16]
    made.AccessionNumber, made.ReferringPhysicianName = CANARY[:16], f"Doctor {CANARY}"
    made.StudyDescription = made.SeriesDescription = made.InstitutionName = made.PatientComments = CANARY
    made.SpecificCharacterSet = "ISO_IR 100"
    made.add_new((0x0009, 0x0010), "LO", CANARY)
    made.add_new((0x0009, 0x1001), "LO", CANARY)
    made.Rows = made.Columns = 16
    made.SamplesPerPixel, made.PlanarConfiguration, made.PhotometricInterpretation = 3, 0, "RGB"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    if frames > 1:
        made.SOPClassUID, made.NumberOfFrames = MultiFrameTrueColorSecondaryCaptureImageStorage, frames
    made.PixelData = bytes([number]) * (16 * 16 * 3 * frames)
    for keyword, value in headers.items():
        if value is None:
            del made[keyword]
        else:
            setattr(made, keyword, value)
    return made


def encode(made: Dataset) -> bytes:
    """Write an object as a file."""
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with io.BytesIO() as file:
        dcmwrite(file, made, enforce_file_format=True)
        return file.getvalue()


def read(path: Path) -> Dataset:
    """Read an object."""
    return dcmread(path)


@dataclass(slots=True, kw_only=True)
class ReportedBatch:
    """Objects on disk, and what a model said of them."""

    engine: Engine
    root: Path
    store: Path
    batch: int = 0

    def screen(self, *objects: Dataset, source: str | None = None, drawn: int = 0) -> int:
        """Put objects into the archive and give each frame a verdict; the first `drawn` ones are drawn."""
        self.root.mkdir(exist_ok=True)
        frames = [
            (made, number if count > 1 else None)
            for made in objects
            for count in [int(made.get("NumberOfFrames", 1))]
            for number in range(1, count + 1)
        ]
        digests = {made.SOPInstanceUID: self._write(made) for made in objects}
        register_model(
            self.engine,
            digest=MODEL,
            name="soft attention",
            backbone="b",
            metrics={"operating_point": {"threshold": 0.5}, "prior": dict.fromkeys(CLASSES, 1 / 7)},
            data_digest="0" * 64,
        )
        self.batch = start_batch(self.engine, name="n", source=source or str(self.root), model_digest=MODEL)
        rows = [
            ItemRow(
                path=self._path(made, source),
                size=1,
                frame=frame,
                study_uid=made.StudyInstanceUID,
                series_uid=made.SeriesInstanceUID,
                instance_uid=made.SOPInstanceUID,
            )
            for made, frame in frames
        ]
        chunk = add_chunk(self.engine, self.batch, rows)
        finish_loading(self.engine, self.batch, secrets.token_hex(32))
        claim = claim_chunk(self.engine, chunk, worker="w", lease_seconds=30)
        assert claim is not None
        pictures, outcomes = PictureStore(shelf=FolderShelf(self.store)), []
        for number, (item, (made, frame)) in enumerate(zip(claim.items, frames, strict=True)):
            digest = hashlib.sha256(f"{made.SOPInstanceUID} {frame}".encode()).hexdigest()
            if number < drawn:
                pixels = np.full((32, 32, 3), 100, np.uint8)
                pictures.draw(digest, DecodedImage(pixels=pixels, shown=(16, 12)))
            result = verdict(digest, number, EVIDENCE if number < drawn else None)
            digest_of_file = digests[made.SOPInstanceUID]
            outcomes.append(
                Scored(item_id=item.item_id, image_digest=digest_of_file, input_digest=digest, result=result)
            )
        pictures.settle(frozenset(outcome.input_digest for outcome in outcomes))
        record_results(self.engine, chunk, claim.attempt, model_digest=MODEL, outcomes=outcomes)
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE result SET created_at = :t"), {"t": RECORDED_AT})
        return self.batch

    @staticmethod
    def _path(made: Dataset, source: str | None) -> str:
        if source is None:
            return f"{made.SOPInstanceUID}.dcm"
        return f"studies/{made.StudyInstanceUID}/series/{made.SeriesInstanceUID}/instances/{made.SOPInstanceUID}"

    def _write(self, made: Dataset) -> str:
        data = encode(made)
        (self.root / f"{made.SOPInstanceUID}.dcm").write_bytes(data)
        return hashlib.sha256(data).hexdigest()


def verdict(digest: str, number: int, evidence: bytes | None = None) -> ResultRow:
    """Say that it is the class of that number; every other one is above the operating point, every third referred."""
    rest = 0.4 / 6
    probabilities = tuple(0.6 if place == number % 7 else rest for place in range(7))
    return ResultRow(
        input_digest=digest,
        model_digest=MODEL,
        probabilities=probabilities,
        diagnosis=CLASSES[number % 7],
        confidence=0.6,
        malignant_score=probabilities[0] + probabilities[1] + probabilities[4],
        referred=number % 3 == 0,
        refer_reason="low_confidence" if number % 3 == 0 else None,
        engine="test",
        evidence=evidence,
    )


def judge(program: str, path: Path) -> str:
    """Have an independent program look at an object; without it a test is skipped on a laptop, and fails in CI."""
    packages = {"dsrdump": "dcmtk", "dciodvfy": "dicom3tools"}
    if shutil.which(program) is None:
        told = f"{program} is not installed (Debian: apt-get install {packages[program]}): nobody else looked at it"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    return f"{done.stdout}{done.stderr}" + (f"Error: ended with {done.returncode}" if done.returncode else "")
