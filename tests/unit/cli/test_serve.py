"""The command run in this process: its output and exit codes."""

import os
from pathlib import Path

import pytest

from forkserve.cli import serve as cli
from forkserve.config import report
from forkserve.config.table import TABLE

NO_MODULE = "there is no module {!r} in HERE or on Python's path: check the name, or give its directory with --chdir"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("", 2, "APP: not given: write forkserve module:attr (see forkserve --help)"),
        ("app:app --workrs 1", 2, "unknown option --workrs (did you mean '--workers'?)"),
        ("app:app --workers", 2, "Option '--workers' requires an argument."),
        ("app:app --workers x", 2, "--workers: 'x' is not a whole number from 1 to 4096, or auto"),
        ("-w 2 nginx", 2, "'nginx' is a sub-command and must come first (for an app in nginx.py write nginx:app)"),
        ("-w 2 ctl", 2, "'ctl' is a sub-command and must come first (for an app in ctl.py write ctl:app)"),
        ("app:app --markdown", 2, "--markdown belongs to `forkserve config`"),
        ("app\x1b:app", 2, r"APP: 'app\x1b:app' is not a plain text"),
        ("app:app --changed", 2, "--changed belongs to `forkserve config`"),
        ("serve", 2, "APP: not given: write forkserve module:attr (see forkserve --help)"),
        ("stauts", 2, "there is no command and no module 'stauts' (did you mean `forkserve ctl status`?)"),
        ("serve confg", 2, "there is no command and no module 'confg' (did you mean `forkserve config`?)"),
        ("reload", 2, "there is no module 'reload': write `forkserve ctl reload` for the command, or reload:app for an app"),
        ("--check-config stpo", 2, NO_MODULE.format("stpo")),
        ("--check-config qiut", 2, NO_MODULE.format("qiut")),
        ("a-b:app", 2, "APP: 'a-b:app' is not an app: write module:attr, module:factory() or module"),
        ("--check-config os:no_such", 2, "module 'os' has no attribute 'no_such'"),
    ],
)
def test_a_user_error_is_one_line(
    capsys: pytest.CaptureFixture[str],
    line: str,
    code: int,
    message: str,
) -> None:
    assert code == cli.main(line.split())

    printed = capsys.readouterr()
    assert ("", f"forkserve: {message.replace('HERE', os.getcwd())}\n") == (printed.out, printed.err)


def test_all_unknown_options_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    line = "--workrs 2 app:app -Zx --binnd=:8000 --workrs 3 -w 2 --bind - --zzzzzz -- --no-option"

    assert cli.main(line.split()) == 2
    assert capsys.readouterr().err.splitlines() == [
        "forkserve: unknown option --workrs (did you mean '--workers'?)",
        "forkserve: unknown option -Z",
        "forkserve: unknown option --binnd (did you mean '--bind'?)",
        "forkserve: unknown option --zzzzzz",
    ]


