"""`Worker.before_fork`: a user's worker class creates a value in the master, once for each generation."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.site import Site

APP = """
import os
from forkserve import Worker

class Own(Worker):
    INHERITED_FROM = ("keep_alive",)

    @classmethod
    def before_fork(cls, settings, last):
        if os.path.exists("broken"):
            raise RuntimeError("cannot be made") if settings.keep_alive else SystemExit("cannot be made")
        return {"pid": os.getpid(), "made": (last or {}).get("made", 0) + 1, "of": settings.keep_alive}

    def run(self):
        while self.alive():
            self.wait()

    def child_inherited(self):
        return self.context.inherited
"""


@pytest.mark.parametrize(
    ("mode", "says"), [((), "RuntimeError: cannot"), (("--preload",), "RuntimeError: cannot"), ((), "sys.exit('cannot")]
)
def test_before_fork_runs_once_per_generation_or_changes_nothing(
    start: Start, tmp_path: Path, mode: tuple[str, ...], says: str
) -> None:
    options = ("--worker", "app:Own", "-w", 2, "--reload-settle", 0, *mode)
    setting = 0 if "exit" in says else 1
    site = Site(start, tmp_path, *options, code=APP, files={"forkserve.toml": f"keep_alive = {setting}\n"})

    def inherited() -> list[object]:
        return [reply["value"] for reply in site.call("inherited")]

    first = {"pid": site.command.pid, "made": 1, "of": setting}
    assert inherited() == [first] * 2
    assert site.ask("reload")["ok"]
    second = first | {"made": 2}
    assert inherited() == [second] * 2

    broken = site.home / "broken"
    broken.touch()
    site.command.traceback_expected = setting == 1
    before = site.workers()
    assert says in site.ask("reload")["error"]["message"]
    pids = [pid for _, pid, _, _ in before]
    os.kill(pids[0], signal.SIGKILL)
    eventually(lambda: len(site.pids()) == 2 and pids[0] not in site.pids(), site.rows)
    assert inherited() == [second] * 2

    broken.unlink()
    site.save("keep_alive = 2\n", "forkserve.toml")
    assert site.ask("reload")["ok"]
    if not mode:  # a mold creates its own value for all of its workers
        third = {"pid": site.command.pid, "of": 2}
        assert [one | {"made": 0} for one in inherited()] == [third | {"made": 0}] * 2  # type: ignore[operator]
    assert {one["of"] for one in inherited()} == {2}  # type: ignore[index]
