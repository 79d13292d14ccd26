"""Measures how far a finished batch is from what its model was judged on, so that a hospital is told of it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import structlog
from sqlalchemy import Engine

from db.drift import find_unmeasured, measure_distribution, record_drift
from model.metadata import SITES, PatientMetadata

#: Added to every bin: one that is empty on one side would make the index infinite.
_PSEUDO_COUNT: Final = 0.5

_log = structlog.get_logger()


def stability_index(reference: Sequence[int], counts: Sequence[int]) -> float:
    """Population stability index: the sum of (p - q) ln(p / q) over the bins (Siddiqi 2006, Credit Risk Scorecards).

    Without drift it is about (bins - 1)(1/n + 1/m), so it says little about few images.

    Args:
        reference: Images in each bin, of the reference.
        counts: The same of what is compared with it.

    Returns:
        0 where both are distributed alike, and more the less they are.
    """
    shares = [_shares(reference), _shares(counts)]
    return sum((p - q) * math.log(p / q) for q, p in zip(*shares, strict=True))


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + _PSEUDO_COUNT * len(counts)
    return [(count + _PSEUDO_COUNT) / total for count in counts]


def measure_finished(engine: Engine) -> int:
    """Measure the finished batches that nobody measured. Idempotent.

    Args:
        engine: The ledger.

    Returns:
        How many there were.
    """
    unmeasured = find_unmeasured(engine)
    for one in unmeasured:
        found = measure_distribution(engine, one.batch_id, one.bounds)
        counts = {**found.counts, "localization": _count_sites(found.localizations)}
        # What was recorded by an earlier version has no distance.
        indices = {
            feature: stability_index(one.reference[feature], bins) for feature, bins in counts.items() if sum(bins)
        }
        record_drift(engine, one, images=found.images, counts=counts, indices=indices)
        _log.info("drift measured", batch=one.batch_id, items=found.images)
    return len(unmeasured)


def _count_sites(localizations: Mapping[str | None, int]) -> tuple[int, ...]:
    sites = Counter[str | None]()
    for words, images in localizations.items():
        sites[PatientMetadata(localization=words).normalised().localization] += images
    return tuple(sites[site] for site in SITES)
