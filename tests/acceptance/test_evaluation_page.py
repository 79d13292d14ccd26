"""The evaluation report in a browser, of a model whose name, card and mistakes are hostile, and of one without any."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, text

from db.batches import ItemRow, add_chunk, finish_loading, start_batch
from db.chunks import Scored, claim_chunk, record_results
from db.labels import LabelRow, add_labels
from db.models import activate_first, register_model
from db.results import ResultRow
from db.session import open_ledger
from db.tables import CLASSES
from model.artifact import CARD, MANIFEST, artifact_path, read_manifest, shipped_artifact
from model.images import DecodedImage
from model.report import Evaluation
from producer.cli import cli
from tests.chromium import CONTRAST, Reader, chromium
from worker.pictures import PictureStore
from worker.shelf import FolderShelf

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
DIGEST = read_manifest(shipped_artifact()).digest
OLD = "b" * 64
FOUND = Evaluation.model_validate(read_manifest(shipped_artifact()).metrics)

SECTIONS = [
    *("Model", "Headline figures", "Operating point", "Referral", "Confusion matrix", "By diagnosis", "ROC curves"),
    *("Calibration", "Subgroups", "Gate", "Worst mistakes", "Model card"),
]


def curves() -> dict[str, Any]:
    bins = [{"images": 9, "confidence": x / 10, "share": x / 10, "low": x / 20, "high": 0.9} for x in range(1, 9)]
    both = {"malignant": [*bins, {**bins[0], "images": 4}], "top_class": bins}
    points = [[0, 0], [0.1, 0.6], [0.3, 0.9], [1, 1]]
    return {
        "roc": dict.fromkeys([*CLASSES, "malignant"], points),
        "flagged": [0.3, 0.9],
        "reliability_before": both,
        "reliability": both,
    }


def gate() -> dict[str, Any]:
    figure: dict[str, Any] = {
        "name": "malignant_auc",
        "candidate": 0.94,
        "active": 0.93,
        "difference": 0.01,
        "low": -0.004,
    }
    figure |= {"high": 0.024, "margin": 0.01, "p_worse": 0.9, "p_safe": 0.02}
    decision: dict[str, Any] = {"verdict": "promote", "reasons": [HOSTILE], "figures": [figure]}
    decision |= {"images": 990, "lesions": 740, "malignant_lesions": 140, "draws": 2000, "seed": 0}
    return {"active": OLD, "gate_set": "c" * 64, "uses": 2, "independent": False, "decision": decision}


def fill(engine: Engine, store: Path) -> None:
    """Register two models, and let the first contradict eleven of twelve confirmed diagnoses."""
    manifest = read_manifest(shipped_artifact())
    point = manifest.operating_point.model_dump(mode="json")
    given: dict[str, Any] = {"backbone": HOSTILE, "data_digest": "0" * 64}
    metrics = {**manifest.metrics, "operating_point": point}
    register_model(engine, digest=DIGEST, name=f"m {HOSTILE}", metrics={**metrics, "curves": curves()}, **given)
    register_model(engine, digest=OLD, name="old", metrics={"prior": {}}, **given)
    activate_first(engine, DIGEST, "me")
    with engine.begin() as connection:
        run = "INSERT INTO training_run (state, attempt, crashes, params, model_digest, gate, created_at)"
        named = {"digest": DIGEST, "gate": json.dumps(gate())}
        connection.execute(text(f"{run} VALUES ('done', 1, 0, '{{}}', :digest, :gate, 0)"), named)
    folder = artifact_path(store, DIGEST)
    folder.mkdir(parents=True)
    shutil.copy(shipped_artifact() / MANIFEST, folder)
    card = (shipped_artifact() / CARD).read_text(encoding="utf-8")
    (folder / CARD).write_text(f"{card}\n## {HOSTILE}\n\n| {HOSTILE} |\n", encoding="utf-8")
    screen(engine, store)


def screen(engine: Engine, store: Path) -> None:
    batch = start_batch(engine, name="clinic", source="/archive", model_digest=DIGEST)
    names = [HOSTILE, *(f"i{number}" for number in range(1, 12))]
    chunk = add_chunk(engine, batch, [ItemRow(path=f"{n}.jpg", size=1, image_id=one) for n, one in enumerate(names)])
    finish_loading(engine, batch, "1" * 64)
    claim = claim_chunk(engine, chunk, worker="w", lease_seconds=30)
    assert claim is not None
    pictures, outcomes = PictureStore(shelf=FolderShelf(store)), []
    base = ResultRow(
        input_digest="",
        model_digest=DIGEST,
        probabilities=(0, 0, 0, 0, 0.1, 0.9, 0),
        diagnosis="nv",
        confidence=0.9,
        malignant_score=0.1,
        referred=False,
        engine="test",
    )
    for number, item in enumerate(claim.items):
        digest = f"{number:064x}"
        result = replace(base, input_digest=digest, confidence=0.99 - number / 100)
        outcomes.append(Scored(item_id=item.item_id, image_digest=digest, input_digest=digest, result=result))
        if number % 2 == 0:
            pictures.draw(digest, DecodedImage(pixels=np.full((40, 40, 3), 200, np.uint8), shown=(4, 3)))
    pictures.await_drawn()
    record_results(engine, claim.chunk_id, claim.attempt, model_digest=DIGEST, outcomes=outcomes)
    rows = [
        LabelRow(
            line=2,
            image_id=name,
            dx="nv" if number == 1 else "mel",
            dx_type="histo",
            labelled_by="who",
            labelled_on="2026-01-31",
        )
        for number, name in enumerate(names)
    ]
    add_labels(engine, batch, rows, "me")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    engine = open_ledger(f"sqlite:///{shutil.copy(sqlite_template, folder / 'ledger.sqlite')}")
    fill(engine, folder / "store")
    engine.dispose()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LESION_SCREEN_HOME", str(folder))
        yield folder


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def said(home: Path) -> str:
    """What the command says of a model with everything; the other one's page is written too."""
    assert command("--model", OLD[:6], "--out", home / "old").exit_code == 0
    done = command("--model", "active", "--out", home / "out")
    assert done.exit_code == 0
    return done.output


