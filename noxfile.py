"""Sessions in fresh environments: `nox -s tests-3.13`, `nox -s lint`, `nox -s docs`. A missing Python is skipped."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests", "lint", "docs"]


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Run the usual tests, or those that the arguments name."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types and layers."""
    session.install("-e", ".[test,dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site; arguments such as `serve` are given to mkdocs."""
    session.install("-e", ".[docs]")
    session.run("python", "docs/generate.py")
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))
