"""Which changes matter to the app."""

from __future__ import annotations

from typing import Any

import pytest

from forkserve.devreload.changes import OWN, REMEMBERED, Changes


def made() -> tuple[Changes, list[str]]:
    own: list[str] = []
    changes = Changes(own.append)
    assert changes.loads(1, ["/p/app.py", "/p/sub/one.py"], 0.0) == []
    return changes, own


def told(changes: Changes, *others: str, included: tuple[str, ...] = (), **how: Any) -> list[str]:
    given = {"made": (), "suspected": False, "loading": False, **how}
    return changes.reported(included, others, given.pop("made"), 10.0, **given)


def test_what_a_worker_has_loaded_matters_and_its_directories() -> None:
    changes, _ = made()
    assert told(changes, "/p/app.py", "/p/other.py", "/p/sub", "/p/none") == ["/p/app.py", "/p/sub"]
    changes.ended(1)
    assert told(changes, "/p/app.py", "/p/sub") == []


def test_what_is_included_matters_and_anything_may_mend_what_does_not_load() -> None:
    changes, _ = made()
    assert told(changes, "/p/other.py", included=("/p/a.html",)) == ["/p/a.html"]
    assert told(changes, "/p/other.py", "/p/app.py", suspected=True) == ["/p/other.py", "/p/app.py"]


def test_what_changed_before_it_was_known_to_be_loaded() -> None:
    changes, _ = made()
    told(changes, "/p/new.py")
    assert changes.loads(2, ["/p/new.py"], 9.0) == ["/p/new.py"]
    assert changes.loads(3, ["/p/new.py"], 11.0) == []


def test_what_the_app_writes_whenever_it_is_loaded_matters_no_more_until_it_changes_at_another_time() -> None:
    changes, own = made()
    for included, others in ((("/p/a.html",), ()), ((), ("/p/made.py",))):
        path = [*included, *others]
        for _ in range(OWN):
            assert told(changes, *others, included=included, suspected=True, loading=True) == path
        assert own == path[1:]
        for _ in range(3):
            assert told(changes, *others, included=included, suspected=True, loading=True) == []
        assert own == path
        own.clear()
        assert told(changes, *others, included=included, suspected=True) == path
        assert told(changes, *others, included=included, suspected=True, loading=True) == path


def test_a_module_that_is_loaded_always_matters() -> None:
    changes, own = made()
    for _ in range(2 * OWN):
        assert told(changes, "/p/app.py", suspected=True, loading=True) == ["/p/app.py"]
    assert own == []


@pytest.mark.parametrize(
    ("path", "matters"),
    [
        ("/p/new.py", True),  # beside app.py
        ("/p/sub/new.cpython-311-x86_64-linux-gnu.so", True),
        ("/p/sub/fresh/__init__.py", True),  # a package beside one.py
        ("/p/sub/fresh/other.py", False),
        ("/p/elsewhere/new.py", False),
        ("/p/lib/local.py", True),  # sought
        ("/p/lib/local/deep/one.py", True),  # as a namespace
        ("/p/lib/locals.py", False),
        ("/p/names/one.py", True),  # in a namespace that is loaded
        ("/p/notes.txt", False),
    ],
)
def test_what_is_new_or_gone_matters_where_modules_are_sought(path: str, *, matters: bool) -> None:
    changes, _ = made()
    changes.loads(1, [], 0.0, folders=["/p/names"], sought=["/p/lib/local"])
    assert told(changes, path, made=(path,)) == [path] * matters
    # It was there before, and nobody has loaded it; but what was sought in vain cannot have been there.
    assert told(changes, path) == [path] * (path == "/p/lib/local.py")
    changes.ended(1)
    assert told(changes, path, made=(path,)) == [path] * ("local/" in path or "local." in path)  # another may seek it again


def test_what_came_before_it_was_known_that_it_was_sought() -> None:
    changes, own = made()
    told(changes, "/p/lib/local.py", made=("/p/lib/local.py",))
    assert changes.loads(2, [], 9.0, sought=["/p/lib/local"]) == ["/p/lib/local.py"]
    assert changes.loads(3, [], 11.0, sought=["/p/lib/local"]) == []
    for _ in range(OWN):  # the app makes it anew whenever it is loaded
        changes.loads(4, [], 9.0)
    assert changes.loads(5, [], 9.0) == []
    assert own == ["/p/lib/local.py"]


def test_a_server_knows_what_all_workers_have_loaded_and_when_something_changed_last() -> None:
    changes, _ = made()
    assert changes.newest == 0.0
    changes.loads(2, ["/p/two.py"], 0.0)
    assert sorted(changes.loaded) == ["/p/app.py", "/p/sub/one.py", "/p/two.py"]
    told(changes, "/p/app.py")
    assert changes.newest == 10.0


def test_not_more_changes_are_remembered_than_have_a_use() -> None:
    changes, _ = made()
    many = [f"/p/{number}.py" for number in range(REMEMBERED + 1)]
    told(changes, *many, made=many)
    told(changes, "/p/last.py")
    assert changes.loads(2, many, 9.0) == []
    assert changes.loads(3, ["/p/last.py"], 9.0) == ["/p/last.py"]
