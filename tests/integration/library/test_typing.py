"""The types of the library, in a program of a user."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.command import DEADLINE, ROOT, environment

PROGRAM = """
import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from django.core.handlers.wsgi import WSGIHandler
from fastapi import FastAPI
from flask import Flask

import forkserve
from forkserve import Server, testing


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    return []


async def main(app: FastAPI) -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(Server(app, port=0).serve(ready=ready.set_result))
    print((await ready).upper())
    task.cancel()


def test_it(forkserve_server: Callable[..., str]) -> None:
    with testing.serve(Flask(__name__), threads=2) as url, forkserve.testing.serve("main:app") as other:
        print(url.upper() + other, forkserve_server(app))


def serve(django: WSGIHandler) -> int:
    return Server(django, workers=2).run()


if __name__ == "__main__":
    forkserve.run("main:app", host="0.0.0.0", port=8000, reload=True, log_level="info")
    forkserve.run(Flask(__name__), workers=2)
"""
WRONG = """
import forkserve

forkserve.run(5)
with forkserve.testing.serve("main:app") as url:
    url + 1
"""


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_a_strict_type_checker_accepts_the_library_and_finds_mistakes(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(WRONG)
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--allow-untyped-calls", "--ignore-missing-imports", "main.py", "wrong.py"],
        cwd=tmp_path,
        env=environment({"MYPYPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        timeout=DEADLINE * 8,
        check=False,
    )

    assert [line.partition(": ")[0] for line in ended.stdout.splitlines()] == [
        "wrong.py:4",
        "wrong.py:6",
        "Found 2 errors in 1 file (checked 2 source files)",
    ], ended.stdout
