"""Evidence in the ledger: the same three digits come back, and what is no map is refused."""

from __future__ import annotations

import numpy as np
import pytest

from db.evidence import pack_evidence, unpack_evidence
from producer.worklist import share_evidence


def test_a_map_comes_back_to_three_digits() -> None:
    rows = np.random.default_rng(0).normal(0, 2, (5, 7))

    packed = pack_evidence(rows.tolist())

    assert packed is not None
    assert len(packed) == 2 + 2 * 5 * 7
    np.testing.assert_allclose(np.array(unpack_evidence(packed)), rows, rtol=1e-3)


def test_a_map_that_is_not_finite_is_none_and_one_that_is_too_large_is_cut() -> None:
    assert pack_evidence([[1.0, float("nan")]]) is None
    packed = pack_evidence([[1e9, -1e9]])
    assert packed is not None
    assert unpack_evidence(packed) == [(65504.0, -65504.0)]


@pytest.mark.parametrize("packed", [b"", b"\x01", b"\x02\x02\x00\x00", b"\x00\x00", b"\x01\x01\x00\x00\x00"])
def test_what_was_not_packed_so_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="no map"):
        unpack_evidence(packed)


def test_a_page_is_told_shares_of_the_largest_and_nothing_of_what_speaks_against() -> None:
    packed = pack_evidence([[4.0, 1.0], [0.0, -8.0]])
    against = pack_evidence([[-1.0, -2.0]])

    assert packed is not None
    assert against is not None
    assert share_evidence(packed) == [[255, 64], [0, 0]]
    assert share_evidence(against) == [[0, 0]]
