# one case, one line
"""The type of a case of the corpus, and helpers to write cases.

Each case names the clause that decides it. Where a clause leaves a choice, every allowed status is listed; 0 means that
there is no response. A request behind an invalid one on the same connection (`BEHIND`) must never reach the application.
"""

from dataclasses import dataclass, field
from typing import Any

HOST = b"Host: a\r\n"
END = b"\r\n"
BEHIND = b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n"
LINE_LIMIT = 16384
FIELDS_LIMIT = 128
HEAD_LIMIT = 65536

Fields = tuple[tuple[str, str], ...]
Status = int | frozenset[int]


@dataclass(frozen=True)
class Seen:
    """What the application must see of one request at least; ``absent`` lists names, or ``name: value``, that it must not see."""

    method: str = "GET"
    path: str = "/"
    body: bytes = b""
    query: str = ""
    fields: Fields = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One conversation.

    Attributes:
        name: The unusual property of the case.
        data: All bytes that the client sends.
        statuses: The statuses of the responses, in order.
        seen: The complete requests that the application receives, in order.
        opens: Whether the connection stays open after the last response; None: the server decides.
        begins: Whether the application may be called for a request with a bad body; it never gets that body as complete.
        ends: Whether the client half-closes the connection after the data.
        closed: Whether ``BEHIND`` may follow the data; the server must ignore it.
    """

    name: str
    data: bytes = field(repr=False)
    statuses: tuple[Status, ...]
    seen: tuple[Seen, ...] = ()
    opens: bool | None = False
    begins: bool = False
    ends: bool = False
    closed: bool = True


def good(name: str, data: bytes, *seen: Seen, opens: bool = True) -> Case:
    """A case whose requests are all served."""
    return Case(name, data, (200,) * len(seen), seen, opens=opens, closed=not opens)


def bad(name: str, data: bytes, *statuses: int, **more: Any) -> Case:
    """A case whose only request is refused."""
    return Case(name, data, (statuses[0] if len(statuses) == 1 else frozenset(statuses or (400,)),), **more)


def head(*lines: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = HOST) -> bytes:
    """A request head."""
    return start + END + host + b"".join(line + END for line in lines) + END


def post(*lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """A POST."""
    return head(*lines, start=b"POST /p HTTP/" + version) + body


def chunks(body: bytes, *lines: bytes) -> bytes:
    """A POST whose chunked body is exactly ``body``."""
    return post(b"Transfer-Encoding: chunked", *lines, body=body)


def allowed(status: int, expected: Status) -> bool:
    """Whether a status is the expected one, or one of the expected ones."""
    return status in expected if isinstance(expected, frozenset) else status == expected


def sent(case: Case) -> bytes:
    """The bytes of a case; where the connection must close, followed by a request that must never be answered."""
    return case.data + BEHIND if case.closed else case.data


def check_fields(seen: Seen, headers: list[Any]) -> None:
    """Check the header section that the application received."""
    for name, value in seen.fields:
        assert [each for key, each in headers if key == name] == [value], headers
    assert not {name for name, _ in headers} & set(seen.absent), headers
    assert not {f"{name}: {value}" for name, value in headers} & set(seen.absent), headers
