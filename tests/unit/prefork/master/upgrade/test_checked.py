"""The result of a pre-flight: the files that it depends on, the command line of Python, and the modules in memory."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forkserve.prefork.master.upgrade import checked
from forkserve.prefork.master.upgrade.program import checked_file

BASE = checked.CheckedProgram(
    hexversion=sys.hexversion,
    executable=sys.executable,
    words=[sys.executable, "main.py", "one"],
    flags=[],
    argv=["main.py", "one"],
    path=[],
    directory=None,
    start="starting",
    settings={},
    given=None,
    objects=[],
    stamps={},
    fresh=[],
)


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("python -m forkserve a b", ""),
        ("python -mforkserve a b", ""),
        ("python -u -X dev -m forkserve a b", "-u -X dev"),
        ("python -Ium forkserve a b", "-Iu"),
        ("python /bin/forkserve a b", ""),
        ("python -W error /bin/forkserve a b", "-W error"),
        ("python -Werror -uX dev /bin/forkserve a b", "-Werror -uX dev"),
        ("python --check-hash-based-pycs never -m forkserve a b", "--check-hash-based-pycs never"),
        ("python -m coverage run -m forkserve a b", None),
        ("python /bin/coverage run -m forkserve a b", None),
        ("python -c x a b c", None),
    ],
)
def test_the_flags_of_python_are_found_in_a_command_line(line: str, flags: str | None) -> None:
    assert checked.python_flags(line.split(), ["a", "b"]) == (None if flags is None else flags.split())


def checked_files(read: set[str], looked_for: list[str], since: int) -> checked.CheckedProgram:
    stamps, fresh = checked.stamps(read, looked_for, since)
    return dataclasses.replace(BASE, stamps=stamps, fresh=fresh)


def test_changed_created_and_removed_files_are_noticed(tmp_path: Path) -> None:
    read, other = tmp_path / "read", tmp_path / "other"
    read.write_text("1")
    found = checked_files({str(read)}, [str(other)], time.time_ns() + 10**9)
    assert found.changed(None) is None
    other.touch()
    assert found.changed(None) == str(other)
    other.unlink()
    read.write_text("2")
    assert found.changed(None) == str(read)
    read.unlink()
    assert found.changed(None) == str(read)


def test_a_possible_change_after_reading_counts_unless_the_file_was_unchanged_before(tmp_path: Path) -> None:
    read, gone = tmp_path / "read", tmp_path / "gone"
    read.write_text("1")
    early = time.time_ns() - 10**9
    first = checked_files({str(read)}, [], early)
    assert first.changed(None) == str(read)
    assert checked_files({str(read)}, [], early).changed(first) is None, "the clock of the file system is ahead"
    read.write_text("2")
    assert checked_files({str(read)}, [], early).changed(first) == str(read)
    assert checked_files({str(gone)}, [], early).changed(None) == str(gone)


def test_modules_run_from_memory_and_the_memory_file_is_read_only(tmp_path: Path) -> None:
    """The app's process writes the file, maybe as another user; the master runs its contents with all rights."""
    (tmp_path / "starting.py").write_text("raise OSError('from the disk')")
    text = "import inner, json, sys\ndef main(checked):\n    print(json.dumps([sys.argv, sys.orig_argv, inner.WORD, __file__]))\n    return 7\n"
    own = Path(checked.modules.__file__)  # not from `loaded`: in tests, pytest has loaded and rewritten it
    ours = {checked.modules.__name__: (str(own), False, compile(own.read_text(), own, "exec"))}
    code = {name: compile(source, name, "exec") for name, source in {"starting": text, "inner": "WORD = 'kept'"}.items()}
    modules = ours | {name: (str(tmp_path / f"{name}.py"), False, one) for name, one in code.items()}
    descriptor = checked_file()
    assert checked.read(descriptor) is None
    copy = os.dup(descriptor)
    found = dataclasses.replace(BASE, path=[str(tmp_path), *sys.path])
    checked.write(copy, found, modules)
    with pytest.raises(PermissionError):
        os.write(descriptor, b"x")
    with pytest.raises(PermissionError):
        os.truncate(descriptor, 0)
    assert checked.read(descriptor) == found
    done = subprocess.run(
        found.arguments(descriptor), pass_fds=[descriptor], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    os.close(descriptor)
    assert (done.returncode, done.stderr) == (7, "")
    assert (
        done.stdout.strip() == f'[["main.py", "one"], ["{sys.executable}", "main.py", "one"], "kept", "{tmp_path}/starting.py"]'
    )


def test_another_python_version_runs_the_command_line_instead(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("import sys; print('typed', sys.argv[1:])")
    descriptor = checked_file()
    found = dataclasses.replace(BASE, hexversion=0)
    checked.write(os.dup(descriptor), found, {})
    done = subprocess.run(
        found.arguments(descriptor), pass_fds=[descriptor], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    os.close(descriptor)
    assert (done.returncode, done.stdout) == (0, "typed ['one']\n")