@pytest.fixture(scope="module")
def program() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def reader(program: Browser, said: str) -> Iterator[Reader]:
    # The pages are there by now.
    assert said
    with closing(program.new_page(viewport={"width": 1300, "height": 1000})) as page:
        yield Reader(page)


@pytest.fixture
def full(reader: Reader, home: Path) -> Reader:
    reader.complaints.clear()
    reader.open(home / "out" / "evaluation.html")
    reader.ask("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    return reader


@pytest.fixture
def bare(reader: Reader, home: Path) -> Reader:
    reader.complaints.clear()
    reader.open(home / "old" / "evaluation.html")
    return reader


def section(browser: Reader, title: str) -> str:
    anchor = title.lower().replace(" ", "-")
    return str(browser.ask(f"document.querySelector('[aria-labelledby=\"{anchor}\"]').innerText"))


def test_the_command_says_where_the_page_is_and_writes_two_files_of_its_owners_into_the_audit_trail(
    home: Path, said: str
) -> None:
    assert "evaluation.html. Not a medical device" in said
    assert "It shows images of patients" in said
    assert "Head of the audit trail: " in said
    for folder in (home / "out", home / "old"):
        assert {path.name for path in folder.iterdir()} == {"evaluation.html", "style.css"}
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    engine = open_ledger(f"sqlite:///{home / 'ledger.sqlite'}")
    with engine.connect() as connection:
        trail = connection.execute(text("SELECT subject, detail FROM audit WHERE action = 'export_model'")).all()
    engine.dispose()
    assert [tuple(one) for one in trail] == [(f"model {digest}", "report") for digest in (OLD, DIGEST)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "either BATCH or --model"),
        ((1, "--model", "active"), "either BATCH or --model"),
        (("--model", "active", "--budget", 5), "--out alone"),
        (("--model", "active", "--top", 100_000), "--out alone"),
        (("--model", "active", "--all"), "--out alone"),
    ],
)
def test_a_report_is_about_a_batch_or_about_a_model(arguments: tuple[object, ...], told: str, tmp_path: Path) -> None:
    done = command(*arguments, "--out", tmp_path / "out")

    assert (done.exit_code, told in done.output) == (2, True)
    assert not (tmp_path / "out").exists()


