"""The worklist's data: ranked lesions as script files, because a page that is opened as a file cannot fetch any."""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Engine

from db.evidence import unpack_evidence
from db.pictures import thumb_path
from db.tables import CLASSES
from db.worklist import WorklistImage, iter_unread, rank_lesions, read_images
from producer.budget import shift_prior
from producer.export import replace_file
from worker.shelf import Shelf

T = TypeVar("T")

#: Lesions of one page, which are one file with their pictures: a few hundred kilobytes.
PART_LESIONS: Final = 40

#: Images without a verdict in one file.
UNREAD_ROWS: Final = 200

#: Lesions read from the ledger at once.
_READ_LESIONS: Final = 1000

#: What the class codes stand for. The third class is HAM10000's seborrhoeic keratoses, solar lentigines and
#: lichen-planus-like keratoses.
CLASS_NAMES: Final[Mapping[str, str]] = {
    "akiec": "Actinic keratosis or Bowen's disease",
    "bcc": "Basal cell carcinoma",
    "bkl": "Seborrhoeic keratosis, lentigo",
    "df": "Dermatofibroma",
    "mel": "Melanoma",
    "nv": "Melanocytic naevus",
    "vasc": "Vascular lesion",
}

#: The classes whose probabilities add up to the malignant score.
MALIGNANT: Final = ("akiec", "bcc", "mel")

#: Why an image goes to a person whatever its score.
REFER_REASONS: Final[Mapping[str, str]] = {
    "low_confidence": "too close to call",
    "unfamiliar_image": "unlike the images of training",
}


