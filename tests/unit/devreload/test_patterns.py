"""Which files belong to a project."""

from __future__ import annotations

import pytest

from forkserve.devreload.patterns import Rules, fixed_part


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [
        ("node_modules", ("node_modules", "a/node_modules", "node_modules/b/c"), ("my_node_modules", "node_modules.txt")),
        ("*.pyc", ("a.pyc", "b/a.pyc"), ("a.py",)),
        ("static/*.css", ("static/a.css",), ("static/b/a.css", "x/static/a.css")),
        ("static/**/*.css", ("static/a.css", "static/b/c/a.css"), ("static/a.js",)),
        ("./data/**", ("data/a", "data/b/c"), ("data", "other/data/a")),
        ("a/**b", ("a/b", "a/c/d/b"), ("a/c",)),
        ("a?c/", ("abc", "x/abc/d"), ("ac", "a/c", "abbc")),
        ("[a-c]x", ("ax", "cx"), ("dx", "-x")),
        ("[!a-c]x", ("dx",), ("ax", "/x")),
        ("f[!a-c]x", ("fdx",), ("fax", "f/x")),
        ("[z-a]x", ("[z-a]x",), ("bx", "zx")),
        ("a+b", ("a+b",), ("aab",)),
    ],
)
def test_globs_match_paths_below_the_project(glob: str, matching: tuple[str, ...], other: tuple[str, ...]) -> None:
    rules = Rules(["/p"], exclude=[glob])

    assert [path for path in matching if not rules.excluded(f"/p/{path}")] == []
    assert [path for path in other if rules.excluded(f"/p/{path}")] == []


def test_a_path_belongs_to_its_first_matching_folder() -> None:
    rules = Rules(["/p", "/real/p/"])

    assert rules.below("/p/a/b.py") == "a/b.py"
    assert rules.below("/real/p/a.py") == "a.py"
    assert rules.below("/p2/a.py") is None
    assert rules.holds("/p/a.py")
    assert not rules.holds("/p")
    assert not rules.holds("/p/.git/config")


def test_absolute_globs_match_absolute_paths() -> None:
    rules = Rules(["/p"], exclude=["/p/made/**"], extra=["/etc/app/*.toml"])

    assert rules.excluded("/p/made/a.py")
    assert rules.included("/etc/app/a.toml")
    assert not rules.included("/etc/app/sub/a.toml")


def test_included_files_are_watched_without_a_module() -> None:
    rules = Rules(["/p"], include=["*.sql"], exclude=["old"])

    assert rules.included("/p/templates/a.html")
    assert rules.included("/p/a.sql")
    assert not rules.included("/p/a.txt")
    assert not rules.included("/p/old/a.sql")
    assert not rules.included("/elsewhere/a.sql")


def test_files_of_modules_are_recognized() -> None:
    rules = Rules(["/p"])

    assert [rules.module(path) for path in ("/p/a.py", "/p/a.so", "/p/a.txt", "/q/a.py")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("glob", "directory"), [("/etc/app/*.toml", "/etc/app"), ("/etc/a[bc]/x", "/etc"), ("/*", "/"), ("/etc/app.toml", "/etc")]
)
def test_the_fixed_part_of_a_glob_is_its_directory(glob: str, directory: str) -> None:
    assert fixed_part(glob) == directory
