"""Whether a front end would take a configuration: its own program is asked, in a directory that is thrown away.

`arrange` only writes files and says what to run, for callers that must not wait.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

TIME = 30.0
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on every user's PATH
LOGGED = re.compile(r"^(?:nginx: |[0-9/]+ [0-9:]+ (?=\[)|\[(?:ALERT|NOTICE|WARNING)\]\s+\(\d+\) : (?:config : )?|Error: )")


class CheckError(Exception):
    """The program refuses the configuration, or is not there; the text is one line."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What to run: it ends with 0 if the configuration is good."""

    command: list[str]
    environ: Mapping[str, str]


def find(program: str) -> str:
    """Return where a program is. Raises CheckError."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SBIN))
    found = shutil.which(program, path=path)
    if found is None:
        raise CheckError(f"the program {program} is not installed")
    return found


def arrange(kind: str, text: str, directory: str, *, whole: bool = True) -> Trial:
    """Write a configuration to a directory, and return how to have it judged.

    *whole*: it is all of it; else the backends only, to which the rest is added. Raises CheckError if the program is missing.
    """
    program = find(kind)
    environ = {**os.environ, "LC_ALL": "C"}
    if kind == "nginx":
        return Trial(_nginx(program, text, directory, whole=whole), environ)
    if kind == "haproxy":
        return Trial(_haproxy(program, text, directory, whole=whole), environ)
    environ |= {"HOME": directory, "XDG_DATA_HOME": directory, "XDG_CONFIG_HOME": directory}  # it keeps things there
    return Trial(_caddy(program, text, directory, whole=whole), environ)


def check(kind: str, text: str, *, whole: bool = True) -> None:
    """Have a configuration judged by nginx, haproxy or caddy. Raises CheckError with what the program said."""
    with tempfile.TemporaryDirectory(prefix="forkserve-") as directory:
        trial = arrange(kind, text, directory, whole=whole)
        try:
            done = subprocess.run(  # noqa: S603 - the program that it is for
                trial.command,
                env=trial.environ,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=TIME,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CheckError(f"{kind} did not say within {TIME:g} s whether the configuration is good") from None
        except OSError as error:
            raise CheckError(f"cannot run {trial.command[0]}: {error.strerror}") from None
        if done.returncode:
            raise CheckError(f"{kind} refuses the configuration: {complaint(done.stdout, directory)}")


def complaint(output: str, directory: str) -> str:
    """Return the line that says what is wrong, of all that a program has printed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    marks = ("[emerg]", "[ALERT]", "Error:")
    found = next((line for line in lines if any(mark in line for mark in marks)), lines[-1] if lines else "it does not say why")
    return (
        re.sub(r"\] [0-9]+#[0-9]+: ", "] ", LOGGED.sub("", found))
        .replace(f"{os.path.realpath(directory)}/", "")
        .replace(f"{directory}/", "")
        .strip()
    )


def _nginx(program: str, text: str, directory: str, *, whole: bool) -> list[str]:
    """Nginx would open its logs and make its directories even for a test, which only root could do where they are."""
    own = "access_log off;" + "".join(
        f" {name}_temp_path {directory}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    if whole:
        text = re.sub(r"^http \{", lambda found: f"{found[0]} {own}", text, count=1, flags=re.MULTILINE)
    else:
        _write(directory, "upstream.conf", text)
        listen = f"listen unix:{directory}/socket;"
        text = f"events {{}}\nhttp {{ {own}\ninclude {directory}/upstream.conf;\nserver {{ {listen} }} }}\n"
    path = _write(directory, "nginx.conf", text)
    return [program, "-t", "-q", "-p", directory, "-c", path, "-g", f"pid {directory}/pid; error_log stderr;"]


def _haproxy(program: str, text: str, directory: str, *, whole: bool) -> list[str]:
    path = _write(directory, "haproxy.cfg", text)
    if whole:
        return [program, "-c", "-f", path]
    defaults = "defaults\n    mode http\n    timeout connect 5s\n    timeout client 1m\n    timeout server 1m\n"
    rest = _write(directory, "rest.cfg", f"{defaults}frontend any\n    bind unix@{directory}/socket\n")
    return [program, "-c", "-f", rest, "-f", path]


def _caddy(program: str, text: str, directory: str, *, whole: bool) -> list[str]:
    if not whole:
        _write(directory, "upstream", text)
        text = ":80 {\n\timport upstream\n}\n"
    path = _write(directory, "Caddyfile", text)
    return [program, "validate", "--adapter", "caddyfile", "--config", path]


def _write(directory: str, name: str, text: str) -> str:
    path = os.path.join(directory, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def write_whole(path: str, text: str) -> bool:
    """Put text into a file so that whoever reads it sees the old text or the new one; return whether it has changed.

    The permissions of a file that is there stay, and so does a symbolic link to it. A device or a pipe is written to. Raises
    OSError.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return True
    path = os.path.realpath(path)
    mode = 0o644
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            mode = os.stat(file.fileno()).st_mode & 0o7777
            if file.read() == text:
                return False
    except FileNotFoundError:
        pass
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=f".{os.path.basename(path)}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return True
