"""A headless Chromium that tests drive as a reader would: it clicks where things are, presses keys and takes pictures.

It talks to the browser over two pipes with Chromium's own debugging protocol, so nothing has to be installed for it
besides Chromium.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
_KEYS = {"/": 191, "Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
_KEYS |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
_PATIENCE = 60.0


class Page:
    """One page of a running browser.

    Attributes:
        complaints: What the page wrote to the console as an error or warning, and exceptions that nothing caught.
        requests: Addresses that the page asked for, itself included.
    """

    def __init__(self, process: subprocess.Popen[bytes], to_browser: int, from_browser: int):
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._process = process
        self._to, self._from = to_browser, from_browser
        self._left = b""
        self._number = 0
        self._session: str | None = None
        self._is_loaded = False
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its answer; events that come in between are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session and not method.startswith("Target."):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + _PATIENCE
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._from, 1 << 20)
            assert chunk, "the browser has ended"
            self._left += chunk
        one, self._left = self._left.split(b"\0", 1)
        message: dict[str, Any] = json.loads(one)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._is_loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:200])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(params["args"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])

    def open(self, path: Path, width: int = 1280, theme: str = "light", query: str = "", height: int = 900) -> None:
        """Open a file at a width in pixels, for a reader who prefers a light or a dark theme."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self._is_loaded = False
        self.ask("Page.navigate", url=path.as_uri() + query)
        while not self._is_loaded:
            self._read()
        self.settle()

    def settle(self) -> None:
        """Wait until what was drawn is on the screen."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 10.0) -> Any:
        """Return the value of an expression as soon as it is true."""
        until = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < until, f"never came true: {script}"
            time.sleep(0.05)
        return value

    def text(self, query: str) -> str:
        """Return the text of the first element of a query."""
        return str(self.run(f"document.querySelector({json.dumps(query)}).textContent"))

    def click(self, query: str) -> None:
        """Click into the middle of the first element of a query, as with a mouse."""
        find = f"document.querySelector({json.dumps(query)})"
        self.run(f"{find}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        self.settle()
        box = json.loads(self.run(f"JSON.stringify({find}.getBoundingClientRect())"))
        self.click_at(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def click_at(self, x: float, y: float) -> None:
        """Click at a place of the window."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def press(self, key: str) -> None:
        """Press a key, where the focus is."""
        known = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        self.ask("Input.dispatchKeyEvent", type="keyDown", **known, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **known)
        self.settle()

    def type(self, text: str) -> None:
        """Type a text, where the focus is."""
        self.ask("Input.insertText", text=text)
        self.settle()

    def print_to(self, path: Path) -> None:
        """Print the page as a PDF file on A4, without what browsers leave out unless asked (grounds)."""
        answer = self.ask("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(answer["data"]))

    def print_media(self, is_on: bool) -> None:
        """Show the page as it is printed, or as it is on a screen."""
        self.run(f"dispatchEvent(new Event('{'beforeprint' if is_on else 'afterprint'}'))")
        self.ask("Emulation.setEmulatedMedia", media="print" if is_on else "")
        self.settle()

    def focus(self, query: str) -> None:
        """Give an element the focus."""
        self.run(f"document.querySelector({json.dumps(query)}).focus()")

    def save_downloads_to(self, folder: Path) -> None:
        """Let files that the page offers be saved into a folder."""
        self.ask("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def wait_for_files(self, folder: Path, names: list[str], seconds: float = 20.0) -> None:
        """Wait until files are there, and whole."""
        until = time.monotonic() + seconds
        while missing := [name for name in names if not (folder / name).exists() or not (folder / name).stat().st_size]:
            assert time.monotonic() < until, f"never saved: {missing}; there are {sorted(folder.iterdir())}"
            self.settle()
            time.sleep(0.05)

    def picture(self, path: Path, part: tuple[float, float] | None = None) -> None:
        """Save what is on the screen as a PNG file, or a part of the page between two heights in pixels."""
        options: dict[str, Any] = {"format": "png"}
        if part:
            width = self.run("innerWidth")
            clip = {"x": 0, "y": part[0], "width": width, "height": part[1] - part[0], "scale": 1}
            options |= {"captureBeyondViewport": True, "clip": clip}
        answer = self.ask("Page.captureScreenshot", **options)
        path.write_bytes(base64.b64decode(answer["data"]))

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Run a browser that keeps its own files in a folder, and end it."""
    assert CHROMIUM is not None
    read_end, to_browser = os.pipe()
    from_browser, write_end = os.pipe()
    # Chromium listens at 3 and answers at 4; a shell moves our pipes there
    script = f'exec "$0" "$@" 3<&{read_end} 4>&{write_end}'
    command = ["/bin/bash", "-c", script, CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}"]
    process = subprocess.Popen(
        [*command, "--remote-debugging-pipe"],
        pass_fds=(read_end, write_end),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_end)
    os.close(write_end)
    try:
        with Page(process, to_browser, from_browser) as page:
            yield page
    finally:
        process.kill()
        process.wait()
        os.close(to_browser)
        os.close(from_browser)
