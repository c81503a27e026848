"""Names and limits of processes."""

from __future__ import annotations

from forkserve.config.settings import Settings
from forkserve.prefork.policy.states import MOLD, pool_limits, process_name


def test_a_process_is_named_after_its_slot() -> None:
    assert [process_name(slot) for slot in (MOLD, 1)] == ["mold", "worker 1"]


def test_pool_limits_come_from_the_settings() -> None:
    limits = pool_limits(Settings(app="a:b", timeout=7, boot_timeout=8, graceful_timeout=9, reload_surge=3))
    assert (limits.boot, limits.beat, limits.graceful, limits.surge) == (8, 7, 9, 3)
