"""The command that gives verdicts back as DICOM objects, to a folder or to a PACS; imported when it is called."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from rich.console import Console

from db.audit import record_action
from db.batches import get_batch
from db.instances import ScreenedInstance, count_instances, iter_instances
from db.models import ModelRow, get_model
from producer.blending import Blender
from producer.captures import build_capture, shows_burned_text
from producer.deidentify import deidentify, read_key
from producer.derived import encode_object
from producer.errors import EXIT_DONE, EXIT_SOME_FAILED, UsageProblem
from producer.export import NOTICE, replace_file
from producer.ledger import open_existing, read_place
from producer.meter import Meter
from producer.sources import PROBLEMS, SourceProblem, read_source, say_nothing
from producer.status import batch_status
from producer.structured import build_report
from producer.terminal import name_actor, open_console
from worker.dicomweb import DicomWebPlace, insist_on_extra
from worker.objects import ObjectFolder
from worker.stow import store_objects

if TYPE_CHECKING:
    from pydicom import Dataset

#: Objects of one request to a PACS at most, and bytes from which on it is sent.
_OBJECTS_A_REQUEST: Final = 64
_BYTES_A_REQUEST: Final = 8 * 1024 * 1024

#: Instances after which the progress is shown.
_INSTANCES_A_LOOK: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnOptions:
    """What is made of a batch's verdicts, and where it goes: to a folder, to a PACS, or both."""

    out: Path | None
    #: `dicomweb://…`.
    pacs: str | None
    overlays: bool
    deidentify: bool


@dataclass(slots=True, kw_only=True)
class Returned:
    """What became of a batch's instances."""

    reports: int = 0
    overlays: int = 0
    #: Overlays that the store does not hold.
    undrawn: int = 0
    #: Overlays that may show who the patient is.
    revealing: int = 0
    #: Why an instance has no report; see `PROBLEMS`.
    problems: Counter[str] = field(default_factory=Counter)
    #: Objects that the PACS has, and Failure Reason (0008,1197) to how many it has not taken.
    sent: int = 0
    refused: Counter[int] = field(default_factory=Counter)

    def tell(self) -> str:
        """Say how far it is."""
        counts = {"reports": self.reports, "overlays": self.overlays, "without": sum(self.problems.values())}
        return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def give_back(batch_id: int, options: ReturnOptions) -> int:
    """Do `lesion-screen dicom`.

    Args:
        batch_id: The batch.
        options: What to make, and where it goes.

    Returns:
        The exit code.
    """
    insist_on_extra("DICOM objects need")
    console, place = open_console(), read_place()
    engine = open_existing(place)
    batch = get_batch(engine, batch_id)
    model, total = get_model(engine, batch.model_digest), count_instances(engine, batch_id)
    if not total:
        raise UsageProblem(f"Batch {batch_id} has no DICOM object with a verdict, so there is nothing to write.")
    root = place.worker_settings.archive_root(batch.source)
    if root is None:
        raise UsageProblem("This machine does not know where the archive is; name it in WORKER_ARCHIVE_ROOTS.")
    pacs = None if options.pacs is None else DicomWebPlace.at(options.pacs, place.worker_settings.pacs_access())
    key = read_key(place.home) if options.deidentify else None
    # Before the first object leaves: what fails half-way was begun all the same.
    head = record_action(engine, name_actor(), "export_batch", f"batch {batch_id}", _describe(options))
    returned = Returned()
    with (
        say_nothing(),
        Blender(place.shelf, place.home) as blender,
        Meter(console, "Writing", "instances", total) as meter,
        Outlet(options.out, pacs, returned) as outlet,
    ):
        maker = _Maker(root, model, key, blender if options.overlays else None, returned)
        for number, finding in enumerate(iter_instances(engine, batch_id), start=1):
            for made in maker.make(finding):
                outlet.put(made)
            if number % _INSTANCES_A_LOOK == 0:
                meter.show(number, outcomes=returned.tell())
    _tell(console, returned, options)
    console.print(f"Head of the audit trail: {head}", highlight=False, soft_wrap=True)
    if still_open := batch_status(engine, batch_id).open:
        console.print(f"Batch {batch_id} is not finished: {still_open:,} items are open.", highlight=False)
    return EXIT_SOME_FAILED if returned.problems or returned.refused else EXIT_DONE


def _describe(options: ReturnOptions) -> str:
    # No folder and no server: either may be called after somebody.
    words = ["dicom"]
    words += ["overlays"] * options.overlays + ["deidentified"] * options.deidentify
    return " ".join(words + ["files"] * (options.out is not None) + ["sent"] * (options.pacs is not None))


