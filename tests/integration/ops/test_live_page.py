"""The live page of --admin in Chromium: what it shows, in which windows, and that it goes on after every break."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.integration.browser import Browser
from tests.integration.client import Client, EndedError
from tests.integration.command import Command, children, eventually, title
from tests.integration.conftest import Start
from tests.ports import free_ports

APP = """
import os, random, time
from pathlib import Path

HERE = Path(__file__).parent

def hold(name):
    while (HERE / name).exists():
        time.sleep(0.01)

hold("hold" + os.environ["FORKSERVE_WORKER_ID"])
if (HERE / "broken").exists():
    raise LookupError("the table `orders` is missing")

def app(environ, start_response):
    path = environ["PATH_INFO"]
    time.sleep(random.expovariate(250))
    if path.startswith("/reports"):
        hold("report")
    failed = (HERE / "failing").exists() and path.startswith(("/orders", "/cart"))
    start_response("500 Internal Server Error" if failed else "404 Not Found" if path == "/old" else "200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]
"""
WATCH = """
    window.faults = [];
    document.addEventListener('securitypolicyviolation', (event) => faults.push(event.violatedDirective + ' ' + event.blockedURI));
    window.addEventListener('error', (event) => faults.push(event.message));
"""
WIDE, NARROW = (1280, 860), (360, 740)


class Page:
    """A server with three workers, one port each, a load on it, and the live page in a browser."""

    def __init__(self, start: Start, directory: Path, size: tuple[int, int], *options: object) -> None:
        self.directory = directory
        (directory / "shop.py").write_text(APP)
        first = free_ports(4)
        self.ports, self.admin = range(first, first + 3), first + 3
        words = ("shop:app", "--workers", 3, "--base-port", first, "--name", "shop", "--admin", f"127.0.0.1:{self.admin}")
        self.command: Command = start(*words, *options, cwd=directory)
        self.command.wait_for("^Ready: ")
        self.browser = Browser(f"http://127.0.0.1:{self.admin}/livez", directory / "browser", size)
        self._ended = threading.Event()
        self._clients = [threading.Thread(target=self._send, args=(port,)) for port in self.ports]

    def __enter__(self) -> Self:
        self.browser.__enter__()
        self.until("document.readyState === 'complete'")
        self.browser.call("Page.enable")
        self.browser.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        self.browser.call("Page.navigate", url=f"http://127.0.0.1:{self.admin}/")
        self.until("document.readyState === 'complete' && window.faults && !!shown")
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._ended.set()
        for name in ("hold1", "hold2", "hold3", "report"):
            (self.directory / name).unlink(missing_ok=True)
        for client in self._clients:
            client.join()
        try:
            if kind is None:
                assert self.value("faults") == []
                loaded = self.value("performance.getEntriesByType('resource').map((one) => one.name)")
                assert {one for one in loaded if not one.startswith(f"http://127.0.0.1:{self.admin}/")} == set()
        finally:
            self.browser.__exit__(None, None, None)

    def _send(self, port: int) -> None:
        """Send requests to one worker, about 20 a second."""
        chance = random.Random(port)
        while not self._ended.wait(chance.expovariate(20)):
            with contextlib.suppress(OSError, EndedError, AssertionError), Client(port) as client:
                client.get(chance.choice(["/", "/orders/17", "/orders/4711", "/old", "/cart"]))

    def until(self, expression: str) -> Any:
        return self.browser.until(expression)

    def value(self, expression: str) -> Any:
        return self.browser.evaluate(expression)

    def has(self, selector: str, text: str) -> Any:
        """Wait until the visible text of an element contains a text."""
        return self.until(f"document.querySelector({json.dumps(selector)})?.innerText.includes({json.dumps(text)})")

    def write(self, name: str) -> None:
        """Tell the app something: `hold1` holds worker 1's import, `report` holds /reports, `failing` fails, `broken` breaks the import."""
        (self.directory / name).touch()

    def erase(self, name: str) -> None:
        (self.directory / name).unlink()

    def ask(self, path: str) -> threading.Thread:
        """Send a request to worker 2 that waits as long as there is the file `report`."""

        def send() -> None:
            with contextlib.suppress(OSError, EndedError, AssertionError), Client(self.ports[1]) as client:
                client.get(path)

        thread = threading.Thread(target=send)
        thread.start()
        return thread

    def press(self, key: str, code: int) -> None:
        """Press a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)
            if kind == "rawKeyDown" and key == "Enter":
                self.browser.call("Input.dispatchKeyEvent", type="char", text="\r")

    def dark(self) -> None:
        self.browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])

    def overflow(self) -> Any:
        """By how many pixels the page is wider than the window."""
        return self.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def collect(self, samples: int = 40) -> None:
        """Wait until the plots of a picture show something."""
        if "FORKSERVE_SCREENSHOTS" in os.environ:
            self.until(f"samples.length >= {samples}")

    def picture(self, name: str) -> None:
        """Save the window as a picture of the documentation, if FORKSERVE_SCREENSHOTS has its directory."""
        if folder := os.environ.get("FORKSERVE_SCREENSHOTS"):
            Path(folder, f"{name}.png").write_bytes(self.browser.screenshot())

    def admin_pid(self) -> int:
        return next(pid for pid in children(self.command.pid) if "admin" in title(pid))


@pytest.fixture
def show(start: Start, tmp_path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        yield lambda size=WIDE, *options: stack.enter_context(Page(start, tmp_path, size, *options))


def test_the_page_shows_the_server_and_its_traffic(show: Any) -> None:
    page = show()

    page.has("#name", "shop")
    page.has("#state", "running")
    page.has("#facts", "3 of 3")
    page.until("document.querySelectorAll('#workers tbody tr').length === 3")
    page.until("samples.at(-1).rate > 5 && samples.at(-1).p99 > 0 && samples.at(-1).busy > 0")
    page.until("document.querySelectorAll('.plot path.curve').length >= 5")
    page.has("#link", "live")
    page.has("#listeners", f"http://127.0.0.1:{page.ports[0]} (worker 1)")


@pytest.mark.heavy
def test_a_reload_as_it_rolls_and_one_that_fails(show: Any) -> None:
    page = show()
    page.collect()
    page.write("hold2")
    page.command.process.send_signal(signal.SIGHUP)

    page.has("#state", "reloading")
    page.has("#reload-text", "Generation 2: 1 of 3 workers replaced")
    page.has("#roll li:nth-child(1)", "gen 2 ● ready")
    page.has("#roll li:nth-child(2)", "gen 1 ● ready")
    page.has("#roll li:nth-child(2)", "gen 2 ◌ booting")
    page.has("#roll li:nth-child(3)", "waits")
    assert page.value("document.querySelector('#reload progress').position") == pytest.approx(1 / 3)
    assert page.value("document.querySelectorAll('#workers tbody tr').length") == 4
    page.picture("live-page-reload")

    page.erase("hold2")
    page.has("#restarts", "✓ generation 2")
    page.until("!document.querySelector('#reload').checkVisibility()")

    page.write("broken")
    page.command.traceback_expected = True
    page.command.process.send_signal(signal.SIGHUP)
    page.has("#reload-text", "✕ Generation 3 failed")
    page.has("#reload-text", "generation 2 goes on serving")
    page.has("#reload-error", "the table `orders` is missing")
    page.has("#said", "The reload failed.")


@pytest.mark.heavy
def test_a_stuck_worker_with_its_request_and_its_stack(show: Any) -> None:
    page = show()
    page.collect()
    page.write("report")
    request = page.ask("/reports/2026?token=secret")

    page.has("#stuck", "Worker 2 is stuck")
    page.has("#stuck", "in GET /reports/2026")
    page.has("#workers tr.stuck", "▲ stuck (ready)")
    page.has("#workers tr.why", "in GET /reports/2026")
    page.has("#hand tr.stuck", "/reports/2026")
    page.until("shown.workers[1].oldest_request_s > 3")
    assert "secret" not in page.value("document.documentElement.outerHTML")
    page.picture("live-page-stuck")

    page.value("document.querySelector('#ask').focus()")
    page.press("Enter", 13)
    page.has("#stacks-text", "hold")
    page.press("Escape", 27)
    page.until("!document.querySelector('#stacks').open && document.activeElement.id === 'ask'")

    page.erase("report")
    request.join()
    page.until("!document.querySelector('#stuck').checkVisibility()")
    page.has("#said", "No worker is stuck.")


@pytest.mark.heavy
def test_what_clients_and_the_app_write_is_shown_as_text(show: Any) -> None:
    hostile = "<img/src=x/onerror=faults.push(1)>"
    name = "<img src=x onerror=faults.push(0)>"
    page = show(WIDE, "--name", name)
    page.has("#name", name)
    page.write("report")
    request = page.ask(f"/reports/{hostile}</script><script>faults.push(2)</script>")
    page.has("#stuck", hostile)
    page.has("#hand tr.stuck", hostile)
    page.value("document.querySelector('#ask').click()")
    page.has("#stacks-text", hostile)
    page.value("document.querySelector('#close').click()")
    page.erase("report")
    request.join()

    (page.directory / "shop.py").write_text(f"raise LookupError({hostile!r})")
    page.command.traceback_expected = True
    page.command.process.send_signal(signal.SIGHUP)
    page.has("#reload-error", hostile)
    assert page.value("document.querySelectorAll('img, script').length") == 1


@pytest.mark.heavy
def test_a_burst_of_errors_in_dark_mode(show: Any) -> None:
    page = show()
    page.dark()
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 22)"
    page.until("samples.length > 2 && samples.at(-1).rate > 5")
    assert page.value("samples.every((one) => !(one.errors > 0))")
    page.collect()

    page.write("failing")
    page.until("samples.filter((one) => one.errors > 3).length >= 2")
    page.collect(48)
    page.has(".plot .legend .bad", "/s")
    page.until("document.querySelectorAll('#workers td[data-label=\"5xx\"] .bad').length > 0")
    page.picture("live-page-errors")
    page.erase("failing")
    page.until("samples.at(-1).errors === 0")


@pytest.mark.heavy
def test_a_narrow_window(show: Any) -> None:
    page = show(NARROW)
    page.browser.call("Emulation.setDeviceMetricsOverride", width=NARROW[0], height=NARROW[1], deviceScaleFactor=1, mobile=False)
    page.write("report")
    request = page.ask("/reports/" + "a-very-long-name/" * 20)
    page.has("#workers tr.why", "a-very-long-name")

    assert page.value("innerWidth") == NARROW[0]
    assert page.overflow() == 0
    assert page.value("getComputedStyle(document.querySelector('#workers tbody tr')).display") == "grid"
    page.value("document.querySelector('#ask').click()")
    page.has("#stacks-text", "hold")
    assert page.overflow() == 0
    page.value("document.querySelector('#close').click()")
    page.picture("live-page-narrow")
    page.erase("report")
    request.join()


@pytest.mark.heavy
def test_by_keyboard(show: Any) -> None:
    page = show()
    seen = []
    for _ in range(40):
        page.press("Tab", 9)
        seen.append(page.value("document.activeElement.textContent || document.activeElement.getAttribute('aria-label')"))
        outline = page.value("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid" or seen[-1] is None or page.value("document.activeElement === document.body"), seen[-1]
        if seen[-1] == "Busy":
            break
    page.press("Enter", 13)
    page.until("document.querySelector('th[aria-sort]').textContent === 'Busy'")
    assert page.value("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"
    page.press("Enter", 13)
    assert page.value("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "ascending"

    # The plots are read with the arrow keys.
    page.until("samples.length >= 4")
    page.value("document.querySelector('.plot svg[role=slider]').focus()")
    now = page.value("document.activeElement.getAttribute('aria-valuenow')")
    for _ in range(3):
        page.press("ArrowLeft", 37)
    page.until("Number(document.activeElement.getAttribute('aria-valuenow')) <= -2")
    assert now == "0"
    assert "5xx" in page.value("document.activeElement.getAttribute('aria-valuetext')")


@pytest.mark.heavy
def test_the_page_goes_on_after_the_admin_process_was_killed(show: Any) -> None:
    page = show()
    page.until("samples.length >= 2")
    first = page.admin_pid()
    os.kill(first, signal.SIGSTOP)  # the connection stays open, and brings nothing
    page.has("#lost", "Not connected, trying again; the last data is of ")
    page.has("#link", "not live")
    assert page.value("getComputedStyle(document.querySelector('main')).opacity") == "0.5"
    os.kill(first, signal.SIGKILL)

    page.until("!document.querySelector('#lost').checkVisibility()")
    page.has("#link", "live")
    page.has("#said", "Connected again.")
    eventually(lambda: page.admin_pid() != first)
    count = page.value("samples.length")
    page.until(f"samples.length > {count}")


@pytest.mark.heavy
def test_the_page_goes_on_after_an_upgrade(show: Any) -> None:
    page = show()
    page.until("samples.length >= 2")
    first = page.admin_pid()
    page.command.process.send_signal(signal.SIGUSR2)

    eventually(lambda: [pid for pid in children(page.command.pid) if "admin" in title(pid) and pid != first])
    count = page.value("samples.length")
    page.until(f"samples.length > {count + 2} && !document.querySelector('#lost').checkVisibility()")
    page.until("samples.at(-1).rate > 1")


@pytest.mark.heavy
def test_a_master_that_is_silent(show: Any) -> None:
    page = show()
    os.kill(page.command.pid, signal.SIGSTOP)
    try:
        page.has("#lost", "Connected, but the master does not answer")
    finally:
        os.kill(page.command.pid, signal.SIGCONT)
    page.until("!document.querySelector('#lost').checkVisibility()")
