"""The fixture of consoles."""

from tests.integration.console import console

__all__ = ["console"]
