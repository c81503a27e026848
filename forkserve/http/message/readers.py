"""The readers of request heads: in C, in Python, and h11. Each gives the same values, and a refusal has the same status.

- ``c`` (`_head`) reads the ordinary heads, fast; for every other head it returns None, and Python judges.
- ``python`` (`http1`) reads every head, and is the judge of all that are refused.
- ``h11`` reads heads with the h11 library, independently of the other two: the policy is the same, and a head that h11 refuses is
  refused. Whether a request is refused there too tells if the client or this server is at fault.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from forkserve.http.message.errors import RequestError
from forkserve.http.message.fields import USUAL_NAMES, Fields, cgi_key
from forkserve.http.message.http1 import VERSIONS, check_size, finish, is_plain, read_head, read_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.http.message.http1 import ReadHead, RequestLimits, Target

try:
    from forkserve.http.message import _head
except Exception:  # noqa: BLE001 - it was installed without a compiler, or is half installed: Python is used, which is slower
    _head = None  # type: ignore[assignment, unused-ignore]  # the name must exist


def chosen(choice: str) -> str:
    """Return the reader that runs: ``c``, ``python`` or ``h11``.

    Args:
        choice: One of these, or ``auto``, or uvicorn's ``httptools``, which means the same.

    Raises:
        ModuleNotFoundError: The reader in C is chosen and not installed.
    """
    if choice in ("auto", "httptools"):
        return "python" if _head is None else "c"
    if choice == "c" and _head is None:
        raise ModuleNotFoundError(
            "--http c: forkserve was installed without its C extension; install a C compiler and Python's headers and install "
            "forkserve again, or use --http auto"
        )
    return choice


def new_reader(choice: str, limits: RequestLimits) -> ReadHead:
    """Return a function that reads whole heads.

    Args:
        choice: As for `chosen`.
        limits: How much is accepted.

    Raises:
        ModuleNotFoundError: As `chosen`.
    """
    name = chosen(choice)
    if name == "c":
        return _read_with_c(limits)
    return H11Reader(limits).read if name == "h11" else partial(read_head, limits)


def ordinary_reader(limits: RequestLimits) -> Callable[[bytes], tuple[Target, Fields] | None]:
    """Return the reader in C alone, which returns None for a head that it leaves to Python."""
    keys = {name: cgi_key(name) for name in USUAL_NAMES}
    read: Callable[[bytes], tuple[Target, Fields] | None]
    read = _head.Reader(keys, limits.line, limits.fields, limits.head, limits.field).read
    return read


def _read_with_c(limits: RequestLimits) -> ReadHead:
    read_ordinary = ordinary_reader(limits)

    def read(head: bytes) -> tuple[Target, Fields]:
        return read_ordinary(head) or read_head(limits, head)

    return read


class H11Reader:
    """Reads heads with h11.

    Args:
        limits: How much is accepted.
    """

    def __init__(self, limits: RequestLimits) -> None:
        import h11  # noqa: PLC0415 - slow to import, and seldom needed

        self._limits = limits
        self._h11 = h11

    def read(self, head: bytes) -> tuple[Target, Fields]:
        """Return the request line and the fields of a whole head.

        Raises:
            RequestError: As `read_head`, or 400: h11 refuses the head.
        """
        try:
            return self._read(head.removeprefix(b"\r\n"))
        except (RequestError, self._h11.RemoteProtocolError) as error:
            read_head(self._limits, head)  # says why, if it refuses the head too
            raise RequestError(400, "h11 refuses this request") from error

    def _read(self, head: bytes) -> tuple[Target, Fields]:
        # h11 accepts line ends and folded lines that two servers could read in two ways.
        lines = head.split(b"\r\n")
        if not is_plain(head, lines) or any(line.startswith((b" ", b"\t")) for line in lines):
            raise RequestError(400, "h11 does not judge this")
        start, *lines = lines
        if len(start) > self._limits.line:
            raise RequestError(414, "the request line is too long")
        check_size(self._limits, head)
        # Nor does it judge the fields that frame a body: it folds two lengths into one.
        lines = lines[:-2]
        framing = [_framing(line) for line in lines]
        shown = [line for line, pair in zip(lines, framing, strict=True) if pair is None]
        connection = self._h11.Connection(self._h11.SERVER, max_incomplete_event_size=len(head) + 1)
        connection.receive_data(b"\r\n".join((start, *shown, b"", b"")))
        event = connection.next_event()
        if not isinstance(event, self._h11.Request) or (version := VERSIONS.get(b"HTTP/" + event.http_version)) is None:
            raise RequestError(400, "h11 reads no request")
        read = iter(event.headers)
        headers = [pair or next(read) for pair in framing]
        target = read_target(event.method, event.target)
        return target, finish(target, Fields(version, [pair for pair in headers if b"_" not in pair[0]]))


def _framing(line: bytes) -> tuple[bytes, bytes] | None:
    """Return name and value of a line that frames the body; None for other lines."""
    name, _, value = line.partition(b":")
    name = name.lower()
    return (name, value.strip(b" \t")) if name in (b"content-length", b"transfer-encoding") else None
