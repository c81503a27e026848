"""The command `forkserve ctl`: arguments in, a request to a running server, its reply out, exit code.

The sub-commands are those that the master's methods declare. A command that only the running server has is described by that
server. Options may stand before or after the command's name. Every outcome has the form of a server's reply (`ok`, `error` and
`result`), so there is one way to print it and one table of exit codes.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import click

from forkserve.base import stdio
from forkserve.base.errors import CommandError, ExitCode, nearest
from forkserve.base.logs import printable
from forkserve.cli import ctl_local
from forkserve.cli.ctl_output import reasons, show
from forkserve.config.values import read_seconds
from forkserve.prefork.control.client import GRACE, Answer, ask, find
from forkserve.prefork.control.command import Command, harmless
from forkserve.prefork.control.wire import MAX_TIMEOUT, read_json
from forkserve.prefork.ipc.pending import JSON

ABOUT = """Control a running server.

Exit codes: 0 done; 1 failed, or status --check found a fault; 2 wrong usage; 3 no such server is running; 4 not done in time.
"""
CALL_ABOUT = """

An ARG that is valid JSON is passed as that value, any other as a string. NAME=VALUE is a keyword argument if the command has a
parameter NAME; after -- it is text. Equal replies are shown once. The exit code is 0 if every worker has done it.
"""
EXITS = {"usage": 2, "no_server": 3, "timeout": 4}  # by the error's code; 1 for any other
NUMBER = re.compile(r"-(\d|\.\d)")
# Put before a negative number, so that click does not read it as an option, and before what stands after `--`, which may not have
# the form NAME=VALUE. No argument can contain it.
MARK = "\0"


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A parsed command line."""

    command: str
    args: list[JSON]
    named: dict[int, str]  # by place in `args`: the text of each that has the form NAME=VALUE, and does not stand after `--`
    name: str | None
    socket: str | None
    timeout: float | None
    to: str | int | None
    as_json: bool
    watch: float | None = None  # seconds
    check: bool = False


# Arguments in.


