"""Writer: the interface of the modules that write the configuration of one front end. Pure."""

from typing import Protocol

from forkserve.frontend.config import FrontendConfig


class Writer(Protocol):
    """A module of this package: nginx, haproxy or caddy."""

    def render(self, front: FrontendConfig) -> str:
        """Return a whole configuration. Raises ValueError for what this front end cannot do."""

    def render_upstream(self, front: FrontendConfig) -> str:
        """Return only the part that names the workers, to be included. Raises ValueError."""
