"""Folders as the methods leave them, small, and a browser that is driven over a pipe."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from smallr.methods.crv.rows import TeacherRow, blank


def crv_row(number: int, *, rewrite: str = "", verdicts: Sequence[str] = ("right",), **changes: Any) -> dict[str, Any]:
    """A row of CRV whose attempts had these verdicts."""
    teacher = TeacherRow(
        "train", number, f"source {number % 2}", f"What is {number} + 1?", str(number + 1), f"{number} + 1."
    )
    text = rewrite or f"We add 1 to {number} and get {number + 1}."
    attempts = [
        {
            "action": "extend",
            "rationale": text,
            "verdict": each,
            "reason": "",
            "prompt_tokens": 1,
            "completion_tokens": 1,
        }
        for each in verdicts
    ]
    right = verdicts[-1] == "right"
    fitted = (
        {"rationale": text, "completion": text, "rewritten": True, "verified_by": "rule and agent"} if right else {}
    )
    failed = {} if right else {"reason": f"not verified: {verdicts[-1]}"}
    row = blank(
        teacher, teacher.question, dict.fromkeys(("critic", "rethinker", "verifier", "student", "injector"), "m")
    )
    return {**row, "label": "easy", "original_correct": True, "attempts": attempts, **fitted, **failed, **changes}


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Browser:
    """A headless Chromium that is driven by DevTools messages over a pipe."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900):
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None:
            pytest.skip("needs a browser: apt install chromium")
        (child_in, self._out), (self._in, child_out) = os.pipe(), os.pipe()
        moved = f'exec 3<&{child_in} 4>&{child_out}; exec "$@"'
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        command = ["bash", "-c", moved, "browser", program, *flags, f"--window-size={width},{height}"]
        self._process = subprocess.Popen(
            command, pass_fds=(child_in, child_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(child_in)
        os.close(child_out)
        self._numbers, self._left, self._session = itertools.count(1), b"", None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.send("Page.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._receive()
            if reply.get("id") == number:
                assert "error" not in reply, reply
                return reply["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            data = os.read(self._in, 1 << 16)
            assert data, "the browser has ended"
            self._left += data
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def open(self, address: str) -> None:
        """Opens a page and waits for its first row."""
        self.send("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && document.getElementById('facts').textContent !== ''")

    def value(self, expression: str) -> Any:
        """Evaluates JavaScript in the page."""
        reply = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def until(self, expression: str, seconds: float = 10) -> float:
        """Waits until an expression is true; gives how long that took."""
        start = time.perf_counter()
        while not self.value(f"Boolean({expression})"):
            assert time.perf_counter() - start < seconds, f"never true: {expression}; {self.text('notice')}"
            time.sleep(0.002)
        return time.perf_counter() - start

    def text(self, name: str) -> str:
        """The text of an element."""
        return self.value(f"document.getElementById({name!r}).innerText")

    def press(self, key: str, *, control: bool = False) -> None:
        """Presses a key as a person does."""
        fields = {"key": key, "modifiers": 2 if control else 0}
        if len(key) == 1 and not control:
            fields["text"] = key
        fields["windowsVirtualKeyCode"] = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37}.get(key, 0)
        self.send("Input.dispatchKeyEvent", type="keyDown" if "text" in fields else "rawKeyDown", **fields)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def write(self, text: str) -> None:
        """Puts a text where the cursor is."""
        self.send("Input.insertText", text=text)

    def resize(self, width: int, height: int) -> None:
        """Makes the screen that of a phone, for instance."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=True)

    def picture(self, path: Path) -> None:
        """Writes a picture of the page."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self._session = None
            self.send("Browser.close")
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Opens a browser and closes it."""
    opened = Browser(folder)
    try:
        yield opened
    finally:
        opened.close()
