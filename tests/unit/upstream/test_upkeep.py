"""When a front end is updated, from values alone; and the errors of the process that updates it."""

import tempfile
from pathlib import Path

import pytest

from forkserve.config import load as config
from forkserve.config.addresses import parse_address
from forkserve.config.settings import Settings
from forkserve.frontend import check, trial
from forkserve.frontend.backends import Backend
from forkserve.frontend.config import FrontendConfig
from forkserve.frontend.nginx import render_upstream
from forkserve.upstream import refresh
from forkserve.upstream.upkeep import DEBOUNCE, RETRY, Upkeep

SETTINGS = config.from_keywords(app="shop:app", base_port=9000).settings


def front(text: str, settings: Settings = SETTINGS) -> FrontendConfig:
    """Return a configuration with one slot for each mark, from 1 on: `+` is up, `-` down; `*` is the shared address."""
    backends = [
        Backend(parse_address(f"127.0.0.1:{9000 + i}"), None if mark == "*" else i, mark == "-") for i, mark in enumerate(text, 1)
    ]
    return FrontendConfig(name="shop", settings=settings, backends=tuple(backends), live=True)


def updated_to(text: str) -> Upkeep:
    """Return the upkeep of a front end that was updated to these slots at time 0."""
    upkeep = Upkeep()
    upkeep.changed(front(text), 0.0)
    assert upkeep.due == 0.0, "the first update does not wait"
    upkeep.begin()
    upkeep.ended(0.0, failed=False)
    return upkeep


def test_the_first_of_several_changes_sets_the_time_of_the_update() -> None:
    upkeep = updated_to("+")
    for now, text in ((1.0, "++"), (1.05, "+++"), (1.09, "++++")):
        upkeep.changed(front(text), now)

    assert upkeep.due == 1.0 + DEBOUNCE
    assert upkeep.begin() == front("++++")
    assert upkeep.due is None


@pytest.mark.parametrize("text", ["++", "++-", "++--"])
def test_a_removed_slot_that_was_down_causes_no_update(text: str) -> None:
    upkeep = updated_to("++-")
    upkeep.changed(front(text), 1.0)

    assert upkeep.due is None


def test_a_change_that_is_undone_in_time_causes_no_update() -> None:
    upkeep = updated_to("++")
    upkeep.changed(front("+-"), 1.0)
    upkeep.changed(front("++"), 1.05)

    assert upkeep.due is None


def test_changes_during_an_update_cause_one_more_update() -> None:
    upkeep = updated_to("+")
    upkeep.changed(front("++"), 1.0)
    upkeep.begin()
    upkeep.changed(front("+++"), 1.2)
    upkeep.changed(front("+-+"), 1.4)
    assert upkeep.due is None
    upkeep.ended(1.5, failed=False)

    assert upkeep.due == pytest.approx(1.2 + DEBOUNCE)
    assert upkeep.begin() == front("+-+")
    upkeep.ended(1.6, failed=False)
    assert upkeep.due is None


def test_only_changed_settings_cause_an_update() -> None:
    upkeep = updated_to("+")
    upkeep.changed(front("+", config.from_keywords(app="shop:app", base_port=9000).settings), 1.0)
    assert upkeep.due is None
    upkeep.changed(front("+", config.from_keywords(app="shop:app", base_port=9000, keep_alive=9).settings), 2.0)
    assert upkeep.due == 2.0 + DEBOUNCE


def test_a_failed_update_is_retried_and_at_once_after_a_change() -> None:
    upkeep = updated_to("+")
    upkeep.changed(front("++"), 1.0)
    upkeep.begin()
    upkeep.ended(2.0, failed=True)
    assert upkeep.due == 2.0 + RETRY
    upkeep.changed(front("++"), 3.0)
    assert upkeep.due == 2.0 + RETRY
    upkeep.changed(front("++-"), 4.0)
    assert upkeep.due == 2.0 + RETRY
    upkeep.changed(front("+++"), 5.0)
    assert upkeep.due == 5.0 + DEBOUNCE

    upkeep.begin()
    upkeep.ended(6.0, failed=False)
    assert upkeep.due is None


def test_a_slot_is_advertised_until_the_update_that_removes_it_has_ended() -> None:
    upkeep = updated_to("++")
    assert upkeep.advertised == {1, 2}
    upkeep.changed(front("+-+"), 1.0)
    assert upkeep.advertised == {1, 2}
    upkeep.begin()
    assert upkeep.advertised == {1, 2, 3}
    upkeep.ended(2.0, failed=False)
    assert upkeep.advertised == {1, 3}


@pytest.mark.parametrize("failed", [False, True])
def test_a_failed_update_does_not_keep_a_worker_alive(failed: bool) -> None:  # noqa: FBT001 - a parameter
    upkeep = updated_to("*")
    assert upkeep.advertised == {None}
    upkeep.changed(front("-"), 1.0)
    upkeep.begin()
    upkeep.ended(2.0, failed=failed)

    assert upkeep.advertised == set()


def test_a_single_server_that_is_down_is_marked_in_both_of_its_lines() -> None:
    text = render_upstream(front("-"))

    assert text.count("server 127.0.0.1:9001 max_fails=0 down;") == 2
    assert "Kept up to date" in text


def test_workers_of_an_autoscaled_server_have_no_max_fails() -> None:
    settings = config.from_keywords(app="shop:app", base_port=9000, max_workers=4).settings

    assert "max_fails=1" not in render_upstream(front("++", settings))


def test_without_nginx_the_upstream_file_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "upstream.conf"
    path.write_text("as it was")
    monkeypatch.setattr(check, "SBIN", ())
    monkeypatch.setenv("PATH", str(tmp_path))

    error = refresh._write(str(path), render_upstream(front("++")))
    assert error == f"--nginx-upstream: {path} stays as it was: the program nginx is not installed"
    assert path.read_text() == "as it was"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("upstream a {\nserver\nbad host; }", 'invalid parameter "host" in upstream.conf:3'),
        ("upstream a { hash $one$two consistent; server 127.0.0.1:1; }", None),
        ("upstream a { zone a 64k; least_conn; server 127.0.0.1:1; keepalive 8; } # the end", None),
        ("upstream a { server 127.0.0.1:1;", "unexpected end of file, expecting"),
        ("upstream a { }", "no servers are inside upstream in upstream.conf:1"),
    ],
)
def test_nginx_checks_an_upstream_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str | None
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if message is None:
        trial.check_upstream(text)
    else:
        with pytest.raises(check.CheckError) as found:
            trial.check_upstream(text)
        assert f"nginx refuses the configuration: [emerg] {message}" in str(found.value)
    assert list(tmp_path.iterdir()) == []


def test_a_front_end_is_in_step_when_its_last_update_has_succeeded() -> None:
    upkeep = updated_to("++")
    assert upkeep.in_step
    upkeep.changed(front("+-"), 1.0)
    assert not upkeep.in_step, "an update is due"
    upkeep.begin()
    assert not upkeep.in_step, "it runs"
    upkeep.ended(1.0, failed=True)
    assert not upkeep.in_step
    upkeep.begin()
    upkeep.ended(2.0, failed=False)
    assert upkeep.in_step
