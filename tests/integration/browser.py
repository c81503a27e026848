"""Chromium without a window, driven over its debugging port (Chrome DevTools Protocol)."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.integration.command import DEADLINE, eventually

WORDS = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0"),
)


class Browser:
    """A browser that shows one page; a context manager.

    Args:
        url: The page.
        profile: A directory for the browser.
        size: Of the window.
    """

    def __init__(self, url: str, profile: Path, size: tuple[int, int] = (900, 700)) -> None:
        self._words = [*WORDS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", url]
        self._port = profile / "DevToolsActivePort"
        self._url = url
        self._numbers = itertools.count(1)
        self._page: ClientConnection | None = None
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start the browser."""
        self._process = subprocess.Popen(
            self._words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Kill the browser, with all its processes."""
        self._opened.close()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        if self._page is None:
            self._page = self._opened.enter_context(connect(eventually(self._find_page, "the page"), max_size=None, proxy=None))
        page = self._page
        number = next(self._numbers)
        page.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(page.recv(DEADLINE))
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def _find_page(self) -> str | None:
        with contextlib.suppress(OSError, httpx.HTTPError):
            port = self._port.read_text().split("\n")[0]
            for one in httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json():
                if one["type"] == "page" and one["url"] == self._url:
                    return str(one["webSocketDebuggerUrl"])
        return None

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, in the page."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until the value of an expression is true, and return it."""
        return eventually(lambda: self.evaluate(expression), lambda: f"{expression}: {self.evaluate('document.body.innerText')}")

    def screenshot(self) -> bytes:
        """Return the window as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
