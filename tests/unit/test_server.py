"""Attributes of a server before it runs."""

from __future__ import annotations

from forkserve import Server


def test_a_server_has_its_settings_name_and_no_pid_before_it_runs() -> None:
    server = Server("site_app:app", workers=3)

    assert server.settings.workers == 3
    assert server.name == "site_app"
    assert server.pid == 0


def test_the_name_can_be_set() -> None:
    assert Server("site_app:app", name="shop").name == "shop"