class _Maker:
    """Makes the objects of an instance; the headers of its object are read once for all its frames."""

    def __init__(
        self,
        root: Path | ObjectFolder | DicomWebPlace,
        model: ModelRow,
        key: bytes | None,
        blender: Blender | None,
        returned: Returned,
    ) -> None:
        self._root, self._model, self._key, self._blender, self._returned = root, model, key, blender, returned
        #: The last object read: the frames of one follow each other.
        self._path: str | None = None
        self._headers: Dataset | None = None

    def make(self, finding: ScreenedInstance) -> "Iterator[Dataset]":
        """Make the report of an instance, and its overlay where that is wanted and there is one."""
        headers = self._read(finding)
        if headers is None:
            return
        self._returned.reports += 1
        yield self._finish(build_report(headers, finding, self._model))
        if self._blender is None:
            return
        if self._key is not None and shows_burned_text(headers):
            self._returned.revealing += 1
        elif (picture := self._blender.blend(finding)) is None:
            self._returned.undrawn += 1
        else:
            self._returned.overlays += 1
            yield self._finish(build_capture(headers, finding, picture))

    def _read(self, finding: ScreenedInstance) -> "Dataset | None":
        if self._headers is None or finding.path != self._path:
            self._path, self._headers = finding.path, None
            try:
                self._headers = read_source(self._root, finding)
            except SourceProblem as problem:
                self._returned.problems[str(problem)] += 1
        return self._headers

    def _finish(self, made: "Dataset") -> "Dataset":
        return made if self._key is None else deidentify(made, self._key)


class Outlet:
    """Where objects go: files one by one, to a PACS many at a time.

    Args:
        folder: Gets a file an object, readable by its owner only; one that is there already stays as it is.
        pacs: Gets every object.
        returned: Where it is counted.
    """

    def __init__(self, folder: Path | None, pacs: DicomWebPlace | None, returned: Returned) -> None:
        self._folder, self._pacs, self._returned = folder, pacs, returned
        self._waiting: list[tuple[str, bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_others: object) -> None:
        if kind is None:
            self._send()

    def put(self, made: "Dataset") -> None:
        """Take an object.

        Raises:
            UsageProblem: If the file cannot be written.
            WorkerError: If the PACS does not answer, or lets us store nothing.
        """
        uid, data = str(made.SOPInstanceUID), encode_object(made)
        if self._folder is not None:
            path = self._folder / f"{uid}.dcm"
            if not _holds(path, data):
                with replace_file(path, binary=True) as file:
                    file.write(data)
        if self._pacs is not None:
            self._waiting.append((uid, data))
            size = sum(len(one) for _, one in self._waiting)
            if len(self._waiting) >= _OBJECTS_A_REQUEST or size >= _BYTES_A_REQUEST:
                self._send()

    def _send(self) -> None:
        if self._pacs is None or not self._waiting:
            return
        stored = store_objects(self._pacs.server, self._waiting)
        self._waiting.clear()
        self._returned.sent += len(stored.there)
        self._returned.refused.update(stored.failed.values())


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def _tell(console: Console, returned: Returned, options: ReturnOptions) -> None:
    made = f"{returned.reports:,} reports" + (f" and {returned.overlays:,} overlays" if options.overlays else "")
    where = " and ".join(["written"] * (options.out is not None) + ["sent"] * (options.pacs is not None))
    console.print(f"{made}: {where}. {NOTICE}", highlight=False)
    for problem, count in returned.problems.items():
        console.print(f"{count:,} instances {PROBLEMS[problem]} have no report.", highlight=False)
    if returned.undrawn:
        console.print(
            f"{returned.undrawn:,} instances have no overlay in the store; `lesion-screen report BATCH --out FOLDER "
            "--all` has all of them drawn.",
            highlight=False,
        )
    if returned.revealing:
        console.print(
            f"{returned.revealing:,} overlays were left out: their objects do not say that no text is burned into "
            "the picture (Burned In Annotation is not NO).",
            highlight=False,
        )
    for reason, count in returned.refused.items():
        console.print(f"The PACS did not take {count:,} objects (Failure Reason {reason:04X}H).", highlight=False)
    if options.pacs is not None:
        console.print(f"The PACS has {returned.sent:,} of them; what it had already counts.", highlight=False)
    if options.deidentify:
        console.print(
            "Names, dates and identifiers were taken out or replaced (PS3.15, annex E); keep deidentify.key in "
            "LESION_SCREEN_HOME as the archive is kept."
        )
    else:
        console.print("They name patients: keep them where the archive may be kept.")
