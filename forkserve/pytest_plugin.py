"""The plugin for pytest: the fixture `forkserve_server`. It imports the server when a test uses the fixture."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def forkserve_server() -> Iterator[Callable[..., str]]:
    """Serve apps until the test ends: call the value like `forkserve.testing.serve`; it returns the URL."""
    from forkserve import testing  # noqa: PLC0415 - see above

    with contextlib.ExitStack() as stack:
        yield lambda app, **settings: stack.enter_context(testing.serve(app, **settings))
