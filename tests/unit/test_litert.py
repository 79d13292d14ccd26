"""LiteRT is taken where it gives the same answers faster, and nowhere else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model import litert
from model.classifier import Classifier, golden_input
from model.litert import AGREEMENT, LiteRT, agree, is_faster, prefer_litert
from model.metadata import PatientMetadata

Sample = tuple[Any, Any]


@pytest.fixture(scope="module")
def frozen(artifact: Path) -> Any:
    return Classifier.load(artifact)._engine


@pytest.fixture(scope="module")
def samples(frozen: Any, artifact: Path) -> list[Sample]:
    loaded = Classifier.load(artifact)
    assert frozen.device == "cpu"
    return [golden_input(seed, loaded.input_size, loaded.metadata_encoding) for seed in range(3)]


def test_any_number_of_images_gets_the_same_answers_in_order(frozen: Any, samples: list[Sample]) -> None:
    # Given 12 images, more than a batch, and all of them different
    images, metadata = (np.concatenate([one[part] for one in samples]) for part in (0, 1))
    engine = LiteRT(frozen)

    for count in (1, engine.batch_size, 12):
        # If so many are scored
        posteriors, distances, evidence = engine.run(images[:count], metadata[:count])
        expected = frozen.run(images[:count], metadata[:count])

        # Then the answers are TensorFlow's
        assert np.abs(posteriors - expected[0]).max() < AGREEMENT
        assert distances == pytest.approx(expected[1], rel=1e-3)
        assert evidence is not None
        assert np.abs(evidence - expected[2]).max() < AGREEMENT * evidence.max()


def test_a_worker_that_may_choose_scores_with_it_and_its_results_say_so(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litert, "is_faster", lambda *_: True)
    chosen, trusted = Classifier.load(artifact, engine="auto"), Classifier.load(artifact)
    images = np.random.default_rng(1).integers(0, 256, (3, chosen.input_size, chosen.input_size, 3), np.uint8)
    patients = [PatientMetadata(age=40)] * 3

    assert (chosen.engine_name, trusted.engine_name) == ("litert", "tensorflow-frozen")
    for one, other in zip(chosen.classify(images, patients), trusted.classify(images, patients), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=AGREEMENT)
        assert one.diagnosis == other.diagnosis


def test_threads_that_score_at_once_get_their_own_answers(frozen: Any, samples: list[Sample]) -> None:
    # Given an engine, and more threads than it has interpreters
    engine = LiteRT(frozen, batch_size=2)
    alone = [engine.run(*one) for one in samples]

    # If they give it different images, again and again
    with ThreadPoolExecutor(2 * engine.batches_at_once + 1) as threads:
        found = list(threads.map(lambda number: engine.run(*samples[number % len(samples)]), range(30)))

    # Then each gets the answers to its own
    assert not np.allclose(alone[0][0], alone[1][0], atol=AGREEMENT)
    for number, answer in enumerate(found):
        for part, expected in zip(answer, alone[number % len(samples)], strict=True):
            assert part is not None
            assert expected is not None
            assert np.array_equal(part, expected)


def test_the_two_are_timed_on_whole_batches_side_by_side(
    frozen: Any, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given samples of fewer images than a batch, which LiteRT alone would fill up
    given: list[tuple[str, int]] = []
    monkeypatch.setattr(frozen, "run", lambda images, _metadata: given.append(("frozen", len(images))))
    monkeypatch.setattr(LiteRT, "run", lambda _self, images, _metadata: given.append(("litert", len(images))))
    monkeypatch.setattr(litert, "agree", lambda *_: True)
    monkeypatch.setattr(litert, "is_faster", lambda one, other, sample: (one(*sample), other(*sample)))
    assert len(samples[0][0]) < frozen.batch_size

    prefer_litert(frozen, samples)

    # Then each gets as many whole batches as it takes at once, for the same images
    assert {size for name, size in given if name == "frozen"} == {frozen.batch_size}
    assert {size for name, size in given if name == "litert"} == {litert.BATCH_SIZE}
    images = {kind: sum(size for name, size in given if name == kind) for kind in ("frozen", "litert")}
    assert images["frozen"] == images["litert"] == frozen.batch_size * frozen.batches_at_once


@pytest.mark.parametrize("reason", ["slower", "other answers", "not installed", "unknown operation", "gpu", "float16"])
def test_otherwise_tensorflow_computes(
    frozen: Any, samples: list[Sample], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litert, "is_faster", lambda *_: reason != "slower")
    monkeypatch.setattr(litert, "agree", lambda *_: reason != "other answers")
    if reason == "not installed":
        monkeypatch.setattr(litert, "find_spec", lambda _: None)
    if reason == "unknown operation":
        monkeypatch.setattr(type(frozen), "convert", lambda _: b"no flatbuffer")
    if reason == "gpu":
        monkeypatch.setattr(frozen, "device", "gpu")
    if reason == "float16":
        monkeypatch.setattr(frozen, "precision", "float16")

    assert prefer_litert(frozen, samples) is frozen


@pytest.mark.parametrize("off", [(0, 2 * AGREEMENT), (0, np.nan), (1, 0.1)])
def test_another_answer_or_none_is_no_agreement(frozen: Any, samples: list[Sample], off: tuple[int, float]) -> None:
    part, gap = off

    def run(*given: Any) -> list[Any]:
        answer = list(frozen.run(*given))
        answer[part] = answer[part] * (1 + gap) if part else answer[part] + gap
        return answer

    assert agree(frozen, frozen, samples)
    assert not agree(frozen, SimpleNamespace(run=run), samples)


@pytest.mark.parametrize(("seconds", "faster"), [((2, 1), True), ((1, 2), False), ((1, 1), False)])
def test_the_faster_one_is_found_by_its_median(seconds: tuple[float, float], faster: bool) -> None:
    # Given two engines, a clock that goes by them, and a machine that stops for an hour in one round
    now, rounds = [0.0], [0]

    def one(*_: Any) -> None:
        now[0] += seconds[0]

    def other(*_: Any) -> None:
        rounds[0] += 1
        now[0] += 3600 if rounds[0] == 2 else seconds[1]

    assert is_faster(one, other, (np.zeros(1, np.uint8), np.zeros(1, np.float32)), clock=lambda: now[0]) is faster
