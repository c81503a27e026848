"""Which directories are followed, and when an installation is over."""

import os
from pathlib import Path

import pytest

from forkserve.base import installed
from forkserve.devreload.sites import Sites, editable_folders, outside


def test_an_installation_counts_when_it_is_over(tmp_path: Path) -> None:
    sites = Sites([str(tmp_path), str(tmp_path / "none")])
    (tmp_path / "package").mkdir()
    assert sites.changed() == []  # the directory has changed
    assert sites.changed() == []  # it is at rest, but this is no record

    record = tmp_path / "package-1.dist-info"
    record.mkdir()
    assert sites.changed() == []
    (record / "RECORD").touch()
    os.utime(record, (1, 1))
    assert sites.changed() == []
    assert sites.changed() == [str(record)]
    assert sites.changed() == []

    record.joinpath("RECORD").unlink()
    record.rmdir()
    (tmp_path / "a.pth").write_text("/one\n")
    assert [sites.changed() for _ in range(3)] == [[], [str(tmp_path / "a.pth"), str(record)], []]
    os.utime(tmp_path / "a.pth", (1, 1))  # written in place
    assert [sites.changed() for _ in range(3)] == [[], [str(tmp_path / "a.pth")], []]


def test_directories_below_others_are_left_out() -> None:
    assert outside(["/a/b/c", "/a/b", "/ab", "/p/q"], ["/p"]) == ["/ab", "/a/b"]


def test_editable_packages_are_found_by_path_and_by_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    for name in ("by_path", "by record", "fixed", "venv/lib/site-packages"):
        (tmp_path / name).mkdir(parents=True)
    records = {
        "one": f'{{"dir_info": {{"editable": true}}, "url": "{(tmp_path / "by record").as_uri()}"}}',
        "two": f'{{"dir_info": {{}}, "url": "{(tmp_path / "fixed").as_uri()}"}}',
        "three": '["wrong"]',
        "four": '{"vcs_info": {}, "url": "https://localhost/a.git"}',
        "five": "{",
    }
    for name, text in records.items():
        (site / f"{name}-1.dist-info").mkdir(parents=True)
        (site / f"{name}-1.dist-info" / "direct_url.json").write_text(text)
    lines = ["../by_path", "../none", "../venv/lib/site-packages", "/", os.path.dirname(os.__file__), "import os"]
    (site / "some.pth").write_text("\n".join(lines))
    monkeypatch.setattr(installed, "folders", lambda: [str(site)])

    assert editable_folders() == [str(tmp_path / "by_path"), str(tmp_path / "by record")]
