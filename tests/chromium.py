"""Headless Chromium for tests marked ``browser``: driven over a pipe, without a network and without a package."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_S = 60.0
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--autoplay-policy=no-user-gesture-required",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


class Chromium:
    """A browser of its own, which answers one question after the other."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser reads from descriptor 3 and answers on descriptor 4.
        shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        command = ["bash", "-c", shell, "bash", PROGRAM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command,
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._rest = 0, b""
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, session: str | None = None, /, **params: Any) -> dict[str, Any]:
        """What the browser answers; what it tells meanwhile is kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            told = self._next(deadline)
            if told.get("id") == self._number:
                assert "error" not in told, f"{method}: {told['error']}"
                result: dict[str, Any] = told["result"]
                return result
            self.events.append(told)

    def listen(self, seconds: float) -> None:
        """Keep what the browser tells for a while."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError):
            while True:
                self.events.append(self._next(deadline))

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            data = os.read(self._read, 2**20)
            if not data:
                raise RuntimeError("the browser has ended")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        return told

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(Exception):
            self.ask("Browser.close")
        for descriptor in (self._read, self._write):
            os.close(descriptor)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Tab:
    """A page in a window of a given size."""

    def __init__(self, browser: Chromium, width: int, height: int, *, dark: bool = False) -> None:
        self.browser = browser
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        self._target = target
        self._session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.ask(method, self._session, **params)

    def open(self, file: Path) -> None:
        """Open a file and wait until it is there."""
        self.ask("Page.navigate", url=file.resolve().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives."""
        told = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.value(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.05)

    def picture(self, selector: str | None = None) -> np.ndarray:
        """What is seen of an element, or in the window, shape (height, width, 3)."""
        return np.asarray(Image.open(io.BytesIO(self.png(selector))).convert("RGB"))

    def png(self, selector: str | None = None, *, whole: bool = False) -> bytes:
        """The same as a PNG file; of the whole page, if that is asked for."""
        options: dict[str, Any] = {"format": "png"}
        if selector is not None:
            box = self.value(
                f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                "return [b.x, b.y, b.width, b.height]; })()"
            )
            options["clip"] = {**dict(zip(("x", "y", "width", "height"), box, strict=True)), "scale": 1}
        if whole:
            size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {
                "x": 0,
                "y": 0,
                "width": size["width"],
                "height": min(12_000, size["height"]),
                "scale": 1,
            }
            options["captureBeyondViewport"] = True
        return base64.b64decode(self.ask("Page.captureScreenshot", **options)["data"])

    def press(self, key: str, code: str, number: int) -> None:
        """Press and release a key where the focus is."""
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.ask(
                "Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number, **text
            )

    def click(self, selector: str, share: tuple[float, float] = (0.5, 0.5)) -> None:
        """Click into an element, at a share of its width and height."""
        left, top, width, height = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'nearest'}); const b = e.getBoundingClientRect();"
            "return [b.x, b.y, b.width, b.height]; })()"
        )
        x, y = left + share[0] * width, top + share[1] * height
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def told(self, method: str) -> list[dict[str, Any]]:
        """What the page told under a name."""
        return [
            e["params"]
            for e in self.browser.events
            if e.get("method") == method and e.get("sessionId") == self._session
        ]

    def close(self) -> None:
        self.browser.ask("Target.closeTarget", targetId=self._target)


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """A browser that ends with the block."""
    browser = Chromium(profile)
    try:
        yield browser
    finally:
        browser.close()


class Page(Tab):
    """A page in a browser of its own, held as a context."""

    def __init__(self, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self._window = width, height, dark

    def __enter__(self) -> Page:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        width, height, dark = self._window
        super().__init__(Chromium(Path(self._profile.name)), width, height, dark=dark)
        return self

    def __exit__(self, *_: object) -> None:
        self.browser.close()
        self._profile.cleanup()

    def go(self, address: str) -> None:
        """Go to an address."""
        self.ask("Page.navigate", url=address)

    @property
    def errors(self) -> list[str]:
        """Of its scripts, and what its policy forbade."""
        thrown = [json.dumps(told["exceptionDetails"]) for told in self.told("Runtime.exceptionThrown")]
        entries = [told["entry"] for told in self.told("Log.entryAdded")]
        return thrown + [entry["text"] for entry in entries if entry["level"] == "error"]

    def click_at(self, x: float, y: float) -> None:
        """Press the mouse at a place and let it go."""
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def wheel(self, x: float, y: float, by: float) -> None:
        """Turn the wheel."""
        self.ask("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by)

    def type_key(self, key: str) -> None:
        """Press a key that needs no code."""
        text = {"text": key} if len(key) == 1 else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key)
