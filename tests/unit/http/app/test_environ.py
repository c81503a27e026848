"""The part of an environ that is copied for each request."""

import sys
from types import SimpleNamespace
from typing import Any

from forkserve.http.app.environ import Environ, environ_template


def _template() -> Environ:
    settings = SimpleNamespace(root_path="", threads=0, workers=1)
    endpoints = SimpleNamespace(client=("127.0.0.1", 40000), server=("127.0.0.1", 8000), scheme="http")
    site: Any = SimpleNamespace(settings=settings)
    ends: Any = endpoints
    return environ_template(site, ends, "1.1")


def test_copy_has_room_for_usual_fields() -> None:
    """A dict that grows costs more than the copy."""
    environ = _template().copy()
    size = sys.getsizeof(environ)
    environ.update((f"HTTP_FIELD_{number}", "value") for number in range(16))
    assert sys.getsizeof(environ) == size


def test_template_holds_nothing_but_the_environ() -> None:
    """What makes the room is gone again."""
    foreign = [key for key in _template() if not (key.isupper() or key.startswith("wsgi."))]
    assert foreign == []
