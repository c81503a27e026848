"""Trial: whether nginx accepts an upstream file, tested by a run of nginx that leaves nothing behind, however it ends.

nginx reads one configuration from a file without a name, which has no other file that it could write to.
"""

from __future__ import annotations

import grp
import os
import re
import tempfile

from forkserve.frontend.check import CheckError, complaint, find, refused

MOST = 10  # the user's own variables that the backends may contain
UNKNOWN = re.compile(r'unknown "([a-z0-9_]+)" variable')
_INPUT = "/dev/stdin"
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def check_upstream(text: str) -> None:
    """Check the text of an upstream file with nginx. Raises CheckError with its message; line numbers are those of the text."""
    program, variables = find("nginx"), list[str]()
    while output := _refused(program, text, variables):
        said = complaint(output, "/dev").replace("stdin", "upstream.conf")
        unknown = UNKNOWN.search(said)
        if unknown is None or unknown[1] in variables or len(variables) == MOST:
            raise CheckError(f"nginx refuses the configuration: {said}")
        variables.append(unknown[1])  # `hash $my_key`: the rest of the user's own configuration defines it


def _refused(program: str, text: str, variables: list[str]) -> str | None:
    """Return the output of nginx if it refuses the text, with these variables defined. Raises CheckError if it cannot be run."""
    # Even for a test, nginx makes its directories (not if a file is there), and as root gives them to its user.
    user = f"user root {grp.getgrgid(0).gr_name}; " if os.geteuid() == 0 else ""
    own = "access_log off; " + " ".join(f"{name}_temp_path {_INPUT};" for name in _TEMPORARY)
    own += "".join(f" map '' ${name} {{ default ''; }}" for name in variables)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        file.write(f"{user}pid /dev/null; error_log stderr; events {{}} http {{ {own} {text}\n}}\n")
        file.flush()
        command = [program, "-t", "-q", "-p", os.devnull, "-c", _INPUT]  # no relative name leads anywhere
        return refused("nginx", command, {**os.environ, "LC_ALL": "C"}, stdin=file)