def test_the_page_opens_from_a_file_with_every_section_and_nothing_hostile_is_run(full: Reader) -> None:
    assert full.ask("document.querySelector('h1').textContent") == f"Evaluation: m {HOSTILE}"
    assert full.ask("[...document.querySelectorAll('h2')].map((one) => one.textContent)") == SECTIONS
    assert "owned" not in str(full.ask("document.title.replace(/<.*/, '')"))
    assert [HOSTILE in section(full, title) for title in SECTIONS].count(True) == 4
    assert full.complaints == []
    # And every link within the page leads somewhere
    assert full.ask("[...document.links].filter((a) => !document.querySelector(a.getAttribute('href'))).length") == 0


def test_the_figures_stand_with_their_intervals_and_those_of_the_operating_point_come_from_the_manifest(
    full: Reader,
) -> None:
    balanced = re.escape(f"{FOUND.balanced_accuracy:.3f}")
    assert re.search(rf"Balanced accuracy \(mean recall\)\s+{balanced}", section(full, SECTIONS[1]))
    point, seen = section(full, "Operating point"), FOUND.operating_point
    found = f"{seen.melanoma_sensitivity:.1%}"
    assert re.search(rf"Melanomas flagged or referred\s+{re.escape(f'{seen.melanoma_sensitivity:.1%}')}", point)
    assert f"{seen.histology_lesions:,} lesions were proven by histology" in point
    assert re.search(rf"All\s+{re.escape(f'{FOUND.referral.referred:.1%}')}", section(full, "Referral"))
    young = FOUND.subgroups[0]
    assert (young.field, young.group) == ("age", "under 30")
    counts = rf"{young.images:,}\s+{young.lesions:,}\s+{young.malignant_lesions:,}"
    found = re.escape(f"{young.sensitivity:.3f}").replace(r"\ \(", r"\s+\(", 1)
    assert re.search(rf"age: under 30\s+{counts}\s+{found}", section(full, "Subgroups"))


def test_the_confusion_matrix_is_a_table_with_numbers_and_shades(full: Reader) -> None:
    matrix = "document.querySelector('.matrix')"
    counts = full.ask(f"[...{matrix}.querySelectorAll('.shade')].map((one) => parseInt(one.textContent))")
    assert len(counts) == 49
    naevi, told = "Melanocytic naevus (nv)", FOUND.confusion[CLASSES.index("nv")]
    row = f"[...{matrix}.querySelectorAll('tbody tr')].find((one) => one.cells[0].textContent === '{naevi}')"
    assert full.ask(f"[...({row}).cells].slice(1).map((one) => one.textContent)") == [
        f"{sum(told):,}",
        *(f"{count:,}{'< 1%' if 0 < count < sum(told) / 200 else f'{count / sum(told):.0%}'}" for count in told),
    ]
    shade = "(one) => getComputedStyle(one.querySelector('.shade')).backgroundColor"
    shades = full.ask(f"[...({row}).cells].slice(2).map({shade})")
    assert shades[5] not in shades[:5]
    assert full.ask(f"({row}).querySelectorAll('.hit').length") == 1


