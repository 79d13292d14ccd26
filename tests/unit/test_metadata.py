"""Age, sex and site in the model's own words."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.metadata import (
    MEAN_AGE_YEARS,
    OTHER,
    PAPER_SITES,
    SEXES,
    SITE_WORDS,
    SITES,
    WIDTH,
    MetadataEncoding,
    PatientMetadata,
    encode_metadata,
    input_digest,
    mask_metadata,
    metadata_width,
)

words = st.one_of(st.none(), st.text(max_size=20))
patients = st.builds(
    PatientMetadata, age=st.one_of(st.none(), st.floats(allow_nan=True)), sex=words, localization=words
)

encodings = st.sampled_from(["paper", "gessert", "small", "none"])


def test_ham10000_and_isic_words_mean_the_same_input() -> None:
    ham = PatientMetadata(age=60, sex="male", localization="back")
    isic = PatientMetadata(age=60.0, sex="Male", localization="posterior torso")

    assert input_digest("ab", ham) == input_digest("ab", isic)


def test_another_age_or_image_is_another_input() -> None:
    patient = PatientMetadata(age=60, sex="male", localization="back")

    digests = {
        input_digest("ab", patient),
        input_digest("ac", patient),
        input_digest("ab", PatientMetadata(age=61, sex="male", localization="back")),
        input_digest("ab", PatientMetadata(age=60, sex="female", localization="back")),
        input_digest("ab", PatientMetadata(age=60, sex="male", localization="chest")),
    }

    assert len(digests) == 5


@given(patients)
def test_any_metadata_encodes_to_one_sex_one_site_and_a_small_age(patient: PatientMetadata) -> None:
    row = encode_metadata([patient])[0]

    assert row.shape == (WIDTH,)
    assert np.isfinite(row).all()
    assert row[2 : 2 + len(SEXES)].sum() == 1
    assert row[2 + len(SEXES) :].sum() == 1
    assert abs(row[0]) <= 0.7


@given(patients, encodings)
def test_normalising_twice_changes_nothing(patient: PatientMetadata, encoding: MetadataEncoding) -> None:
    once = patient.normalised(encoding)

    assert once.normalised(encoding) == once


@given(patients, encodings)
def test_what_normalises_to_the_same_encodes_to_the_same(patient: PatientMetadata, encoding: MetadataEncoding) -> None:
    encoded = encode_metadata([patient, patient.normalised(encoding)], encoding)

    assert encoded.shape == (2, metadata_width(encoding))
    assert np.array_equal(encoded[0], encoded[1])


@pytest.mark.parametrize("encoding", ["small", "gessert"])
@pytest.mark.parametrize("ham", [*SITE_WORDS, "trunk", "unknown", None, ""])
def test_both_archives_words_for_a_site_have_one_default_encoding(ham: str | None, encoding: MetadataEncoding) -> None:
    isic = SITE_WORDS.get(ham or "", "unknown")

    patients = [PatientMetadata(age=60, sex="male", localization=word) for word in (ham, isic, isic.upper())]

    assert len(np.unique(encode_metadata(patients, encoding), axis=0)) == 1


@pytest.mark.parametrize("age", [None, 0.0, 35.0, 85.0])
@pytest.mark.parametrize("sex", SEXES)
@pytest.mark.parametrize("encoding", ["small", "paper"])
def test_an_encoding_can_be_read_back_with_what_is_missing(
    encoding: MetadataEncoding, age: float | None, sex: str
) -> None:
    # Given the columns of each encoding: age (and its flag), sexes, sites
    ages, sexes, sites = (1, (OTHER, *SEXES), (OTHER, *PAPER_SITES)) if encoding == "paper" else (2, SEXES, SITES)

    for site in sites:
        # If a patient is encoded
        row = encode_metadata([PatientMetadata(age=age, sex=sex, localization=site)], encoding)[0]

        # Then the row says who it was, and that an age is missing if it is
        _, sex_columns, site_columns = np.split(row, [ages, ages + len(sexes)])
        assert sexes[int(sex_columns.argmax())] == sex
        assert sites[int(site_columns.argmax())] == site
        assert sex_columns.sum() == site_columns.sum() == 1
        if encoding == "paper":
            assert row[0] == (MEAN_AGE_YEARS if age is None else age)
        else:
            assert bool(row[1]) is (age is None)
            assert age is None or row[0] == pytest.approx(age / 100 - 0.5)


def test_the_papers_encoding_keeps_ham10000s_words_apart_and_the_archives_together() -> None:
    def digest(site: str | None, encoding: MetadataEncoding) -> str:
        return input_digest("ab", PatientMetadata(age=60, sex="male", localization=site), encoding)

    # Chest and abdomen are one site to the ISIC Archive, and so to the default
    assert digest("chest", "small") == digest("abdomen", "small")
    assert digest("chest", "paper") != digest("abdomen", "paper")
    # What the paper's vocabulary lacks is one word, and not the unknown one
    assert digest("anterior torso", "paper") == digest("left knee", "paper") != digest("unknown", "paper")
    assert digest(" ", "paper") == digest(None, "paper") == digest("unknown", "paper")
    # A model without metadata sees the image alone
    assert input_digest("ab", PatientMetadata(), "none") == digest("chest", "none")


@pytest.mark.parametrize("encoding", ["small", "paper"])
def test_masking_hides_whole_rows_and_single_fields_at_the_stated_rates(encoding: MetadataEncoding) -> None:
    # Given many equal rows with everything known
    rows = encode_metadata([PatientMetadata(age=60, sex="male", localization="back")] * 20_000, encoding)

    # If fields are hidden
    masked = mask_metadata(rows, np.random.default_rng(0), encoding=encoding)

    # Then each field is missing with probability .3 + .7 * .1, and all together a little over .3
    ages, sexes, sites = (1, (OTHER, *SEXES), (OTHER, *PAPER_SITES)) if encoding == "paper" else (2, SEXES, SITES)
    no_age = masked[:, 0] == MEAN_AGE_YEARS if encoding == "paper" else masked[:, 1] == 1
    no_sex = masked[:, ages + sexes.index("unknown")] == 1
    no_site = masked[:, ages + len(sexes) + sites.index("unknown")] == 1
    for missing in (no_age, no_sex, no_site):
        assert abs(missing.mean() - 0.37) < 0.015
    assert abs((no_age & no_sex & no_site).mean() - 0.3007) < 0.015


def test_each_frame_of_a_file_is_another_input_and_a_lone_image_is_what_it_was() -> None:
    patient = PatientMetadata(age=60, sex="male", localization="back")
    digests = {input_digest("ab", patient, "small", frame) for frame in (None, 1, 2)}

    assert len(digests) == 3
    # And without frames the input is that of the versions before, whose verdicts are kept
    seen = b'{"age":60.0,"localization":"posterior torso","sex":"male","version":1}'
    framed = b"".join(len(part).to_bytes(8, "big") + part for part in (b"ab", seen))
    assert input_digest("ab", patient) == hashlib.sha256(framed).hexdigest()
