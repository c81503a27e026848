"""The command `manage.py forkserve`: it replaces itself by `python -m forkserve`, with the project's application.

The process of manage.py has loaded the project, which a master must never do: a reload could not load it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click
from django.conf import settings  # type: ignore[import-untyped]
from django.core.management.base import BaseCommand, CommandError  # type: ignore[import-untyped]
from django.db import connections  # type: ignore[import-untyped]

from forkserve.base.errors import ConfigError
from forkserve.cli.options import load, make_command, parse
from forkserve.config.envfile import read_development_files
from forkserve.config.spec import flag
from forkserve.config.table import TABLE

THREADS: Final = 8  # of a worker with WSGI, as runserver has threads too: a page may request another one of the same site
SWITCHES: Final = {
    "noreload": "Do not reload when files change, although DEBUG is on.",
    "nostatic": "Do not serve static files.",
    "insecure": "Serve static files although DEBUG is off.",
    "skip_checks": "Skip system checks.",
    "no_color": "Do not colorize the output.",
    "force_color": "Colorize the output.",
    "traceback": "",
}
TALKATIVE: Final = 2  # from this --verbosity on, the log level is debug


class Command(BaseCommand):  # type: ignore[misc]
    """Serves the project."""

    help = "Serves the project with forkserve, by default at 127.0.0.1:8000; with DEBUG it reloads when files change."
    requires_system_checks = ()  # workers run them at each load

    def run_from_argv(self, argv: Sequence[str]) -> None:
        """Run the command with forkserve's own options."""
        try:
            self.handle(*argv[2:])
        except (ConfigError, CommandError) as error:
            self.stderr.write(f"forkserve: {error}")
            sys.exit(2)
        except click.exceptions.Exit as end:  # after --help
            sys.exit(end.exit_code)

    def print_help(self, prog_name: str, subcommand: str) -> None:
        """Print the help of all options."""
        self.run_from_argv([prog_name, subcommand, "--help"])

    def handle(self, *words: str, **_: Any) -> None:
        """Serve. Does not return.

        Args:
            words: The command line: PORT or ADDRESS:PORT, and options.

        Raises:
            ConfigError: The line is not valid.
            CommandError: The project's settings allow no request.
        """
        line = parse(words, _command())
        if not settings.DEBUG and not settings.ALLOWED_HOSTS:
            raise CommandError("set settings.ALLOWED_HOSTS: it is needed if DEBUG is False")
        app, settled = _settled(line)
        arguments = [*subprocess._args_from_interpreter_flags(), "-m", "forkserve", app, *_words(settled)]  # type: ignore[attr-defined]  # noqa: SLF001
        connections.close_all()
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *arguments], _environ(settled))  # noqa: S606 - no shell is wanted


def _command() -> click.Command:
    """Return the command of serving, with the options that users of `runserver` know."""
    command = make_command()
    command.name = "manage.py forkserve"
    command.options_metavar = "[PORT | ADDRESS:PORT] [OPTIONS]"
    command.help = Command.help
    command.params += [
        click.Option([name, flag(name)], is_flag=True, help=about, hidden=not about) for name, about in SWITCHES.items()
    ]
    command.params += [
        click.Option(["settings", "--settings"], hidden=True),  # manage.py itself has read it
        click.Option(["verbosity", "-v", "--verbosity"], type=click.IntRange(0, 3), help="2 and 3: log debug messages as well."),
    ]
    return command


def _settled(line: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return APP and the options of `forkserve` for the parsed line. What is usual here counts only if no source gives it.

    Raises ConfigError: A source or a value is wrong.
    """
    of_django = {name: line.get(name) for name in (*SWITCHES, "settings", "verbosity")}
    options = {name: value for name, value in line.items() if name not in of_django and name != "app"}
    if (address := line.get("app")) is not None:
        options["bind"] = (*options.get("bind", ()), _bind(address))
    if (of_django["verbosity"] or 0) >= TALKATIVE:
        options.setdefault("log_level", "debug")
    if of_django["noreload"]:
        options.setdefault("reload", False)
    config = load({**options, "app": __name__}, needs_app=True)
    interface = config.settings.interface
    is_asgi = interface == "asgi" or (interface == "auto" and getattr(settings, "ASGI_APPLICATION", None) is not None)
    usual = {"name": settings.SETTINGS_MODULE.partition(".")[0], "reload": bool(settings.DEBUG)}
    if not is_asgi:
        usual["threads"] = THREADS
    options |= {name: value for name, value in usual.items() if config.origins[name] == "default"}
    options.setdefault("reload", config.settings.reload)
    folder, here = _project_folder(), os.getcwd()
    if folder != here:
        options["pythonpath"] = (*config.settings.pythonpath, folder)
        if os.path.commonpath((here, folder)) != here and not config.settings.reload_dir:
            options["reload_dir"] = (folder,)
    switches = {
        "static": not of_django["nostatic"],
        "insecure": bool(of_django["insecure"]),
        "checks": not of_django["skip_checks"],
    }
    given = ", ".join(f"{name}={value}" for name, value in switches.items())
    return f"forkserve.contrib.django.serving:{'asgi' if is_asgi else 'wsgi'}({given})", options


def _project_folder() -> str:
    """Return the directory from which the settings were imported."""
    module = sys.modules[settings.SETTINGS_MODULE.partition(".")[0]]
    place = next(iter(module.__path__), None) if hasattr(module, "__path__") else module.__file__
    return os.path.dirname(os.path.abspath(place or sys.argv[0]))


def _environ(line: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment without what the project has read from `.env`.

    With --reload, workers read the file each time: as real variables, the present values would win over those of the next save.
    """
    environ = dict(os.environ)
    if line["reload"]:
        for name, value in read_development_files(line.get("chdir") or os.getcwd(), {}).items():
            if environ.get(name) == value:
                del environ[name]
    return environ


def _words(line: Mapping[str, Any]) -> Iterator[str]:
    for name, value in line.items():
        if isinstance(value, bool):
            if value or name in TABLE:
                yield flag(name) if value else f"--no-{flag(name)[2:]}"
        else:
            for one in value if isinstance(value, tuple | list) else (value,):
                yield f"{flag(name)}={one}"


def _bind(address: str) -> str:
    """Return the address of `runserver`'s argument: 8001 and 0:8001 are short forms."""
    host, _, port = address.rpartition(":")
    return f"{'0.0.0.0' if host == '0' else host or '127.0.0.1'}:{port}"  # noqa: S104 - Django's meaning