@dataclass(slots=True, kw_only=True)
class Ranking:
    """The ranked lesions as columns; what filters and the overview need of all of them at once."""

    #: Of the worst image.
    scores: list[float] = field(default_factory=list)
    #: Probability of melanoma at the stated prevalence, the mean of the lesion's images: the largest would overstate.
    melanoma: list[float] = field(default_factory=list)
    #: A bit a class that some image of the lesion was diagnosed as.
    diagnoses: list[int] = field(default_factory=list)
    referred: list[int] = field(default_factory=list)
    #: Position in `sites`.
    site: list[int] = field(default_factory=list)
    #: Whole years; -1 where it is not known.
    age: list[int] = field(default_factory=list)
    #: Number of the patient; -1 where there is none.
    patient: list[int] = field(default_factory=list)
    sites: dict[str, int] = field(default_factory=dict)
    patients: dict[str, int] = field(default_factory=dict)

    def add(self, images: Sequence[WorklistImage], *, prior: float | None, prevalence: float | None) -> None:
        """Add the next lesion.

        Args:
            images: Its images, the worst first.
            prior: Share of melanoma that the probabilities hold at.
            prevalence: Share of melanoma in what was screened.
        """
        worst = images[0]
        self.scores.append(worst.malignant_score)
        self.diagnoses.append(sum(1 << CLASSES.index(name) for name in {image.diagnosis for image in images}))
        self.referred.append(int(any(image.referred for image in images)))
        self.site.append(self.sites.setdefault(worst.localization or "unknown", len(self.sites)))
        self.age.append(-1 if worst.age is None else int(worst.age))
        known = worst.patient_ref is not None
        self.patient.append(self.patients.setdefault(str(worst.patient_ref), len(self.patients)) if known else -1)
        if prior is not None and prevalence is not None:
            place = CLASSES.index("mel")
            shifted = [shift_prior(image.probabilities[place], prior, prevalence) for image in images]
            self.melanoma.append(sum(shifted) / len(shifted))

    def as_json(self) -> dict[str, Any]:
        """Return the columns for the page's filters."""
        return {
            "scores": [round(score, 4) for score in self.scores],
            "diagnoses": self.diagnoses,
            "referred": self.referred,
            "site": self.site,
            "age": self.age,
            "patient": self.patient,
            "sites": list(self.sites),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class WorklistWriter:
    """Writes the data files of one batch's worklist.

    Args:
        engine: The ledger.
        batch_id: The batch.
        shelf: Of the artifact store, where the pictures are.
        folder: Where the files go.
        threshold: The model's operating point; None where it is not on record.
        on_lesions: Told how many lesions are written.
    """

    engine: Engine
    batch_id: int
    shelf: Shelf
    folder: Path
    threshold: float | None
    on_lesions: Callable[[int], object] = lambda _count: None

    def write_ranking(self, limit: int, *, prior: float | None, prevalence: float | None) -> Ranking:
        """Write the ranked lesions.

        Args:
            limit: At most so many.
            prior: Share of melanoma that the model's probabilities hold at.
            prevalence: Share of melanoma in what was screened.

        Returns:
            Their columns.

        Raises:
            UnknownBatch: If the batch is not there.
            UsageProblem: If the files cannot be written.
        """
        ranking = Ranking()
        for part, lesions in enumerate(cut(self._lesions(limit), PART_LESIONS)):
            for images in lesions:
                ranking.add(images, prior=prior, prevalence=prevalence)
            told = [[self._describe(image) for image in images] for images in lesions]
            write_call(self.folder / f"part-{part}.js", "part", part, told)
            self.on_lesions(len(ranking.scores))
        return ranking

    def _lesions(self, limit: int) -> Iterator[list[WorklistImage]]:
        for some in cut(rank_lesions(self.engine, self.batch_id, limit), _READ_LESIONS):
            found: dict[int, WorklistImage] = {}
            for ids in cut((one for lesion in some for one in lesion), _READ_LESIONS):
                found |= read_images(self.engine, self.batch_id, ids)
            for lesion in some:
                # What was erased since it was ranked is not there any more.
                if images := [found[one] for one in lesion if one in found]:
                    yield images

    def _describe(self, image: WorklistImage) -> dict[str, Any]:
        told = {
            "image": image.image_id,
            "path": image.path,
            "patient": image.patient_ref,
            "lesion": image.lesion_id,
            "age": image.age,
            "sex": image.sex,
            "site": image.localization,
            "diagnosis": CLASSES.index(image.diagnosis),
            "confidence": round(image.confidence, 4),
            "score": round(image.malignant_score, 4),
            # Here, where the score is not rounded yet.
            "prioritised": None if self.threshold is None else image.malignant_score >= self.threshold,
            "referred": REFER_REASONS.get(image.refer_reason or "", image.refer_reason) if image.referred else None,
            "probabilities": [round(value, 4) for value in image.probabilities],
            "thumb": embed_picture(self.shelf, thumb_path(image.input_digest), "image/jpeg"),
            "evidence": None if image.evidence is None else share_evidence(image.evidence),
        }
        return {name: value for name, value in told.items() if value is not None}

    def write_unread(self) -> int:
        """Write what nobody could assess.

        Returns:
            How many files.

        Raises:
            UnknownBatch: If the batch is not there.
            UsageProblem: If the files cannot be written.
        """
        files = 0
        for some in cut(iter_unread(self.engine, self.batch_id), UNREAD_ROWS):
            rows = [
                [row.state.value, row.reason, row.image_id, row.path, row.lesion_id, row.patient_ref] for row in some
            ]
            write_call(self.folder / f"unread-{files}.js", "unread", files, rows)
            files += 1
        return files


def share_evidence(packed: bytes) -> list[list[int]]:
    """Say how much each place speaks for a diagnosis, as a page draws it.

    Args:
        packed: As `db.evidence` packs it.

    Returns:
        Rows of shares of the largest value in 255ths; what speaks against the diagnosis is 0.
    """
    rows = unpack_evidence(packed)
    most = max(map(max, rows))
    return [[round(255 * max(value, 0) / most) if most > 0 else 0 for value in row] for row in rows]


def embed_picture(shelf: Shelf, relative: str, kind: str) -> str | None:
    """Read a picture as an address that holds all of it.

    Args:
        shelf: Of the artifact store.
        relative: Where in it.
        kind: Its media type.

    Returns:
        A `data:` address, or None where nothing was drawn.
    """
    data = shelf.read(relative)
    return None if data is None else f"data:{kind};base64,{base64.b64encode(data).decode()}"


def write_call(path: Path, name: str, *values: object) -> None:
    """Write a script that hands values to the page.

    Args:
        path: The file.
        name: Of the page's function.
        values: As JSON; everything but ASCII is written as escapes, lone surrogates included.

    Raises:
        UsageProblem: If the file cannot be written.
    """
    with replace_file(path) as file:
        told = ",".join(json.dumps(value, separators=(",", ":")) for value in values)
        file.write(f"lesionScreen.{name}({told});\n")


def cut(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut a stream into lists of `size`, the last one shorter perhaps."""
    rest = iter(values)
    while some := list(islice(rest, size)):
        yield some
