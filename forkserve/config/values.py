"""Kinds: how the values of settings are read and shown.

Pure. A kind reads text (from the command line or the environment) or a typed value (from TOML or Python), and shows a value in
a form that it reads again as the same value. A value that it cannot read is a ValueError with the whole message; the caller adds
where the value was set.
"""

import inspect
import ipaddress
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

from forkserve.config.addresses import parse_address

T = TypeVar("T")
Pairs = tuple[tuple[str, str], ...]

UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
UNIT_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # a token (RFC 9110, section 5.6.2)
FIELD_VALUE = r"[ -~\xa0-\xff]*"  # latin-1 without control characters
MEANINGFUL = frozenset(  # header fields that the server interprets, sends or drops
    [
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "date",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "server",
        "set-cookie",
        "te",
        "traceparent",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-for",
        "x-forwarded-proto",
    ]
)
SYSLOG_FORM = "syslog:([A-Za-z0-9_./-]{1,48})(?:@(/.*))?"
LOOPBACK = "127.0.0.1"
STATSD_PORT = 8125
NONE = "none"  # instead of the path of a socket
BALANCES = ("least_conn", "round_robin", "ip_hash", "random")
LONGEST_SHOWN = 200  # characters of a value in a message
LARGEST_FACTOR = 1_000_000
LONGEST_SECONDS = 10 * 366 * 86400  # beyond it a timeout overflows the system calls that wait


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One sort of value.

    Attributes:
        metavar: The name of a value in help texts.
        read: Turns text or a typed value into the value, or raises ValueError.
        show: The inverse of `read`.
        many: The flag may be repeated, and `read` takes all occurrences at once.
        switch: The flag takes no value and has a `--no-` twin.
        alone: The value of a flag without one; None: it must have a value.
    """

    metavar: str
    read: Callable[[object], T]
    show: Callable[[T], str] = str
    many: bool = False
    switch: bool = False
    alone: str | None = None


def shown(value: object) -> str:
    """Return *value* for a message: one line of at most LONGEST_SHOWN characters, whatever its `repr` does."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - the user's object, one nested too deeply, or a number of too many digits
        return f"this {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def refuse(value: object, wanted: str) -> NoReturn:
    """Raise a ValueError: *value* is not *wanted*."""
    raise ValueError(f"{shown(value)} is not {wanted}")


def read_text(value: object) -> str:
    """Read a string. Control characters other than the tab, and numbers, are refused."""
    if not isinstance(value, str) or any(not c.isprintable() and c != "\t" for c in value):
        refuse(value, "a plain text")
    return value


def read_name(value: object) -> str:
    """Read the name of a server. Files are named after it, so a slash becomes a dash."""
    return read_text(value).replace("/", "-")


def read_account(value: object) -> str:
    """Read a user or group: a name, or a number as text or, from Python and TOML, as such."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else read_text(value)


def number(value: object, wanted: str, *, low: int, high: int) -> int:
    """Read a whole number from *low* to *high*, in ASCII digits if it is text."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        refuse(value, wanted)
    return value


def count(low: int = 0, high: int = 2**31 - 1, *, auto: bool = False) -> Kind[int]:
    """Build the kind of whole numbers of at least *low*; with *auto*, that word is read as 0."""
    wanted = f"a whole number from {low} to {high}" if high < 2**31 - 1 else (f"a whole number of at least {low}")
    wanted += ", or auto" if auto else ""

    def read(value: object) -> int:
        return 0 if auto and value == "auto" else number(value, wanted, low=low, high=high)

    return Kind("N", read, lambda value: "auto" if auto and value == 0 else str(value))


def read_seconds(value: object) -> float:
    """Read a duration in seconds: 30, 0.5, "30s", "5m", "2h", "1d"; rounded to the microsecond."""
    wanted = "a duration (30, 0.5, 30s, 5m, 2h)"
    seconds = -1.0
    if isinstance(value, str):
        if match := re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18})([smhd]?)", value):
            seconds = float(match[1]) * UNIT_SECONDS[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool) and value <= LONGEST_SECONDS:  # which nan is not
        seconds = float(value)
    if not 0 <= seconds <= LONGEST_SECONDS:
        refuse(value, wanted)
    return abs(round(seconds, 6))  # there is a -0.0