def test_all_unknown_options_of_a_variable_are_named_with_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--workrs 2 --zzzzzz")

    assert cli.main(["app:app"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "forkserve: unknown option --workrs (did you mean '--workers'?) in GUNICORN_CMD_ARGS",
        "forkserve: unknown option --zzzzzz in GUNICORN_CMD_ARGS",
    ]


@pytest.mark.parametrize("words", [[], ["check", "--from", "gunicorn", "--"]])
def test_unknown_options_and_faults_of_all_sources_are_in_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("timeout = 'soon'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--bogus --bogos 5 --backlog many")

    assert cli.main([*words, "--workrs", "2", "app:app", "--protocol", "uwsgi"]) == 2
    start = [
        "unknown option --workrs",
        "unknown option --bogus",
        "unknown option --bogos",
        "timeout in",
        "--backlog in",
        "--protocol",
    ]
    faults = capsys.readouterr().err.splitlines()
    assert len(faults) == len(start), faults
    for begin in start:
        assert sum(fault.startswith(f"forkserve: {begin}") for fault in faults) == 1, (begin, faults)
    assert all("in GUNICORN_CMD_ARGS" in fault for fault in faults if "--bog" in fault)


@pytest.mark.parametrize("word", ["run", "serve", "help", "check", "man", "completion", "ctl"])
@pytest.mark.parametrize("file", ["{}.py", "{}/__init__.py"])
def test_a_sub_command_that_is_also_a_module_says_how_to_name_the_app(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, word: str, file: str
) -> None:
    (tmp_path / file.format(word)).parent.mkdir(exist_ok=True)
    (tmp_path / file.format(word)).touch()
    hint = f"forkserve: {word!r} is a sub-command: for the app in {file.format(word)} write {word}:app"

    code = cli.main([word])

    assert code == (0 if word in ("help", "man") else 2)
    assert capsys.readouterr().err.splitlines()[-1] == hint
    assert cli.main([word, "--no-such"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == hint
    assert cli.main([f"{word}:app", "--no-such"]) == 2
    assert hint not in capsys.readouterr().err


def test_config_shows_values_and_origins(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORKSERVE_THREADS", "3")

    assert cli.main(["config", "app:app", "--workers", "2", "--limit-request-body", "1024k"]) == 0

    rows = {line.split()[0]: line.split(None, 2)[1:] for line in capsys.readouterr().out.splitlines()}
    assert list(TABLE) == list(rows)
    assert [part.strip() for part in rows["workers"]] == ["2", "(command line)"]
    assert [part.strip() for part in rows["threads"]] == ["3", "(FORKSERVE_THREADS)"]
    assert [part.strip() for part in rows["limit_request_body"]] == ["1m", "(command line)"]
    assert [part.strip() for part in rows["bind"]] == ["127.0.0.1:8000", "(default)"]


def test_config_shows_what_differs_from_the_defaults(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKSERVE_THREADS", "3")

    assert cli.main(["config", "--changed", "app:app", "--workers", "2", "--backlog", "2048"]) == 0

    assert capsys.readouterr().out == (
        "app      app:app  (command line)\nworkers  2        (command line)\nthreads  3        (FORKSERVE_THREADS)\n"
    )


def test_config_shows_nothing_if_all_is_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--changed"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("word", ["serve", "run"])
def test_the_word_serve_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    (tmp_path / "served_here.py").write_text("def app(environ, start_response): return []\n")

    assert cli.main([word, "--check-config", "served_here:app"]) == 0
    assert tuple(capsys.readouterr()) == ("loads: served_here:app\n", "")


def test_config_needs_no_app(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config"]) == 0


def test_config_shows_hooks_but_no_password(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "forkserve.conf.py").write_text("def when_ready(server): pass")
    (tmp_path / "cert").touch()

    assert cli.main(["config", "--certfile", "cert", "--keyfile-password", "secret"]) == 0

    printed = capsys.readouterr().out
    assert "secret" not in printed
    assert "when_ready(server)" in printed


def test_print_config_shows_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["app:app", "--print-config"]) == 0
    assert capsys.readouterr().out.startswith("app ")


def test_the_markdown_table_has_a_row_for_each_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--markdown"]) == 0

    printed = capsys.readouterr().out
    assert report.markdown_table() == printed
    assert len(TABLE) + 2 == len(printed.splitlines())
    assert "| `--workers N`, `-w` | `1` | Run this many workers" in printed


def test_the_whole_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help", "all"]) == 0

    printed = capsys.readouterr().out
    assert [flag for name, spec in TABLE.items() if name != "app" for flag in spec.flags if flag not in printed] == []
    assert "--no--" not in printed


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("forkserve ")


def test_check_config_shows_the_traceback_of_a_broken_app(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken_here.py").write_text("import no_such_dependency\n")

    assert cli.main(["--check-config", "broken_here:app"]) == 2

    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):\n  File")
    assert "config/apps.py" not in printed
    assert printed.endswith(
        "forkserve: 'broken_here' failed at import: ModuleNotFoundError: No module named 'no_such_dependency'\n"
    )


def test_check_config_says_that_a_good_app_loads(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "fine_here.py").write_text("def app(environ, start_response): return []\n")

    assert cli.main(["--check-config", "fine_here:app"]) == 0
    assert tuple(capsys.readouterr()) == ("loads: fine_here:app\n", "")


def test_an_ignored_option_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["operator:add", "--check-config", "--worker-tmp-dir", "/run"]) == 0
    assert (capsys.readouterr().err) == "forkserve: configuration: ignored --worker-tmp-dir (heartbeats need no files)\n"
