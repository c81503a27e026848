"""Which changes are relevant for the app."""

from __future__ import annotations

from typing import Any

import pytest

from forkserve.devreload.changes import MAX_LOAD_WRITES, MAX_REMEMBERED, Changes


def changes_with_loaded_files() -> tuple[Changes, list[str]]:
    self_written: list[str] = []
    changes = Changes(self_written.append)
    assert changes.record_loaded(1, ["/p/app.py", "/p/sub/one.py"], 0.0) == []
    return changes, self_written


def relevant_of(changes: Changes, *others: str, included: tuple[str, ...] = (), **how: Any) -> list[str]:
    arguments = {"made": (), "load_failed": False, "loading": False, **how}
    return changes.record_changed(included, others, arguments.pop("made"), 10.0, **arguments)


def test_loaded_files_and_their_directories_are_relevant() -> None:
    changes, _ = changes_with_loaded_files()
    assert relevant_of(changes, "/p/app.py", "/p/other.py", "/p/sub", "/p/none") == ["/p/app.py", "/p/sub"]
    changes.ended(1)
    assert relevant_of(changes, "/p/app.py", "/p/sub") == []


def test_included_files_are_relevant_and_all_files_after_a_load_error() -> None:
    changes, _ = changes_with_loaded_files()
    assert relevant_of(changes, "/p/other.py", included=("/p/a.html",)) == ["/p/a.html"]
    assert relevant_of(changes, "/p/other.py", "/p/app.py", load_failed=True) == ["/p/other.py", "/p/app.py"]


def test_a_change_before_the_report_of_loading_is_relevant() -> None:
    changes, _ = changes_with_loaded_files()
    relevant_of(changes, "/p/new.py")
    assert changes.record_loaded(2, ["/p/new.py"], 9.0) == ["/p/new.py"]
    assert changes.record_loaded(3, ["/p/new.py"], 11.0) == []


def test_a_file_written_at_every_load_is_ignored_until_it_changes_otherwise() -> None:
    changes, self_written = changes_with_loaded_files()
    for included, others in ((("/p/a.html",), ()), ((), ("/p/made.py",))):
        path = [*included, *others]
        for _ in range(MAX_LOAD_WRITES):
            assert relevant_of(changes, *others, included=included, load_failed=True, loading=True) == path
        assert self_written == path[1:]
        for _ in range(3):
            assert relevant_of(changes, *others, included=included, load_failed=True, loading=True) == []
        assert self_written == path
        self_written.clear()
        assert relevant_of(changes, *others, included=included, load_failed=True) == path
        assert relevant_of(changes, *others, included=included, load_failed=True, loading=True) == path


def test_a_loaded_module_is_always_relevant() -> None:
    changes, self_written = changes_with_loaded_files()
    for _ in range(2 * MAX_LOAD_WRITES):
        assert relevant_of(changes, "/p/app.py", load_failed=True, loading=True) == ["/p/app.py"]
    assert self_written == []


@pytest.mark.parametrize(
    ("path", "is_relevant"),
    [
        ("/p/new.py", True),  # beside app.py
        ("/p/sub/new.cpython-311-x86_64-linux-gnu.so", True),
        ("/p/sub/fresh/__init__.py", True),  # a package beside one.py
        ("/p/sub/fresh/other.py", False),
        ("/p/elsewhere/new.py", False),
        ("/p/lib/local.py", True),  # a failed import
        ("/p/lib/local/deep/one.py", True),  # as a namespace package
        ("/p/lib/locals.py", False),
        ("/p/names/one.py", True),  # in a loaded namespace package
        ("/p/notes.txt", False),
    ],
)
def test_new_and_removed_files_are_relevant_where_modules_are_looked_for(path: str, *, is_relevant: bool) -> None:
    changes, _ = changes_with_loaded_files()
    changes.record_loaded(1, [], 0.0, folders=["/p/names"], sought=["/p/lib/local"])
    assert relevant_of(changes, path, made=(path,)) == [path] * is_relevant
    # The file existed before, and no worker has loaded it; but a file of a failed import cannot have existed.
    assert relevant_of(changes, path) == [path] * (path == "/p/lib/local.py")
    changes.ended(1)
    # Another worker may look for the module again.
    assert relevant_of(changes, path, made=(path,)) == [path] * ("local/" in path or "local." in path)


def test_a_file_created_before_the_report_of_a_failed_import_is_relevant() -> None:
    changes, self_written = changes_with_loaded_files()
    relevant_of(changes, "/p/lib/local.py", made=("/p/lib/local.py",))
    assert changes.record_loaded(2, [], 9.0, sought=["/p/lib/local"]) == ["/p/lib/local.py"]
    assert changes.record_loaded(3, [], 11.0, sought=["/p/lib/local"]) == []
    for _ in range(MAX_LOAD_WRITES):  # the app creates the file at every load
        changes.record_loaded(4, [], 9.0)
    assert changes.record_loaded(5, [], 9.0) == []
    assert self_written == ["/p/lib/local.py"]


def test_the_loaded_files_of_all_workers_and_the_newest_change_are_known() -> None:
    changes, _ = changes_with_loaded_files()
    assert changes.newest == 0.0
    changes.record_loaded(2, ["/p/two.py"], 0.0)
    assert sorted(changes.loaded) == ["/p/app.py", "/p/sub/one.py", "/p/two.py"]
    relevant_of(changes, "/p/app.py")
    assert changes.newest == 10.0


def test_the_number_of_remembered_changes_is_limited() -> None:
    changes, _ = changes_with_loaded_files()
    many = [f"/p/{number}.py" for number in range(MAX_REMEMBERED + 1)]
    relevant_of(changes, *many, made=many)
    relevant_of(changes, "/p/last.py")
    assert changes.record_loaded(2, many, 9.0) == []
    assert changes.record_loaded(3, ["/p/last.py"], 9.0) == ["/p/last.py"]