def show_seconds(value: float) -> str:
    """Show a duration in seconds, without the fraction if it is zero."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def read_percentage(value: object) -> float:
    """Read a part of a whole: "1%", "0.2%". A plain number is refused: 1 might mean all."""
    if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%", value)) and float(match[1]) <= 100:
        return round(float(match[1]) / 100, 8)
    refuse(value, "a percentage (1%, 0.2%, up to 100%)")


def read_factor(value: object) -> float:
    """Read a factor of at least 1: 2, 1.5, "2x"."""
    found = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
    if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)x?", value)):
        found = float(match[1])
    if not 1 <= found < LARGEST_FACTOR:
        refuse(value, "a factor of at least 1 (1.5, 2, 2x)")
    return round(found, 6)


def read_bytes(value: object) -> int:
    """Read a size in bytes: 65536, "512k", "10m", "1g"; also "10MB" and "10MiB"."""
    wanted = "a size (65536, 512k, 10m, 1g)"
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,18})([kmg]?)(?:i?b)?", value.lower())
        value = int(match[1]) * UNIT_BYTES[match[2]] if match else refuse(value, wanted)
    return number(value, wanted, low=0, high=2**62)


def show_bytes(value: int) -> str:
    """Show a size in the largest unit that makes it a whole number."""
    for unit in ("g", "m", "k"):
        if value and value % UNIT_BYTES[unit] == 0:
            return f"{value // UNIT_BYTES[unit]}{unit}"
    return str(value)


def read_switch(value: object) -> bool:
    """Read a truth value: a boolean, or text as usual in environment variables."""
    word = value.lower() if isinstance(value, str) else value
    if word is True or word in ("true", "yes", "y", "on", "1"):
        return True
    if word is False or word in ("false", "no", "n", "off", "0"):
        return False
    refuse(value, "true or false")


def read_mode(value: object) -> int:
    """Read file permissions: octal text ("660", "0660") or a number (0o660)."""
    wanted = 'octal permissions such as "0660"'
    if isinstance(value, str):
        value = int(value, 8) if re.fullmatch(r"(0o)?[0-7]{1,4}", value) else refuse(value, wanted)
    return number(value, wanted, low=0, high=0o777)


def choice(*words: str, alone: str | None = None, **also: str) -> Kind[str]:
    """Build the kind of *words*, in any case; *also* maps other spellings to them, and `true` and `false` for booleans."""

    def read(value: object) -> str:
        word = str(value).lower() if isinstance(value, str | bool) else ""
        word = also.get(word, word)
        return word if word in words else refuse(value, "one of " + ", ".join(words))

    return Kind("|".join(words), read, alone=alone)


def items(value: object, separator: str) -> list[object]:
    """Split at *separator* what was given once (text) or several times (a list)."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()]
    if isinstance(value, Iterable):
        return [part for one in value for part in (items(one, separator) if isinstance(one, str) else [one])]
    refuse(value, "a list of texts")


def many(metavar: str, read_one: Callable[[object], str] = read_text) -> Kind[tuple[str, ...]]:
    """Build the kind of lists of texts; one text may hold several, separated by commas."""

    def read(value: object) -> tuple[str, ...]:
        return tuple(read_one(item) for item in items(value, ","))

    return Kind(metavar, read, ",".join, many=True)


def read_network(value: object) -> str:
    """Read a peer to trust: an IP address, a network in CIDR notation, `unix`, or `*` for all."""
    if value in ("*", "unix"):
        return str(value)
    try:
        if "/" in (peer := read_text(value)):
            return str(ipaddress.ip_network(peer, strict=False))
        return str(ipaddress.ip_address(peer))
    except ValueError:
        refuse(value, "an IP address, a network (10.0.0.0/8), unix or *")


