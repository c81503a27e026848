"""Help: the first page fits a screen, and the rest is found by group and command."""

import pytest

from forkserve.cli import help as pages
from forkserve.cli import near
from forkserve.cli import serve as cli
from forkserve.cli.commands import SUB_COMMANDS
from forkserve.config.table import TABLE


def printed(capsys: pytest.CaptureFixture[str], line: str, code: int = 0) -> str:
    assert cli.main(line.split()) == code
    return "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "line", ["--help", "-h", "help", "help --help", "help serve", "run -h", "main:app --help", "--help main:app"]
)
def test_the_first_page_fits_a_screen(capsys: pytest.CaptureFixture[str], line: str) -> None:
    page = printed(capsys, line)

    assert page == pages.screen()
    assert page.count("\n") < 24  # the prompt has a line too
    assert max(map(len, page.splitlines())) <= 80
    assert [name for name, one in SUB_COMMANDS.items() if one.listed and f"forkserve {name}" not in page] == []


@pytest.mark.parametrize("line", ["--help tls", "--help TLS", "help tls", "serve --help tls", "main:app --help tls"])
def test_help_of_a_group_lists_its_options(capsys: pytest.CaptureFixture[str], line: str) -> None:
    page = printed(capsys, line)

    assert page.startswith("TLS:\n")
    assert [
        flag
        for spec in TABLE.values()
        for flag in spec.flags
        if (spec.group == "TLS") != (f"{flag} " in page or f"{flag}," in page)
    ] == []


def test_the_whole_help_has_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, "help all")

    assert [group for group in (*pages.GROUPS, pages.OTHER) if f"\n{group}:\n" not in page] == []


@pytest.mark.parametrize(
    ("line", "start"),
    [
        ("help ctl", "Usage: forkserve ctl [OPTIONS] COMMAND"),
        ("help ctl reload", "Usage: forkserve ctl reload "),
        ("help reload", "Usage: forkserve ctl reload "),
        ("ctl -h", "Usage: forkserve ctl [OPTIONS] COMMAND"),
        ("ctl scale -h", "Usage: forkserve ctl scale "),
        ("help nginx", "Usage: forkserve nginx "),
        ("nginx -h", "Usage: forkserve nginx "),
        ("help config", "Usage: forkserve config APP"),
        ("help completion", "Usage: forkserve completion "),
        ("help man", "Usage: forkserve man "),
    ],
)
def test_help_of_a_command(capsys: pytest.CaptureFixture[str], line: str, start: str) -> None:
    assert printed(capsys, line).startswith(start)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--help tsl", "--help: there is no group 'tsl' (did you mean 'tls'?)"),
        ("help tsl", "there is no command and no group of options 'tsl' (did you mean `forkserve help tls`?)"),
        ("help stauts", "there is no command and no group of options 'stauts' (did you mean `forkserve help ctl status`?)"),
        ("help xyz", "there is no command and no group of options 'xyz'"),
        ("help stpo", "there is no command and no group of options 'stpo'"),
    ],
)
def test_help_of_nothing_is_an_error(capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    assert printed(capsys, line, 2) == f"forkserve: {message}\n"


@pytest.mark.parametrize("word", ["top", "stp", "stpo", "sotp", "quite", "quti", "st0p"])
def test_no_typo_proposes_to_stop(capsys: pytest.CaptureFixture[str], word: str) -> None:
    error = printed(capsys, f"ctl {word}", 2)

    assert "there is no command" in error
    assert not [name for name in set(near.COMMANDS) - set(near.HARMLESS) if f"'{name}'" in error]


def test_the_commands_that_no_typo_proposes_exist() -> None:
    assert set(near.COMMANDS) - set(near.HARMLESS) >= {"quit", "restart", "scale", "stop"}
