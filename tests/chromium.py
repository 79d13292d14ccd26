"""A headless Chromium for tests, spoken to over a pipe by the DevTools protocol: no driver and no package is needed."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Final, Self

import pytest

from tests.servers import die_with_parent

#: Generous: other tests keep the machine busy.
_ANSWER_SECONDS: Final = 90.0


def find_chromium() -> str:
    """Find the program, or skip the test on a laptop that has none; where CI is set that fails."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        told = "Chromium is not installed (Debian: apt-get install chromium): the report's pages were NOT looked at"
        if os.environ.get("CI") == "true":
            pytest.fail(told)
        pytest.skip(told)
    return found


class Browser:
    """One page in a headless Chromium."""

    def __init__(self, folder: Path, *, width: int = 1300, height: int = 1000) -> None:
        asked, told = os.pipe(), os.pipe()
        command = (
            *(find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--remote-debugging-pipe", "--no-first-run", "--disable-extensions", "--disable-background-networking"),
            *(f"--window-size={width},{height}", f"--user-data-dir={folder}"),
        )
        shell = f'exec "$@" 3<&{asked[0]} 4>&{told[1]}'
        self._process = subprocess.Popen(
            # Not every sh knows descriptors of two digits.
            ["/bin/bash", "-c", shell, "bash", *command],
            pass_fds=(asked[0], told[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - a killed pytest must leave no browser
        )
        os.close(asked[0])
        os.close(told[1])
        self._to, self._from = asked[1], told[0]
        self._number, self._rest, self._session = 0, b"", None
        #: What the page complained of: exceptions, refused by its policy, files not found.
        self.complaints: list[str] = []
        try:
            self._attach()
        except BaseException:
            self.__exit__()
            raise

    def _attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> Any:
        """Ask for something and wait for the answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            answer = self._receive(deadline)
            self._note(answer)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self, deadline: float) -> Any:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            piece = os.read(self._from, 1 << 16)
            assert piece, "Chromium has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, message: Any) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(message["params"]["exceptionDetails"]))
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.complaints.append(str(message["params"]["entry"]["text"]))

    def open(self, path: Path) -> None:
        """Open a file as a user does who clicks on it, and wait until all of it is there."""
        self.call("Page.navigate", url=path.absolute().as_uri())
        self.until(f"location.pathname.endsWith({json.dumps(path.name)}) && document.readyState === 'complete'")

    def ask(self, script: str) -> Any:
        """Return what an expression is worth in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while not self.ask(f"!!({script})"):
            assert time.monotonic() < deadline, script
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press a key as a user does."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def point_at(self, selector: str) -> None:
        """Move the mouse over an element."""
        script = f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({_box(selector)})"
        x, y = self.ask(script)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def choose(self, name: str, value: str) -> None:
        """Set a field of the filters as a user does."""
        field = f"document.querySelector('#filters').elements[{json.dumps(name)}]"
        events = "['input', 'change'].forEach((kind) => field.dispatchEvent(new Event(kind, {bubbles: true})))"
        self.ask(f"((field) => {{ field.value = {json.dumps(value)}; {events}; }})({field})")

    def save(self, path: Path) -> None:
        """Take a picture of what is seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def _box(selector: str) -> str:
    found = f"document.querySelector({json.dumps(selector)})"
    return f"({found}.scrollIntoView({{block: 'center'}}), {found}.getBoundingClientRect())"