def pairs(separator: str, name: str, wanted: str, value: str = ".*") -> Kind[Pairs]:
    """Build the kind of name and value pairs, one per line of text; *name* and *value* are their patterns.

    Lines, because a comma is part of many values. A table (TOML, Python dict) is accepted too.
    """
    name_pattern, value_pattern = re.compile(name), re.compile(value)

    def read_one(item: object) -> tuple[str, str]:
        left, found, right = read_text(item).partition(separator)
        right = right.strip()
        if not found or not name_pattern.fullmatch(left) or not value_pattern.fullmatch(right):
            refuse(item, wanted)
        return left, right

    def read(given: object) -> Pairs:
        if isinstance(given, Mapping):
            given = list(given.items())
        if isinstance(given, tuple | list):
            given = [separator.join(map(str, one)) if isinstance(one, tuple | list) else one for one in given]
        return tuple(read_one(item) for item in items(given, "\n"))

    return Kind(
        wanted.rpartition(" ")[2], read, lambda value: "\n".join(left + separator + right for left, right in value), many=True
    )


def read_address(value: object) -> str:
    """Read an address to listen on, and return its usual form."""
    return str(parse_address(read_text(value)))


def read_admin_address(value: object) -> str:
    """Read the address of --admin. Without a host it is 127.0.0.1, because what it shows is not for everybody."""
    given = read_text(value)
    if given.startswith("fd://"):
        refuse(value, "HOST:PORT, PORT or unix:PATH")
    port = given.removeprefix(":")
    return str(parse_address(f"{LOOPBACK}:{port}" if port.isdecimal() else given, port=None))


def read_statsd_address(value: object) -> str:
    """Read the address of a statsd server."""
    address = parse_address(read_text(value), port=STATSD_PORT)
    if address.kind == "fd" or not address.port + len(address.path):
        refuse(value, "HOST:PORT or unix:PATH")
    return str(address)


def read_statsd_prefix(value: object) -> str:
    """Read what stands in front of names for statsd, without the dots at its end."""
    found = value if value == "" else read_text(value)
    if not isinstance(found, str) or not re.fullmatch(r"[!-~]*", found) or set(found) & set(":|@#"):
        refuse(value, "a name of ASCII characters other than : | @ #")
    return found.rstrip(".")


def read_statsd_tags(value: object) -> str:
    """Read tags of Datadog."""
    found = value if value == "" else read_text(value)
    if not isinstance(found, str) or not found.isprintable() or "|" in found:
        refuse(value, "NAME:VALUE,NAME:VALUE")
    return found


def read_prefix(value: object) -> str:
    """Read the path that an app is mounted below: empty, or with a leading slash and no trailing one."""
    prefix = read_text(value).rstrip("/")
    return prefix if prefix == "" or prefix.startswith("/") else refuse(value, "a path (/api)")


def read_cert_reqs(value: object) -> int:
    """Read whether client certificates are required, as a word or as the number of the module ssl."""
    words = ("none", "optional", "required")
    if isinstance(value, str) and value.lower() in words:
        return words.index(value.lower())
    return number(value, "one of none, optional, required (or 0, 1, 2)", low=0, high=2)


def read_command(value: object) -> str:
    """Read a program and its arguments, split as a shell does."""
    try:
        found = shlex.split(command := read_text(value))
    except ValueError as error:
        refuse(value, f"a command line ({error})")
    return command if found else refuse(value, "a command line")


def read_balance(value: object) -> str:
    """Read how a front end selects a worker: one of BALANCES, or `hash KEY` with a key of nginx variables."""
    way, _, key = read_text(value).strip().partition(" ")
    if way == "hash":
        if not re.fullmatch(r"(?:\$[a-z0-9_]+|[A-Za-z0-9_.:/-])+", key := key.strip()):
            refuse(value, "a hash with a key of nginx variables, as in 'hash $cookie_session'")
        return f"hash {key}"
    return way if way in BALANCES and not key else refuse(value, f"one of {', '.join(BALANCES)}, or 'hash KEY'")


