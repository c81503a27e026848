"""Fixtures: the command as a process, certificates."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from forkserve.pytest_plugin import forkserve_server  # noqa: F401 - also where this version is not installed
from tests.integration.certificates import Authority
from tests.integration.command import Command, Process

Start = Callable[..., Command]
FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record whether the test has failed, and show the output of its servers if it has."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    if report.failed:
        report.sections += [(f"stderr of {shlex.join(map(str, one.words))}", one.stderr) for one in Process.shown]
    if call.when == "teardown":
        Process.shown[:] = [one for one in Process.shown if one.process.poll() is None]
    return report


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start the command; commands that still run at the end of a passed test are stopped, and must stop cleanly."""
    commands: list[Command] = []

    def begin(*arguments: object, **options: object) -> Command:
        commands.append(Command(arguments, tmp_path, **options))  # type: ignore[arg-type]
        return commands[-1]

    try:
        yield begin
        for command in commands:
            if command.process.poll() is None and not request.node.stash[FAILED]:
                command.stop()
    finally:
        for command in commands:
            command.close()


@pytest.fixture
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A user's directory with an app in `site_app`: the constant APP of the test's module."""
    (tmp_path / "site_app.py").write_text(request.module.APP)
    return tmp_path


@pytest.fixture
def serve(start: Start) -> Start:
    """Start the command and wait until it is ready."""
    return lambda *arguments, **options: start(*arguments, **options).ready()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Certificates."""
    return Authority(tmp_path_factory.mktemp("tls"))
