"""A loaded model's verdicts on labelled images, as evaluation and gate take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from model.calibration import posterior
from model.classifier import LOW_CONFIDENCE, UNFAMILIAR_IMAGE, Classifier, Prediction
from model.crossfit import Verdicts
from model.dataset import THREADS, LabelledImage, read_image

#: Images the network sees at once: on a CPU more are slower.
_BATCH: Final = 8


def judge_images(
    classifier: Classifier,
    rows: Sequence[LabelledImage],
    on_batch: Callable[[int], None] = lambda _: None,
) -> Verdicts:
    """Score labelled images as a worker does.

    Args:
        classifier: The model.
        rows: From `model.dataset.read_labels`; at least one.
        on_batch: Called with the number of images scored at a time.

    Returns:
        The verdicts, in the order of the rows, with the model's own calibration and thresholds.

    Raises:
        RejectedImage: An image cannot be read; a figure over the others would say something else.
    """

    def decode(row: LabelledImage) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
        return classifier.decode(read_image(row), row.frame).pixels

    said: list[Prediction] = []
    with ThreadPoolExecutor(max_workers=THREADS) as threads:
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            images = np.stack(list(threads.map(decode, some)))
            said += classifier.classify(images, [row.patient for row in some])
            on_batch(len(some))
    manifest = classifier.manifest
    prior = np.asarray(manifest.prior)
    posteriors = np.array([one.probabilities for one in said])
    # The posterior is softmax(logits / T + log prior), so the logits are T log(posterior / prior), but for a constant.
    # They have the offsets of the calibration in them, which the last bias carries.
    logits = manifest.calibration.temperature * np.log(np.maximum(posteriors, np.finfo(float).tiny) / prior)
    reasons = np.array([one.refer_reason or "" for one in said])
    return Verdicts(
        uncalibrated=posterior(logits, prior),
        posteriors=posteriors,
        prior=prior,
        unfamiliar=reasons == UNFAMILIAR_IMAGE,
        unsure=reasons == LOW_CONFIDENCE,
        threshold=manifest.operating_point.threshold,
        labels=np.array([row.label for row in rows], np.int64),
        lesion_ids=[row.lesion_id for row in rows],
        patients=[row.patient for row in rows],
        dx_types=[row.dx_type for row in rows],
        packed=True,
    )
