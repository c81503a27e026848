"""What a program of the user's own may read of its server, before it runs."""

from __future__ import annotations

from forkserve import Server


def test_a_program_reads_what_its_server_is() -> None:
    server = Server("site_app:app", workers=3)

    assert server.settings.workers == 3
    assert server.name == "site_app"
    assert server.pid == 0


def test_the_name_may_be_set() -> None:
    assert Server("site_app:app", name="shop").name == "shop"