class _Ctl(click.Group):
    """A group whose commands are those of the master."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self._known = ctl_local.all_commands()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._known)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _command(self._known[cmd_name]) if cmd_name in self._known else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self._known:
            own, builtin = _commands_of_server(ctx.params, args)
            self._known |= builtin
            if args[0] not in self._known:
                raise click.UsageError(_unknown(args[0], self._known, own))
        return super().resolve_command(ctx, args)


def _commands_of_server(before: dict[str, Any], args: list[str]) -> tuple[set[str], dict[str, Command]]:
    """Return the commands of the server that the command line selects: the names of the user's own, and the others."""
    options = {f"--{key}": before.get(key) for key in ("socket", "name")}
    for word, following in zip(args, [*args[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option in options:
            options[option] = value if equals else following
    known = {one.name for one in fields(Command)}
    try:
        found = ask(find(options["--name"], options["--socket"]), "commands", timeout=GRACE)["result"]
        builtin = [Command(**{key: row[key] for key in known & row.keys()}) for row in found["builtin"]]
        return {row["name"] for row in found["own"]}, {one.name: one for one in builtin}
    except (CommandError, KeyError, TypeError):
        return set(), {}


def _unknown(name: str, known: Mapping[str, Command], own: Collection[str]) -> str:
    """Return what to say of a command that `ctl` does not have. It proposes none that destroys something."""
    near = nearest(name, [*harmless(known), *own])
    if near is None:
        return f"there is no command {name!r:.80}: see forkserve ctl --help, and forkserve ctl commands for your own"
    if name in own:
        return f"{name!r} is a command of the workers: write forkserve ctl call {name}"
    return f"there is no command {name!r:.80} (did you mean '{'call ' * (near in own)}{near}'?)"


def _options(default: str, *, to: bool, hidden: bool = False) -> list[click.Parameter]:
    options: list[click.Parameter] = [
        click.Option(["--name"], metavar="NAME", help="Name of the server; needed only if several of this user run."),
        click.Option(["--socket"], metavar="PATH", help="Path of the server's control socket."),
        click.Option(["--json", "as_json"], is_flag=True, help='Print one JSON object: {"ok", "error", "result"}.'),
        click.Option(["--timeout"], metavar="SECONDS", help=f"Seconds to wait (0: no limit). [{default}]"),
    ]
    if to:
        about = "Call all ready workers, any idle one, or the one with this ID. [all]"
        options.append(click.Option(["--to"], metavar="all|any|ID", help=about, hidden=hidden))
    return options


class _Command(click.Command):
    """A command that knows which of its arguments stand after `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*args[: end + 1], *(MARK + text for text in args[end + 1 :])])


def _command(command: Command) -> click.Command:
    arguments: list[click.Parameter] = [
        click.Argument([f"arg{i}"], metavar=word, required=word[0] != "[", nargs=-1 if "..." in word else 1)
        for i, word in enumerate(command.usage.split())
    ]
    if command.name in ctl_local.LOCAL:
        json_only = [one for one in _options("", to=False) if one.name == "as_json"]
        return click.Command(
            command.name,
            params=list(json_only),
            callback=lambda **_: _command_line(command, click.get_current_context()),
            help=command.help,
        )
    timeout = "no limit" if command.timeout is None else f"{command.timeout:g}"
    return _Command(
        command.name,
        params=[*arguments, *ctl_local.more_options(command.name), *_options(timeout, to=command.targets)],
        callback=lambda **_: _command_line(command, click.get_current_context()),
        help=command.help + (CALL_ABOUT if command.targets else ""),
        short_help=command.help,
        options_metavar="[OPTIONS]",
    )


def _command_line(command: Command, context: click.Context) -> CommandLine:
    assert context.parent is not None
    before = context.parent.params

    def option(key: str) -> Any:
        value = context.params.get(key)
        value = value if value is not None else before.get(key)
        return value.replace(MARK, "") if isinstance(value, str) else value

    args: list[JSON] = []
    named: dict[int, str] = {}
    for i, word in enumerate(command.usage.split()):
        value = context.params[f"arg{i}"]
        for text in value if isinstance(value, tuple) else () if value is None else (value,):
            if args and command.targets and text.partition("=")[0].isidentifier() and "=" in text:
                named[len(args)] = text
            args.append(READERS.get(word.strip("[.]"), _value)(text.replace(MARK, "")))
    if option("name") is not None and option("socket") is not None:
        raise click.UsageError("--name and --socket both select the server: give one of them")
    if option("to") is not None and not command.targets:
        raise click.UsageError("--to belongs to `call`")
    watch, check = context.params.get("watch"), bool(context.params.get("check"))
    if watch is not None and check:
        raise click.UsageError("--check looks once: leave --watch out")
    if context.params.get("whole"):
        args = [args[0] if args else None, True]
    if context.params.get("force"):
        args = [True]
    return CommandLine(
        command.name,
        args,
        named,
        option("name"),
        option("socket"),
        command.timeout if option("timeout") is None else _seconds(option("timeout")),
        None if option("to") is None else _target(option("to")),
        context.params["as_json"] or before["as_json"],
        None if watch is None else ctl_local.read_interval(watch),
        check,
    )


def _seconds(text: str) -> float | None:
    try:
        seconds = read_seconds(text)
    except ValueError as error:
        raise click.UsageError(f"--timeout: {error}") from None
    if seconds > MAX_TIMEOUT:
        raise click.UsageError(f"--timeout: at most {MAX_TIMEOUT} seconds, or 0 for no limit")
    return seconds or None


def _target(text: str) -> str | int:
    if text in ("all", "any"):
        return text
    if not re.fullmatch("[0-9]{1,9}", text):
        raise click.UsageError(f"--to: {text!r} is not all, any or the ID of a worker")
    return int(text)


def _worker_id(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise click.UsageError(f"ID: {text!r} is not the ID of a worker, which is a number")
    return int(text)


def _amount(text: str) -> int | str:
    """Read a number; with a sign it stays text, since -2 means two fewer."""
    if not re.fullmatch("[+-]?[0-9]{1,9}", text):
        raise click.UsageError(f"{text!r} is not a number of workers: write N, +N or -N")
    return int(text) if text.isdigit() else text


def _value(text: str) -> JSON:
    try:
        return read_json(text)
    except (ValueError, RecursionError):
        return text


READERS: dict[str, Callable[[str], JSON]] = {"ID": _worker_id, "N|+N|-N": _amount, "NAME": str}  # any other word: _value


def make() -> click.Group:
    """Make the click command, with a sub-command for each command of the master."""
    return _Ctl(
        "ctl",
        params=_options("60; reload, upgrade: no limit", to=True, hidden=True),
        help=ABOUT,
        no_args_is_help=False,
        subcommand_metavar="COMMAND ...",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def parse(arguments: Sequence[str]) -> CommandLine | None:
    """Parse a command line; return None after --help. Raises CommandError."""
    group = make()
    try:
        marked = [MARK + text if NUMBER.match(text) else text for text in arguments]
        line = group.main(marked, prog_name="forkserve ctl", standalone_mode=False)
    except click.UsageError as error:
        message = error.format_message().replace(MARK, "")
        raise CommandError(
            message.replace("Missing command.", "a command is missing: see forkserve ctl --help"), "usage"
        ) from None
    return line if isinstance(line, CommandLine) else None


# The server.


def send(line: CommandLine) -> Answer:
    """Send the command to a server, and return the server's reply. Raises CommandError if there is none."""
    if line.command in ctl_local.LOCAL:
        return ctl_local.list_servers()
    path = find(line.name, line.socket)
    more: dict[str, JSON] = {} if line.to is None else {"to": line.to}
    args = line.args
    if line.named:
        args, more["kwargs"] = split_arguments(line, ask(path, "commands", timeout=line.timeout)["result"])
    progress = _StatusLine(shown=not line.as_json and sys.stderr.isatty())
    try:
        return ask(path, line.command, args, timeout=line.timeout, tell=progress.write if progress.shown else None, **more)
    finally:
        progress.clear()


def split_arguments(line: CommandLine, commands: Any) -> tuple[list[JSON], dict[str, JSON]]:
    """Return the arguments without and with a name of a call, for a server with these commands (the result of `commands`).

    NAME=VALUE has a name if a worker that may be called has a parameter of that name, or if no worker describes the command. So
    a call means the same for all workers: one with other parameters refuses it, and never takes NAME=VALUE as a text.
    """
    own = commands.get("own") if isinstance(commands, dict) else None
    rows = [row for row in own or () if row.get("name") == line.args[0]]
    if isinstance(line.to, int):
        rows = [row for row in rows if line.to in row.get("workers", [line.to])] or rows
    names = [row.get("keywords", ()) for row in rows]
    accepts_any = None in names or not rows
    args: list[JSON] = []
    kwargs: dict[str, JSON] = {}
    for place, value in enumerate(line.args):
        if place not in line.named:
            args.append(value)
            continue
        name, _, text = line.named[place].partition("=")
        if not (accepts_any or any(name in one for one in names)):
            args.append(value)
        elif name in kwargs:
            raise CommandError(f"{name}= is given twice", "usage")
        else:
            kwargs[name] = _value(text)
    return args, kwargs


class _StatusLine:
    """One line on stderr that is overwritten. It uses no escape sequences, so that any terminal will do."""

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self._width = 0

    def write(self, text: str) -> None:
        if self.shown:
            text = printable(text)[: (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1]
            click.echo("\r" + text.ljust(self._width), nl=False, err=True)
            self._width = len(text)

    def clear(self) -> None:
        if self._width:
            click.echo("\r" + " " * self._width + "\r", nl=False, err=True)


# The answer out.


def main(arguments: Sequence[str]) -> int:
    """Run `forkserve ctl` with its arguments; return the exit code."""
    as_json = "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
    command = ""
    try:
        line = parse(arguments)
        if line is None:
            return ExitCode.OK
        command, as_json = line.command, line.as_json
        if line.watch is not None:
            return _watch(line, line.watch)
        answer = ctl_local.check(send(line)) if line.check else send(line)
    except CommandError as error:
        answer = {"ok": False, "error": {"code": error.code, "message": str(error)}, "result": None}
    except KeyboardInterrupt:
        answer = {
            "ok": False,
            "error": {"code": "failed", "message": "interrupted; the command goes on"},
            "result": None,
        }
    _print(command, answer, as_json=as_json)
    return 0 if answer["ok"] else EXITS.get(str(answer["error"].get("code")), 1)


def _watch(line: CommandLine, interval: float) -> int:
    """Show the status again and again, until Ctrl-C, or until nobody reads it any more."""
    try:
        ctl_local.watch(lambda: send(line), interval, as_json=line.as_json)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # `forkserve ctl status --watch | head`
        stdio.print_nowhere()
    return ExitCode.OK


def _print(command: str, answer: Answer, *, as_json: bool) -> None:
    if as_json:
        _write(json.dumps(answer) + "\n")
        return
    if answer["ok"] or isinstance(answer["result"], list):  # the reply of each worker
        _write(show(command, answer["result"], ctl_local.width()))
    if not answer["ok"]:
        lines = [f"forkserve ctl: {printable(str(answer['error'].get('message')))}", *reasons(answer["result"])]
        click.echo("\n".join(lines), err=True)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text.encode(sys.stdout.encoding or "ascii", "backslashreplace").decode(sys.stdout.encoding or "ascii"))
        sys.stdout.flush()
    except BrokenPipeError:  # `forkserve ctl status | head -1`
        stdio.print_nowhere()
