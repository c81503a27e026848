"""Stacks without the frames of forkserve."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

import forkserve
from forkserve.base.stacktext import is_own, trim

OWN = Path(forkserve.__file__).parent
PLACES = {
    "app": "/srv/shop/views.py",
    "other": "/venv/lib/python3.11/site-packages/flask/app.py",
    "own": f"{OWN}/http/app/wsgi.py",
    "lib": asyncio.__file__,
    "script": "/venv/bin/forkserve",
    "frozen": "<frozen runpy>",
}


def frame(word: str) -> str:
    kind, _, name = word.partition(":")
    return f'  File "{PLACES[kind]}", line 7 in {name or ("<module>" if kind == "script" else "f")}'


@pytest.mark.parametrize(
    ("frames", "left"),
    [
        ("app other own lib own script", "app other"),
        ("app own own lib frozen", "app"),
        ("lib app own lib", "lib app"),
        ("own own:receive app own", "own:receive app"),
        ("own lib own:receive app own", "own:receive app"),
        ("app own own app own", "app app"),
        ("app own lib own app own", "app app"),
        ("app lib own app own", "app lib app"),
        ("app own lib app lib", "app lib app"),
        ("lib lib", "lib lib"),
        ("app lib script", "app lib script"),
    ],
)
def test_frames_of_forkserve_are_left_out(frames: str, left: str) -> None:
    head = "Thread 0x1 (MainThread, most recent call first):"
    lines = trim("\n".join([head, *map(frame, frames.split())])).split("\n")
    gone = len(frames.split()) - len(left.split())
    assert lines[0] == head
    assert lines[1 : 1 + len(left.split())] == [*map(frame, left.split())]
    assert lines[1 + len(left.split()) :] == ([f"({gone} frame{'s' * (gone != 1)} of forkserve left out)"] if gone else [])


def test_a_thread_of_forkserve_has_one_line() -> None:
    assert trim("\n".join(["Thread 0x1:", *map(frame, ["lib", "own:wait", "own", "script"])])) == (
        f"Thread 0x1:\n{frame('own:wait')}  (forkserve)\n(3 frames of forkserve left out)"
    )


def test_other_text_stays() -> None:
    text = "no answer: it is stuck\n\nCurrent thread 0x1 (most recent call first):\n  <no Python frame>\n  ...\n"
    assert trim(text) == text


def test_each_thread_is_trimmed_by_itself() -> None:
    text = "\n".join(["Thread 1:", frame("app"), frame("own"), "", "Thread 2:", frame("lib"), frame("own:wait")])
    assert trim(text).split("\n") == [
        *("Thread 1:", frame("app"), "", "Thread 2:", frame("own:wait") + "  (forkserve)"),
        "(2 frames of forkserve left out)",
    ]


def test_a_chain_without_the_app_is_ours() -> None:
    assert is_own([PLACES["own"], os.__file__])
    assert not is_own([PLACES["own"], PLACES["other"]])
