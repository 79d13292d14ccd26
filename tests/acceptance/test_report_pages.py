"""The worklist report in a browser: what a physician sees and does, with an archive whose names are hostile."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import Engine

from db.batches import ItemRow, add_chunk, finish_loading, start_batch
from db.chunks import Rejected, Scored, claim_chunk, record_results
from db.evidence import pack_evidence
from db.models import register_model
from db.results import ResultRow
from db.session import open_ledger
from db.tables import CLASSES
from model.images import DecodedImage
from model.pictures import draw_overlay
from producer.site import ReportOptions, write_report
from tests.archive import MODEL
from tests.chromium import CONTRAST, Reader, chromium
from worker.pictures import PictureStore
from worker.shelf import FolderShelf

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
LESIONS = 90
EVIDENCE = np.eye(5, dtype=np.float32)


def result(digest: str, score: float, *, referred: bool) -> ResultRow:
    rest = (1 - score) / 2
    return ResultRow(
        input_digest=digest,
        model_digest=MODEL,
        probabilities=(0, 0, rest, 0, score, rest, 0),
        diagnosis="mel" if score > 0.5 else "nv",
        confidence=max(score, rest),
        malignant_score=score,
        referred=referred,
        refer_reason="low_confidence" if referred else None,
        engine="test",
        evidence=pack_evidence(EVIDENCE.tolist()),
    )


def fill(engine: Engine, store: Path) -> int:
    """Screen 90 lesions of 30 patients, the worst of two images each; two files more could not be assessed."""
    register_model(
        engine,
        digest=MODEL,
        name="m",
        backbone="b",
        metrics={"prior": dict.fromkeys(CLASSES, 1 / 7), "operating_point": {"threshold": 0.5}},
        data_digest="0" * 64,
    )
    batch = start_batch(engine, name=f"clinic {HOSTILE}", source="/archive", model_digest=MODEL)
    rows = [
        ItemRow(
            path=f"{number}.jpg",
            size=1,
            image_id=HOSTILE if number == 0 else f"i{number}",
            lesion_id=f"L{number // 2}",
            patient_ref=f"P{number // 2 % 30}",
            age=float(number % 80),
            sex="female",
            localization="back" if number % 4 else "face",
        )
        for number in range(2 * LESIONS)
    ]
    chunk = add_chunk(engine, batch, [*rows, ItemRow(path="bad.jpg"), ItemRow(path=None, rejected="missing_image")])
    finish_loading(engine, batch, secrets.token_hex(32))
    claim = claim_chunk(engine, chunk, worker="w", lease_seconds=30)
    assert claim is not None
    pictures, outcomes = PictureStore(shelf=FolderShelf(store)), []
    for number, item in enumerate(claim.items[:-1]):
        digest, score = f"{number:064x}", 1 - number / 200 - 1e-6 * (number == 100)
        scored = result(digest, score, referred=number == 121)
        outcomes.append(Scored(item_id=item.item_id, image_digest=digest, input_digest=digest, result=scored))
        if score >= 0.5:
            pictures.draw(digest, DecodedImage(pixels=np.full((40, 40, 3), 200, np.uint8), shown=(4, 3)))
    pictures.await_drawn()
    bad = Rejected(item_id=claim.items[-1].item_id, reason="truncated")
    record_results(engine, claim.chunk_id, claim.attempt, model_digest=MODEL, outcomes=[*outcomes, bad])
    return batch


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    folder = tmp_path_factory.mktemp("report")
    engine = open_ledger(f"sqlite:///{shutil.copy(sqlite_template, folder / 'ledger.sqlite')}")
    batch = fill(engine, folder / "store")
    out = folder / "out"
    write_report(
        engine, batch, FolderShelf(folder / "store"), ReportOptions(out=out, top=1000, budget=20, prevalence=0.2)
    )
    engine.dispose()
    return out


@pytest.fixture(scope="module")
def program() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(program: Browser, site: Path) -> Iterator[Reader]:
    with closing(program.new_page(viewport={"width": 1300, "height": 1000})) as page:
        reader = Reader(page)
        reader.open(site / "index.html")
        reader.until("document.querySelectorAll('.card').length")
        yield reader


def ranks(browser: Reader) -> list[int]:
    found: Any = browser.ask("[...document.querySelectorAll('.card')].map((card) => Number(card.dataset.rank))")
    return list(found)


def said(browser: Reader) -> str:
    return str(browser.ask("document.querySelector('#said').textContent"))


def test_the_page_opens_from_a_file_with_everything_in_it_and_no_name_of_an_archive_is_run(browser: Reader) -> None:
    # Given a report whose names are HTML, opened as a file
    first = str(browser.ask("document.querySelector('.card').innerText"))

    # Then they are shown letter by letter, and the browser has nothing to complain of
    assert HOSTILE in first
    assert HOSTILE in str(browser.ask("document.querySelector('h1').textContent"))
    assert "owned" not in str(browser.ask("document.title"))
    assert said(browser) == "Showing 1 to 40 of 90 lesions, page 1 of 3."
    assert browser.complaints == []


def test_the_policy_lets_no_script_run_that_is_not_the_reports_own(browser: Reader) -> None:
    # If somebody got an attribute with a script, and a picture from elsewhere, into the page after all
    browser.ask(
        "document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')"
    )
    browser.ask("document.querySelector('main').insertAdjacentHTML('beforeend', '<b onclick=\"window.ran = 1\">x</b>')")
    browser.ask("document.querySelector('main b').click()")

    # Then the policy refuses both, and says so
    browser.until("true")
    assert browser.ask("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)


def test_what_nobody_could_assess_stands_first(browser: Reader) -> None:
    assert browser.ask("document.querySelector('main section h2').textContent") == "Not assessed: must be read by hand"

    browser.ask("document.querySelector('#unread').open = true")
    browser.until("document.querySelector('#unread-rows table')")

    text = str(browser.ask("document.querySelector('#unread-rows').innerText"))
    assert "bad.jpg\ttruncated" in text
    assert "a row that names no image\tmissing image" in text


def test_filters_keep_the_lesions_that_match(browser: Reader) -> None:
    browser.choose("referred", "1")
    browser.until("document.querySelectorAll('.card').length === 1")
    assert ranks(browser) == [61]
    assert "⚑ referred: too close to call" in str(browser.ask("document.querySelector('.card').innerText"))

    browser.choose("referred", "")
    browser.choose("score-max", "0.5")
    browser.choose("age-min", "70")
    browser.choose("age-max", "79")
    browser.until("document.querySelector('#said').textContent.includes('that match')")
    assert said(browser) == "Showing 1 to 5 of 5 of 90 lesions that match, page 1 of 1."

    browser.choose(
        "site", browser.ask("[...document.querySelectorAll('[name=site] option')].find((o) => o.text === 'face').value")
    )
    browser.until("document.querySelectorAll('.card').length < 5")
    assert "face" in str(browser.ask("document.querySelector('.card').innerText"))

    browser.ask("document.querySelector('[type=reset]').click()")
    browser.until("document.querySelectorAll('.card').length === 40")


def test_a_class_is_found_by_any_image_of_a_lesion(browser: Reader) -> None:
    names = str(browser.ask("document.querySelector('[name=class]').innerText"))
    assert "Melanoma" in names

    browser.choose("class", str(1 << CLASSES.index("mel")))
    browser.until("document.querySelector('#said').textContent.includes('of 50 of 90')")

    assert ranks(browser)[:2] == [1, 2]


def test_one_patient_is_shown_alone_when_the_name_is_pressed(browser: Reader) -> None:
    browser.ask("document.querySelectorAll('.card')[4].querySelector('button').click()")
    browser.until("document.querySelectorAll('.card').length === 3")

    assert ranks(browser) == [5, 35, 65]
    assert "one patient's only" in said(browser)


def test_patients_can_be_read_together_each_at_its_worst_lesion(browser: Reader) -> None:
    browser.choose("group", "patient")
    browser.until("document.querySelectorAll('.group').length")

    groups = browser.ask("[...document.querySelectorAll('.group')].map((one) => one.textContent)")
    assert groups == [f"Patient P{number}" for number in range(14)]
    assert ranks(browser)[:6] == [1, 31, 61, 2, 32, 62]


def test_the_keyboard_moves_from_lesion_to_lesion_and_page_to_page(browser: Reader) -> None:
    for key, rank in (("j", 1), ("j", 2), ("ArrowDown", 3), ("k", 2)):
        browser.press(key)
        assert browser.ask("Number(document.activeElement.dataset.rank)") == rank
    browser.press("n")
    browser.until("document.activeElement.dataset.rank === '41'")
    browser.press("p")
    browser.until("document.activeElement.dataset.rank === '1'")
    browser.press("f")
    assert browser.ask("document.activeElement.name") == "class"
    # Typed into a filter, a letter is a letter
    browser.press("e")
    assert browser.ask("document.body.classList.contains('evidence')") is False


def test_evidence_is_seen_on_pointing_and_by_a_key(browser: Reader) -> None:
    map_of_second = "document.querySelector('.card:nth-child(2) > .picture .map')"
    opacity = f"Number(getComputedStyle({map_of_second}).opacity)"
    assert browser.ask(opacity) == 0

    browser.press("e")
    browser.until(f"{opacity} === 1")
    assert browser.ask("document.querySelector('#evidence').getAttribute('aria-pressed')") == "true"
    browser.press("e")
    browser.until(f"{opacity} === 0")

    browser.point_at(".card:nth-child(2) > .picture")
    browser.until(f"{opacity} === 1")


def test_the_page_draws_evidence_as_other_overlays_are_drawn(browser: Reader) -> None:
    canvas = "document.querySelector('.picture canvas')"
    side = int(browser.ask(f"{canvas}.width"))

    drawn = browser.ask(f"[...{canvas}.getContext('2d').getImageData(0, 0, {side}, {side}).data]")

    # Colours are kept multiplied by their opacity, so those of what is nearly clear are rough
    pixels = np.array(drawn).reshape(side, side, 4)
    expected = draw_overlay(EVIDENCE, (side, side)).astype(int)
    np.testing.assert_allclose(pixels[..., 3], expected[..., 3], atol=1)
    opacity = expected[..., 3:] / 255
    np.testing.assert_allclose(pixels[..., :3] * opacity, expected[..., :3] * opacity, atol=2)
    assert expected[..., 3].max() == 200


def test_a_lesion_below_the_operating_point_is_not_prioritised_and_never_called_benign(browser: Reader) -> None:
    browser.choose("score-max", "0.4")
    browser.until("document.querySelector('#said').textContent.includes('that match')")

    cards = str(browser.ask("document.querySelector('#cards').innerText"))

    assert "not prioritised" in cards
    assert "benign" not in cards.lower()
    assert "No picture was drawn" in cards


def test_what_is_prioritised_is_told_from_the_score_before_it_is_rounded(site: Path) -> None:
    # Given a lesion a hair below the operating point, whose score is written as if it were there
    lesions = [lesion for path in (site / "data").glob("part-*.js") for lesion in read_call(path)[1]]
    told = {images[0]["path"]: (images[0]["score"], images[0]["prioritised"]) for images in lesions}

    # Then it is not prioritised, and the one before it is
    assert told["98.jpg"] == (0.51, True)
    assert told["100.jpg"] == (0.5, False)


def read_call(path: Path) -> list[Any]:
    text = path.read_text(encoding="ascii")
    return list(json.loads("[" + text[text.index("(") + 1 : -3] + "]"))


def test_every_picture_has_a_text_and_every_field_a_label(browser: Reader) -> None:
    assert browser.ask("[...document.images].every((one) => one.alt.length > 10 && one.naturalWidth > 0)") is True
    assert browser.ask("[...document.querySelectorAll('canvas')].every((one) => one.ariaLabel.length > 10)") is True
    unlabelled = "[...document.querySelectorAll('input, select')].filter((one) => !one.labels.length && !one.ariaLabel)"
    assert browser.ask(f"{unlabelled}.length") == 0


def test_every_text_stands_out_from_its_ground(browser: Reader, site: Path) -> None:
    # Given the colours as they are computed, of every element that has a text of its own, on both pages
    assert browser.ask(CONTRAST) == []
    browser.open(site / "overview.html")
    assert browser.ask(CONTRAST) == []


def test_printed_pages_have_no_controls(browser: Reader) -> None:
    browser.page.emulate_media(media="print")
    shown = "(selector) => document.querySelector(selector).getClientRects().length"
    assert [browser.ask(f"({shown})({selector!r})") for selector in ("#filters", "#pager", "nav")] == [0, 0, 0]
    assert browser.ask(f"({shown})('.card')") == 1


def test_the_overview_has_counts_histograms_and_the_budget_and_nothing_to_complain_of(
    browser: Reader, site: Path
) -> None:
    browser.open(site / "overview.html")

    text = str(browser.ask("document.body.innerText"))

    assert re.search(r"Found\s+182", text)
    assert re.search(r"missing image\s+1", text)
    assert "At the stated prevalence of 20.00%" in text
    assert browser.ask("document.querySelectorAll('svg rect').length") == 40
    assert browser.complaints == []


def test_the_data_files_are_plain_calls_that_hold_no_markup(site: Path) -> None:
    for path in (site / "data").iterdir():
        text = path.read_text(encoding="ascii")
        assert re.fullmatch(r"lesionScreen\.(start|part|unread)\(.*\);\n", text, re.DOTALL)
        assert read_call(path)
    for name in ("index.html", "overview.html"):
        assert 'onerror="' not in (site / name).read_text(encoding="utf-8")


def test_a_machine_without_a_browser_skips_these_tests_and_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)

    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="NOT looked at"), chromium():
        pass
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"), chromium():
        pass
