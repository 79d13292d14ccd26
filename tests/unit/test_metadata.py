"""Age, sex and site in the model's own words."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.metadata import SEXES, SITES, WIDTH, PatientMetadata, encode_metadata, input_digest, mask_metadata

words = st.one_of(st.none(), st.text(max_size=20))
patients = st.builds(
    PatientMetadata, age=st.one_of(st.none(), st.floats(allow_nan=True)), sex=words, localization=words
)


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


@given(patients)
def test_normalising_twice_changes_nothing(patient: PatientMetadata) -> None:
    assert patient.normalised().normalised() == patient.normalised()


def test_masking_hides_whole_rows_and_single_fields_at_the_stated_rates() -> None:
    # Given many equal rows with everything known
    rows = encode_metadata([PatientMetadata(age=60, sex="male", localization="back")] * 20_000)

    # If fields are hidden
    masked = mask_metadata(rows, np.random.default_rng(0))

    # Then each field is missing with probability .3 + .7 * .1, and all together a little over .3
    no_age = masked[:, 1] == 1
    no_sex = masked[:, 2 + SEXES.index("unknown")] == 1
    no_site = masked[:, 2 + len(SEXES) + SITES.index("unknown")] == 1
    for missing in (no_age, no_sex, no_site):
        assert abs(missing.mean() - 0.37) < 0.015
    assert abs((no_age & no_sex & no_site).mean() - 0.3007) < 0.015
