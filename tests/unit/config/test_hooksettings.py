"""`cfg` of hooks has every setting of gunicorn."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import gunicorn.config
import pytest

from forkserve.cli.options import parse
from forkserve.config import load as config
from forkserve.config.hooksettings import OTHERS, HookSettings

SETTINGS = [
    one
    for one in gunicorn.config.KNOWN_SETTINGS
    if one.name in OTHERS and one.name not in ("worker_class", "ssl_version") and not callable(one.default)
]


def cfg(**keywords: object) -> HookSettings:
    return HookSettings(config.from_keywords(app="shop.main:app", **keywords).settings)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda one: str(one.name))
def test_a_setting_that_only_gunicorn_has_has_its_default(setting: gunicorn.config.Setting) -> None:
    found = getattr(cfg(), setting.name)

    assert found == setting.default or setting.name == "proc_name"
    assert cfg().settings[setting.name].get() == found


def test_a_setting_with_another_name_and_meaning_here_has_our_value() -> None:
    shown = cfg(name="shop", http="h11", lifespan="off", control_socket="none", worker_class="gthread", threads=4)

    assert (shown.proc_name, shown.http_parser, shown.asgi_lifespan, shown.control_socket_disable) == ("shop", "h11", "off", True)
    assert (shown.worker_class, shown.threads, shown.worker_connections) == ("gthread", 4, 1000)


def test_a_setting_without_effect_shows_what_was_given(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("statsd_host = 'localhost:8125'\nreuse_port = True\nworker_connections = 50\n")
    line = parse(["shop.main:app", "--statsd-prefix", "shop", "--worker-connections", "70"])
    shown = HookSettings(config.load_config(line, environ={}, directory=str(tmp_path)).settings)

    assert (shown.statsd_host, shown.statsd_prefix, shown.reuse_port, shown.worker_connections) == (
        "localhost:8125",
        "shop",
        True,
        70,
    )
    assert shown.settings["statsd_host"].value == "localhost:8125"
    assert shown.dogstatsd_tags == ""


def test_addresses_account_and_variables_are_as_in_gunicorn() -> None:
    shown = cfg(bind=["127.0.0.1:81", "[::1]:82", "unix:/run/x", "fd://3"], raw_env=["A=1", "B=x=y"])

    assert shown.address == [("127.0.0.1", 81), ("::1", 82), "/run/x", 3]
    assert (shown.env, shown.raw_env) == ({"A": "1", "B": "x=y"}, ["A=1", "B=x=y"])
    assert (shown.uid, shown.gid) == (os.geteuid(), os.getegid())


def test_the_account_of_workers_is_shown_by_number() -> None:
    """Only root can name another user."""
    named = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    shown = cfg(user=named.pw_name)

    assert (shown.uid, shown.gid, shown.user) == (named.pw_uid, named.pw_gid, named.pw_name)


def test_an_unknown_name_is_an_attribute_error_with_the_nearest_one() -> None:
    with pytest.raises(AttributeError, match=r"no setting 'proc_nam' \(did you mean 'proc_name'\?\)"):
        cfg().proc_nam  # noqa: B018


def test_a_secret_is_not_part_of_the_text(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()

    assert "keyfile='" in repr(cfg(keyfile=str(key), certfile=str(key), keyfile_password="kept"))
    assert "kept" not in repr(cfg(keyfile=str(key), certfile=str(key), keyfile_password="kept"))
