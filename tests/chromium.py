"""A headless Chromium for tests: Debian's program, driven by Playwright."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: As root Chromium has no sandbox to go into; the others keep it from calling home.
_OPTIONS: Final = (
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)
#: Generous: other tests keep the machine busy.
_ANSWER_MILLISECONDS: Final = 90_000

#: Every text whose contrast with its ground is below 4.5, by the formula of WCAG 2.2, 1.4.3.
CONTRAST: Final = """
(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const spoken = (one) => one.getClientRects().length && !one.disabled && !one.closest("svg")
    && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const ratio = (one) => {
    const [high, low] = [parse(getComputedStyle(one).color), ground(one)].map(light).sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const texts = [...document.querySelectorAll("body *")].filter(spoken);
  const faint = texts.filter((one) => ratio(one) < 4.5).map((one) => one.outerHTML.slice(0, 80));
  return texts.length < 10 ? ["nothing was looked at"] : faint;
})()
"""


@contextmanager
def chromium() -> Iterator["Browser"]:
    """Start the program; without it a test is skipped on a laptop, and fails where CI is set."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        told = "Chromium is not installed (Debian: apt-get install chromium): the pages were NOT looked at"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass(slots=True)
class Reader:
    """Somebody who reads a page of ours: opens files, points, presses keys, chooses."""

    page: "Page"
    #: What the page complained of: exceptions, refused by its policy, files not found.
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Listen to what the page complains of."""
        self.page.set_default_timeout(_ANSWER_MILLISECONDS)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda told: self.complaints.append(told.text) if told.type == "error" else None)

    def open(self, path: Path) -> None:
        """Open a file as a user does who clicks on it, and wait until all of it is there."""
        self.page.goto(path.absolute().as_uri(), wait_until="load")

    def ask(self, script: str) -> Any:
        """Return what an expression is worth in the page."""
        return self.page.evaluate(script)

    def until(self, script: str) -> None:
        """Wait until an expression is true; polled, as a page's policy lets it compile no text."""
        self.page.wait_for_function(f"() => !!({script})", polling=50)

    def press(self, key: str) -> None:
        """Press a key as a user does."""
        self.page.keyboard.press(key)

    def point_at(self, selector: str) -> None:
        """Move the mouse over an element."""
        self.page.hover(selector)

    def choose(self, name: str, value: str) -> None:
        """Set a field of the filters as a user does."""
        chosen = self.page.locator(f"#filters [name={json.dumps(name)}]")
        if chosen.evaluate("(element) => element.tagName") == "SELECT":
            chosen.select_option(value)
        else:
            chosen.fill(value)

    def save(self, path: Path) -> None:
        """Take a picture of what is seen."""
        self.page.screenshot(path=path)
