"""Checks of a configuration by the front end's own program, in a temporary directory.

The check of an upstream file by nginx is in `trial`.
"""

import grp
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

TIME = 30.0  # seconds
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on every user's PATH
LOGGED = re.compile(r"^(?:nginx: |[0-9/]+ [0-9:]+ (?=\[)|\[(?:ALERT|NOTICE|WARNING)\]\s+\(\d+\) : (?:config : )?|Error: )")
SILENT = "it does not say why"
MARKS = ("[emerg]", "[ALERT]", "Error:")
FORBIDDEN = re.compile(r"(?:bind\(\) to|socket\(\)) (.+) failed \((?:1|13): ")  # EPERM, EACCES


class CheckError(Exception):
    """The program refuses the configuration, or is missing; the text is one line."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A command to run in the directory; it exits with 0 if the configuration is good."""

    command: list[str]
    environ: Mapping[str, str]


def find(program: str) -> str:
    """Return where a program is. Raises CheckError."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SBIN))
    found = shutil.which(program, path=path)
    if found is None:
        raise CheckError(f"the program {program} is not installed")
    return found


def _arrange(kind: str, text: str, directory: str, *, whole: bool) -> Trial:
    """Write a configuration to a directory, and return the command that checks it. Raises CheckError if the program is missing.

    All names are relative: the directory's own name may have blanks, or be too long for a unix socket. Unless *whole*, the text
    has only the backends, and the rest is added.
    """
    program = find(kind)
    environ = {**os.environ, "LC_ALL": "C"}
    if kind == "nginx":
        return Trial(_nginx(program, text, directory), environ)
    if kind == "haproxy":
        return Trial(_haproxy(program, text, directory, whole=whole), environ)
    environ |= {"HOME": directory, "XDG_DATA_HOME": directory, "XDG_CONFIG_HOME": directory}  # it stores files there
    return Trial(_caddy(program, text, directory, whole=whole), environ)


def check_configuration(kind: str, text: str, *, whole: bool = True) -> list[str]:
    """Check a configuration with nginx, haproxy or caddy; unless *whole*, only the backends, with haproxy or caddy.

    Returns the addresses that this user may not listen on. A front end is started by root, so they are no fault of the
    configuration. Raises CheckError with the message of the program.
    """
    forbidden: list[str] = []
    with tempfile.TemporaryDirectory(prefix="forkserve-") as directory:
        while output := _refused(kind, text, directory, whole=whole):
            said = complaint(output, directory)
            address = FORBIDDEN.search(said) if kind == "nginx" else None
            if address is None:
                raise CheckError(f"{kind} refuses the configuration: {said}")
            forbidden.append(address[1])
            before, text = text, _elsewhere(text, address[1], f"unix:elsewhere{len(forbidden)}")
            if text == before:
                break  # everything but the addresses after it has been checked by then
    return forbidden


def _elsewhere(text: str, address: str, instead: str) -> str:
    """Return nginx's configuration with another address to listen on in place of *address*, as nginx prints it."""
    port = address.removeprefix("0.0.0.0:")
    words = {address, port, f"*:{port}"}
    return re.sub(
        r'^(\s*listen\s+)("[^"]+"|[^\s;]+)',
        lambda found: found[1] + (instead if found[2].strip('"') in words else found[2]),
        text,
        flags=re.MULTILINE,
    )


def unreadable(path: str) -> bool:
    """Return whether this user may not read a file, or may not see it."""
    try:
        with open(path, "rb"):
            return False
    except OSError as error:
        return isinstance(error, PermissionError)


def _refused(kind: str, text: str, directory: str, *, whole: bool) -> str | None:
    trial = _arrange(kind, text, directory, whole=whole)
    return refused(kind, trial.command, trial.environ, directory=directory)


def refused(
    kind: str,
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    directory: str | None = None,
    stdin: IO[str] | int = subprocess.DEVNULL,
) -> str | None:
    """Run a front end's own program to check a configuration; return its output if it refuses it, else None.

    Args:
        kind: The name of the front end.
        command: The program with its arguments.
        environ: Its environment.
        directory: Its working directory; default: this process's.
        stdin: Its input.

    Raises CheckError if it cannot be run, or does not end within TIME seconds.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the front end's own program
            command,
            env=environ,
            cwd=directory,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=TIME,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckError(f"{kind} has not finished its check within {TIME:g} s") from None
    except OSError as error:
        raise CheckError(f"cannot run {command[0]}: {error.strerror}") from None
    return None if done.returncode == 0 else done.stdout or SILENT


def complaint(output: str, directory: str) -> str:
    """Return the line of a program's output that states the error."""
    lines = [line for line in output.splitlines() if line.strip()] or [SILENT]
    found = next((line for line in lines if any(mark in line for mark in MARKS)), lines[-1])
    return without_prefix(found.replace(f"{os.path.realpath(directory)}/", "").replace(f"{directory}/", ""))


def without_prefix(line: str) -> str:
    """Return a line of output without its time and process."""
    return re.sub(r"\] [0-9]+#[0-9]+: ", "] ", LOGGED.sub("", line.strip())).strip()


def _nginx(program: str, text: str, directory: str) -> list[str]:
    """Keep logs and directories here: even for a test, nginx opens and makes them, where only root may."""
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = "access_log off;" + "".join(f" {name}_temp_path {name};" for name in temporary)
    text = re.sub(r"^http \{", lambda found: f"{found[0]} {own}", text, count=1, flags=re.MULTILINE)
    _write(directory, "nginx.conf", text)
    # As root, nginx gives these directories to another user, which root may not do in every container.
    user = f" user root {grp.getgrgid(0).gr_name};" if os.geteuid() == 0 else ""
    return [program, "-t", "-q", "-p", directory, "-c", "nginx.conf", "-g", f"pid pid; error_log stderr;{user}"]


def _haproxy(program: str, text: str, directory: str, *, whole: bool) -> list[str]:
    _write(directory, "haproxy.cfg", text)
    if whole:
        return [program, "-c", "-f", "haproxy.cfg"]
    defaults = "defaults\n    mode http\n    timeout connect 5s\n    timeout client 1m\n    timeout server 1m\n"
    _write(directory, "rest.cfg", f"{defaults}frontend any\n    bind unix@socket\n")
    return [program, "-c", "-f", "rest.cfg", "-f", "haproxy.cfg"]


def _caddy(program: str, text: str, directory: str, *, whole: bool) -> list[str]:
    if not whole:
        _write(directory, "upstream", text)
        text = ":80 {\n\timport upstream\n}\n"
    _write(directory, "Caddyfile", text)
    return [program, "validate", "--adapter", "caddyfile", "--config", "Caddyfile"]


def _write(directory: str, name: str, text: str) -> None:
    with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
        file.write(text)
