"""`make pictures`: draws the README's pictures with the commands that it describes, from a synthetic archive."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from model.synthetic import synthesize_archive
from tests.chromium import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ViewportSize

COMMAND = Path(sys.executable).with_name("lesion-screen")
SIZE: ViewportSize = {"width": 1200, "height": 800}


class Office:
    """One machine's services in a home of their own."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.home = home
        self.environment = {**os.environ, "LESION_SCREEN_HOME": str(home), "FLOWER_PORT": str(self.port)}

    def __call__(self, *words: object) -> str:
        command = [str(COMMAND), *map(str, words)]
        return subprocess.run(command, env=self.environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    def screen(self, archive: Path) -> int:
        """Submit an archive and wait until nothing of it is open."""
        batch = int(json.loads(self("submit", archive))["batch"])
        self("status", batch, "--watch")
        return batch


def photograph_report(browser: Browser, report: Path, out: Path) -> None:
    """Take the worklist, with evidence over its first lesions."""
    page = browser.new_page(viewport=SIZE)
    page.goto((report / "index.html").as_uri())
    page.wait_for_selector(".card")
    page.keyboard.press("e")
    page.locator(".card").first.scroll_into_view_if_needed()
    page.screenshot(path=out / "evidence.png")


def photograph_flower(browser: Browser, office: Office, out: Path) -> None:
    """Take Flower's list of tasks."""
    user, _, password = (office.home / "flower_basic_auth").read_text(encoding="ascii").partition(":")
    context = browser.new_context(http_credentials={"username": user, "password": password}, viewport=SIZE)
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{office.port}/tasks")
    page.get_by_text("SUCCESS").first.wait_for()
    page.screenshot(path=out / "flower.png")


def main() -> None:
    """Screen a synthetic archive and take the pictures."""
    out = Path(sys.argv[1])
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        place = Path(folder)
        synthesize_archive(place / "archive", images=600, broken=5, seed=7)
        office = Office(place / "home")
        office("up")
        try:
            batch = office.screen(place / "archive")
            office("report", batch, "--out", place / "report")
            photograph_report(browser, place / "report", out)
            photograph_flower(browser, office, out)
        finally:
            office("down")


if __name__ == "__main__":
    main()
