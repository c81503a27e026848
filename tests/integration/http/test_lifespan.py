"""A lifespan that ends too early, or does not start, is logged.

The lifespan may raise in three places: before the application receives a message or in its startup (mode `auto` and `on`),
after the startup, and in its shutdown.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.http.harness import serving

APPS = "tests.integration.http.lifespan_apps"


def test_a_lifespan_that_dies_is_logged_once(tmp_path: Path) -> None:
    with serving(f"{APPS}:dies", tmp_path, faults=True) as server:
        server.wait_for_log("LookupError: the broker is gone")
        assert server.get().status == 200

    assert server.log.count("the application's lifespan has died after start-up: it will not be shut down") == 1
    assert server.log.count("LookupError: the broker is gone") == 1
    assert "Traceback" in server.log


@pytest.mark.parametrize(("app", "error"), [("wrapped", "KeyError: 'headers'"), ("broken_start", "AssertionError: no database")])
def test_a_skipped_startup_is_logged_as_one_warning(tmp_path: Path, app: str, error: str) -> None:
    with serving(f"{APPS}:{app}", tmp_path) as server:
        assert server.get().status == 200

    (line,) = [line for line in server.log.splitlines() if "[WARNING]" in line]
    assert f"the application runs without its start-up and shutdown (lifespan), which raised {error}; --lifespan on " in line
    assert "Traceback" not in server.log


@pytest.mark.parametrize("app", ["asserting", *(pytest.param(one, marks=pytest.mark.heavy) for one in ("refusing", "returns"))])
def test_an_app_without_lifespan_logs_nothing(tmp_path: Path, app: str) -> None:
    with serving(f"{APPS}:{app}", tmp_path) as server:
        assert server.get().status == 200

    assert not any(word in server.log for word in ("without lifespan", "[WARNING]", "[ERROR]"))


@pytest.mark.heavy
@pytest.mark.parametrize("app", ["wrapped", "broken_start"])
def test_lifespan_off_silences_the_warning(tmp_path: Path, app: str) -> None:
    with serving(f"{APPS}:{app}", tmp_path, lifespan="off") as server:
        assert server.get().status == 200

    assert "[WARNING]" not in server.log
