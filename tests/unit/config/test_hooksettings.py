"""`cfg` of hooks has every setting of gunicorn."""

from __future__ import annotations

import gunicorn.config
import pytest

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


def test_an_unknown_name_is_an_attribute_error_with_the_nearest_one() -> None:
    with pytest.raises(AttributeError, match=r"no setting 'proc_nam' \(did you mean 'proc_name'\?\)"):
        cfg().proc_nam  # noqa: B018