def test_the_curves_are_drawn_within_their_frames_and_told_in_words(full: Reader) -> None:
    drawn = "document.querySelectorAll('figure svg[role=img] polyline')"
    assert full.ask(f"{drawn}.length") == 8 + 4
    outside = (
        "[...document.querySelectorAll('svg[role=img]')].filter((svg) => { const box = svg.getBoundingClientRect();"
        " return [...svg.children].some((one) => { const r = one.getBoundingClientRect(); return r.left < box.left - 1"
        " || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1; }); }).length"
    )
    assert full.ask(outside) == 0
    roc = section(full, "ROC curves")
    assert "Operating point: 90.0% found at 30.0% false alarms" in roc
    area = re.escape(f"{FOUND.malignant_auc:.3f}")
    assert re.search(rf"Malignant score: AUC {area}\s+0\.0%\s+60\.0%\s+60\.0%\s+90\.0%", roc)
    # A bin of four images is told, and not drawn
    assert full.ask("document.querySelectorAll('svg[role=img] circle.k-after').length") == 16
    looks = full.ask(
        "['akiec', 'bcc', 'bkl', 'df', 'mel', 'nv', 'vasc'].map((name) => getComputedStyle(document.querySelector("
        "`polyline.k-${name}`)).strokeDasharray + getComputedStyle(document.querySelector(`polyline.k-${name}`))"
        ".strokeWidth)"
    )
    assert len(set(looks)) == 7


def test_the_worst_mistakes_come_with_their_pictures_the_most_confident_first(full: Reader) -> None:
    told = section(full, "Worst mistakes")
    assert "Of 12 images with a confirmed diagnosis that this model has screened, 11 (91.7%)" in told
    cards = full.ask("[...document.querySelectorAll('.mistakes li')].map((one) => one.innerText)")
    assert len(cards) == 10
    assert HOSTILE in cards[0]
    assert [re.findall(r"Confidence\s+(\S+)", card)[0] for card in cards[:3]] == ["0.990", "0.970", "0.960"]
    assert "▲ Melanoma (mel), by histology" in cards[1]
    assert ["No picture was drawn" in card for card in cards[:3]] == [False, False, True]
    assert full.ask("[...document.images].map((one) => one.naturalWidth > 0 && one.alt.length > 10)") == [True] * 6


def test_the_gate_promotes_nothing_on_the_candidates_own_data(full: Reader) -> None:
    told = section(full, "Gate")

    assert "Verdict: undecided" in told
    assert re.search(r"malignant auc\s+0\.940\s+0\.930\s+\+0\.010 \(-0\.004 to \+0\.024\)\s+0\.01", told)


def test_what_is_not_stored_is_said_to_be_missing_section_by_section(bare: Reader) -> None:
    for title in (*SECTIONS[1:9],):
        assert "Not stored for this model." in section(bare, title)
    assert "The gate was not asked" in section(bare, "Gate")
    assert "None can be named" in section(bare, "Worst mistakes")
    assert "no artifact of the model" in section(bare, "Model card")
    assert bare.ask("document.querySelectorAll('svg').length") == 0
    assert bare.complaints == []


def test_every_text_stands_out_from_its_ground(full: Reader, home: Path) -> None:
    assert full.ask(CONTRAST) == []
    full.open(home / "old" / "evaluation.html")
    assert full.ask(CONTRAST) == []


def test_headings_tables_and_drawings_say_what_they_are(full: Reader) -> None:
    levels = full.ask("[...document.querySelectorAll('h1, h2, h3, h4')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert max(after - before for before, after in itertools.pairwise(levels)) == 1
    tables = "[...document.querySelectorAll('table')]"
    assert full.ask(f"{tables}.length") > 15
    assert full.ask(f"{tables}.filter((one) => !one.caption || !one.caption.textContent).length") == 0
    assert full.ask("[...document.querySelectorAll('th')].filter((one) => !one.scope || !one.textContent).length") == 0
    unnamed = "[...document.querySelectorAll('svg')].filter((one) => !one.ariaLabel && one.ariaHidden !== 'true')"
    assert full.ask(f"{unnamed}.length") == 0


def test_on_a_narrow_screen_tables_scroll_and_the_page_does_not(full: Reader) -> None:
    full.page.set_viewport_size({"width": 420, "height": 800})
    try:
        assert full.ask("document.documentElement.scrollWidth") <= 420
    finally:
        full.page.set_viewport_size({"width": 1300, "height": 1000})
