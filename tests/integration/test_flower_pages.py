"""Flower as an operator sees it: in a browser, with a real worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.archive import MODEL
from tests.chromium import chromium
from tests.monitoring import LOGIN, flower_of

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Page
    from sqlalchemy import Engine

    from tests.archive import Archive
    from tests.stack import Stack


@pytest.fixture
def ledger(sqlite_ledger: Engine) -> Engine:
    """Flower shows the same whatever the ledger is on."""
    return sqlite_ledger


def open_page(browser: Browser, port: int, path: str, password: str) -> tuple[int, Page]:
    """Come with a password; returns the status and the page."""
    user = LOGIN.partition(":")[0]
    page = browser.new_context(http_credentials={"username": user, "password": password}).new_page()
    answer = page.goto(f"http://127.0.0.1:{port}{path}", wait_until="domcontentloaded")
    assert answer is not None
    return answer.status, page


def test_an_operator_logs_in_and_sees_the_worker_and_the_finished_chunk(
    stack: Stack, archive: Archive, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    # Given a worker, a feeder, Flower and a browser
    stack.start_worker("w1")
    with flower_of(stack) as flower, chromium() as browser:
        batch = archive.load(archive.draw(4))
        stack.start_feeder()
        stack.until(lambda: archive.counts(batch).open == 0)
        (chunk,) = archive.chunks(batch)

        # If somebody comes with a wrong password, then nothing is shown
        status, refused = open_page(browser, flower.port, "/tasks", "wrong horse battery")
        assert status == 401
        assert "screen_chunk" not in refused.content()

        # If the operator logs in, then the worker is online
        password = LOGIN.partition(":")[2]
        _, workers = open_page(browser, flower.port, "/workers", password)
        row = workers.get_by_role("row").filter(has_text="w1@test")
        expect(row).to_contain_text("Online", timeout=30_000)

        # And the chunk is there, finished, with the ids that the ledger has
        _, tasks = open_page(browser, flower.port, "/tasks", password)
        done = tasks.get_by_role("row").filter(has_text="lesion_screen.screen_chunk").first
        expect(done).to_contain_text("SUCCESS", timeout=30_000)
        expect(done).to_contain_text(f"batch {batch}, chunk {chunk}, 4 images, model {MODEL[:12]}")

        # And no page names a file of the archive
        for page in (workers, tasks):
            assert ".png" not in page.content()
        tasks.screenshot(path=tmp_path / "tasks.png", full_page=True)
        workers.screenshot(path=tmp_path / "workers.png", full_page=True)
