"""A data folder is read as it is, or one sentence says what is wrong with it and where."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from model.cli import main
from model.dataset import METADATA_FILE, read_labels
from model.errors import TrainingDataError
from tests.labelled import draw_labelled

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"
ROW = "lesion-nv-0,nv-0,nv,histo,50,male,back"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "data"
    draw_labelled(folder, lesions=1)
    return folder


def write_table(folder: Path, *lines: str, encoding: str = "utf-8") -> None:
    (folder / METADATA_FILE).write_text("".join(f"{line}\n" for line in lines), encoding=encoding)


def test_columns_may_stand_in_any_order_beside_others_and_how_a_diagnosis_was_made_may_be_missing(drawn: Path) -> None:
    write_table(drawn, "dx,age,sex,localization,image_id,lesion_id,camera", "nv,,male,back,nv-0,lesion-nv-0,new")

    (row,) = read_labels(drawn)

    assert (row.image_id, row.lesion_id, row.dx_type, row.patient.age) == ("nv-0", "lesion-nv-0", "", None)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([HEADER.replace("image_id,", ""), ROW.replace("nv-0,nv", "nv")], "has no column image_id"),
        ([HEADER.replace(",age", ""), ROW.replace(",50", "")], "has no column age"),
        ([line.replace(",", ";") for line in (HEADER, ROW)], "has no column lesion_id, image_id, dx, age, sex"),
        ([], "has no column lesion_id, image_id, dx, age, sex"),
        ([HEADER, ROW, "lesion-nv-0,nv-0,nv"], "Line 3 of HAM10000_metadata.csv has fewer fields than the first"),
        ([HEADER, ROW, ROW.replace("male", "homme\xe9")], "Line 3 of HAM10000_metadata.csv is not UTF-8"),
        ([HEADER, ROW.replace("male", "m" * 200_000)], "Line 2 of HAM10000_metadata.csv cannot be read as CSV"),
    ],
    ids=["no image_id", "no age", "semicolons", "empty", "short row", "latin-1", "endless field"],
)
def test_a_table_that_cannot_be_read_is_said_in_a_sentence(
    drawn: Path, tmp_path: Path, lines: list[str], said: str
) -> None:
    # Given a table with one mistake
    write_table(drawn, *lines, encoding="latin-1")

    # If a program or a person asks for it, then the sentence names the place
    with pytest.raises(TrainingDataError, match=said):
        read_labels(drawn)
    answer = CliRunner().invoke(main, ["cross-validate", str(drawn), "--run", str(tmp_path / "run")])
    assert answer.exit_code == 2
    assert said in answer.stderr
    assert not isinstance(answer.exception, ValueError)