def never_runs(function: Callable[..., object]) -> bool:
    """Whether a call only makes an object that somebody must await or iterate."""
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    return any(kind(one) for kind in kinds for one in (function, getattr(function, "__call__", None)))  # noqa: B004


def read_output(value: object) -> object:
    """Read a destination of output: a path, - or `syslog:NAME`; from Python also a file object, or a function called per line."""
    if hasattr(value, "fileno"):
        try:
            value.fileno()
        except (OSError, ValueError):  # closed, or only in memory
            refuse(value, "a file object with a descriptor")
        return value
    if callable(value):
        return refuse(value, "a function without `async` and `yield`") if never_runs(value) else value
    return read_log(value)


def read_log(value: object) -> str:
    """Read a destination of a log: a path, - or `syslog:NAME`."""
    if isinstance(value, str) and value.startswith("syslog:") and not re.fullmatch(SYSLOG_FORM, value):
        refuse(value, "of the form syslog:NAME, or syslog:NAME@/path/of/its/socket")
    return read_text(value)


def read_field_name(value: object) -> str:
    """Read the name of a header field."""
    name = read_text(value)
    if re.fullmatch("[A-Za-z0-9-]+", name) and name.lower() not in MEANINGFUL:
        return name
    return refuse(value, "the name of a header without a meaning in HTTP, as in X-Request-ID")


def read_mapping(value: object) -> object:
    """Read a mapping, or JSON text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            refuse(value, f"JSON ({error})")
    return value if isinstance(value, Mapping) else refuse(value, "a mapping")


text = Kind("TEXT", read_text)
title = Kind("TEXT", read_name)
account = Kind("TEXT", read_account)
output = Kind("PATH", read_output)  # made absolute too if it is a path,
log = Kind("PATH", read_log)  # as this is
field_name = Kind("NAME", read_field_name)
path = Kind("PATH", read_text)  # `load` makes all kinds of path absolute;
file = Kind("FILE", read_text)  # it checks that a file exists,
folder = Kind("DIR", read_text)  # and a folder
socket = Kind("PATH|none", read_text)
folders = many("DIR")
secret = Kind("SECRET", read_text)  # never shown
seconds = Kind("SECONDS", read_seconds, show_seconds)
percentage = Kind("PERCENT", read_percentage, lambda value: f"{value * 100:.6f}".rstrip("0").rstrip(".") + "%")
factor = Kind("FACTOR", read_factor, lambda value: f"{show_seconds(value)}x")
size = Kind("BYTES", read_bytes, show_bytes)
switch = Kind("", read_switch, lambda value: "true" if value else "false", switch=True)
mode = Kind("MODE", read_mode, lambda value: f"0{value:03o}")
prefix = Kind("PATH", read_prefix)
command = Kind("COMMAND", read_command)
balance = Kind("|".join([*BALANCES, "hash KEY"]), read_balance)
variables = pairs("=", r"[^=\s]+", "a variable of the form NAME=VALUE")
mounts = pairs("=", r"/[^=?#]*", "a path and a directory of the form URL=DIR", ".+")  # `load` makes the directories absolute
headers = pairs(":", FIELD_NAME, "a header of the form NAME:VALUE", FIELD_VALUE)
cert_reqs = Kind("0|1|2", read_cert_reqs)
PROXY_WORDS = {"true": "auto", "1": "auto", "false": "off", "0": "off", "none": "off"}  # of gunicorn
proxy_protocol = choice("off", "v1", "v2", "auto", alone="auto", **PROXY_WORDS)
mapping = Kind("JSON", read_mapping, lambda value: json.dumps(value, default=repr))
peers = many("PEER", read_network)
addresses = many("ADDRESS", read_address)
admin_address = Kind("ADDRESS", read_admin_address)
statsd_address = Kind("ADDRESS", read_statsd_address)
statsd_prefix = Kind("NAME", read_statsd_prefix)
statsd_tags = Kind("TAGS", read_statsd_tags)
