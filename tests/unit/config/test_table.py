"""Settings that a reload can change."""

from __future__ import annotations

from forkserve.config.settings import Settings
from forkserve.config.table import merge, unchangeable


def test_a_reload_keeps_unchangeable_settings() -> None:
    before, fresh = Settings(app="a:b", bind=("h:1",), keep_alive=5), Settings(app="a:b", bind=("h:2",), keep_alive=9)

    assert unchangeable(before, fresh) == ["bind"]
    merged = merge(before, fresh)
    assert (merged.bind, merged.keep_alive) == (("h:1",), 9)
    assert unchangeable(before, merged) == []


def test_a_reload_never_turns_tracebacks_on() -> None:
    off, on = Settings(), Settings(debug=True, shows_tracebacks=True)

    assert not merge(off, on).shows_tracebacks
    assert not merge(on, Settings(user="www-data")).shows_tracebacks
    assert merge(on, on).shows_tracebacks
