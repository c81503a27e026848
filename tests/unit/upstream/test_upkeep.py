"""When a front end is told anew, from values alone; and what the process that tells it says of a missing nginx."""

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
    """Slots from 1 on: `+` is up, `-` down; a `*` is the shared address."""
    backends = [
        Backend(parse_address(f"127.0.0.1:{9000 + i}"), None if mark == "*" else i, mark == "-") for i, mark in enumerate(text, 1)
    ]
    return FrontendConfig(name="shop", settings=settings, backends=tuple(backends), live=True)


def told(text: str) -> Upkeep:
    """A front end that was told this at time 0."""
    upkeep = Upkeep()
    upkeep.changed(front(text), 0.0)
    assert upkeep.due == 0.0, "the first time there is nothing to wait for"
    upkeep.begin()
    upkeep.ended(0.0, failed=False)
    return upkeep


def test_the_first_change_of_a_swarm_sets_the_time() -> None:
    upkeep = told("+")
    for now, text in ((1.0, "++"), (1.05, "+++"), (1.09, "++++")):
        upkeep.changed(front(text), now)

    assert upkeep.due == 1.0 + DEBOUNCE
    assert upkeep.begin() == front("++++")
    assert upkeep.due is None


@pytest.mark.parametrize("text", ["++", "++-", "++--"])
def test_what_was_down_and_goes_is_no_news(text: str) -> None:
    upkeep = told("++-")
    upkeep.changed(front(text), 1.0)

    assert upkeep.due is None


def test_what_is_as_before_when_the_time_comes_is_no_news() -> None:
    upkeep = told("++")
    upkeep.changed(front("+-"), 1.0)
    upkeep.changed(front("++"), 1.05)

    assert upkeep.due is None


def test_what_changes_during_a_run_is_one_more() -> None:
    upkeep = told("+")
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


def test_other_settings_are_news_but_not_the_same_read_again() -> None:
    upkeep = told("+")
    upkeep.changed(front("+", config.from_keywords(app="shop:app", base_port=9000).settings), 1.0)
    assert upkeep.due is None
    upkeep.changed(front("+", config.from_keywords(app="shop:app", base_port=9000, keep_alive=9).settings), 2.0)
    assert upkeep.due == 2.0 + DEBOUNCE


def test_a_run_that_failed_is_tried_again_and_at_once_when_something_changes() -> None:
    upkeep = told("+")
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


def test_a_slot_is_advertised_until_the_run_that_takes_it_away_has_ended() -> None:
    upkeep = told("++")
    assert upkeep.advertised == {1, 2}
    upkeep.changed(front("+-+"), 1.0)
    assert upkeep.advertised == {1, 2}
    upkeep.begin()
    assert upkeep.advertised == {1, 2, 3}
    upkeep.ended(2.0, failed=False)
    assert upkeep.advertised == {1, 3}


@pytest.mark.parametrize("failed", [False, True])
def test_a_front_end_that_cannot_be_updated_holds_no_worker(failed: bool) -> None:  # noqa: FBT001 - a parameter
    upkeep = told("*")
    assert upkeep.advertised == {None}
    upkeep.changed(front("-"), 1.0)
    upkeep.begin()
    upkeep.ended(2.0, failed=failed)

    assert upkeep.advertised == set()


def test_a_single_server_that_is_down_is_down_in_both_of_its_lines() -> None:
    text = render_upstream(front("-"))

    assert text.count("server 127.0.0.1:9001 max_fails=0 down;") == 2
    assert "Kept up to date" in text


def test_no_worker_is_doubted_for_the_load_may_not_have_called_for_it() -> None:
    settings = config.from_keywords(app="shop:app", base_port=9000, max_workers=4).settings

    assert "max_fails=1" not in render_upstream(front("++", settings))


def test_without_nginx_the_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "upstream.conf"
    path.write_text("as it was")
    monkeypatch.setattr(check, "SBIN", ())
    monkeypatch.setenv("PATH", str(tmp_path))

    said = refresh._write(str(path), render_upstream(front("++")))
    assert said == f"--nginx-upstream: {path} stays as it was: the program nginx is not installed"
    assert path.read_text() == "as it was"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("upstream a {\nserver\nbad host; }", 'invalid parameter "host" in upstream.conf:3'),
        ("upstream a { hash $one$two consistent; server 127.0.0.1:1; }", None),
        ("upstream a { zone a 64k; least_conn; server 127.0.0.1:1; keepalive 8; } # the end", None),
        ("upstream a { server 127.0.0.1:1;", "unexpected end of file, expecting"),
        ("upstream a { }", "no servers are inside upstream in upstream.conf:1"),
    ],
)
def test_nginx_itself_judges_the_file_and_nothing_is_written_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, complaint: str | None
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if complaint is None:
        trial.check_upstream(text)
    else:
        with pytest.raises(check.CheckError) as found:
            trial.check_upstream(text)
        assert f"nginx refuses the configuration: [emerg] {complaint}" in str(found.value)
    assert list(tmp_path.iterdir()) == []
