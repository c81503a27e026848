"""statsd: what happened in the last second, as lines with gunicorn's names, and the socket that they are sent from.

Counters and durations are the differences between two readings. A second's durations come from a histogram: each is sent as the
middle of its bucket, so it is at most 6 % off. Of more than MOST_TIMINGS, that many are sent, at equal distances in their order,
with the sample rate. So the count is right, since servers divide by the rate; and so are percentiles, also of servers that do not
weigh values by their rate, because the values that are sent are spread as all are.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any, Final

from forkserve.base.series import Buckets, Family
from forkserve.base.tally import NAMES, SECONDS
from forkserve.config.addresses import parse_address
from forkserve.ops.link import MasterSilentError

if TYPE_CHECKING:
    from forkserve.config.addresses import Address
    from forkserve.ops.link import MasterLink

MOST_TIMINGS: Final = 200
LARGEST: Final = 1432  # bytes of a datagram, which no network on the way splits
EVERY: Final = 1.0  # seconds
LOOK_UP_EVERY: Final = 60.0  # seconds for which the addresses of a host's name are used
LOGGED: Final = "forkserve_log_records"
LEVELS: Final = ("critical", "error", "warning", "exception")

_MIDDLES: Final = {
    name: (low + high) / 2 * 1000 for name, low, high in zip(NAMES, (0.0, *SECONDS), (*SECONDS, SECONDS[-1]), strict=True)
}
"""The middle of each bucket in milliseconds, by its name in the status."""
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.-]")


def timings(buckets: Mapping[str, int], most: int = MOST_TIMINGS) -> tuple[list[float], float]:
    """Return durations in milliseconds that stand for those in the buckets of a histogram, and the sample rate.

    Args:
        buckets: How many durations are in each bucket, by its upper bound in seconds, as in the status.
        most: How many values are returned at most.
    """
    ordered = [(_middle(name), count) for name, count in sorted(buckets.items(), key=lambda one: float(one[0])) if count > 0]
    total = sum(count for _, count in ordered)
    if total <= most:
        return [value for value, count in ordered for _ in range(count)], 1.0
    found: list[float] = []
    passed = 0
    for value, count in ordered:
        passed += count
        while len(found) < most and (len(found) + 0.5) * total / most < passed:
            found.append(value)
    return found, most / total


def _middle(name: str) -> float:
    """Return the middle of a bucket; of another version's bucket, of which only the upper bound is known, about that."""
    return _MIDDLES[name] if name in _MIDDLES else float(name) * 1000 / sqrt(1.12)


class Lines:
    """Writes the lines. Pure.

    Args:
        prefix: In front of each name.
        tags: At the end of each line, as Datadog has them. If there are any, labels of the app's metrics become tags too;
            otherwise their values become parts of the name.
    """

    def __init__(self, prefix: str, tags: str) -> None:
        self._prefix = prefix and prefix + "."
        self._tags = tags
        self._before: dict[tuple[str, str], float] | None = None  # counters, by name and tags
        self._buckets: Mapping[str, int] = {}

    def next(self, status: Mapping[str, Any], families: Iterable[Family]) -> list[str]:
        """Return what there is to send after this reading. Nothing is counted at the first one."""
        first = self._before is None
        lines = list(self._gauges(status))
        counters = dict(self._server_counters(status))
        for family in families:
            lines += self._app_gauges(family)
            counters.update(self._app_counters(family))
        before = self._before or {}
        for (name, tags), value in counters.items():
            if not first and (n := value - before.get((name, tags), 0)) > 0:
                lines.append(self._line(name, f"{_number(n)}|c", tags))
        buckets: Mapping[str, int] = status["totals"]["latency"]["buckets"]
        if not first:
            new = {name: count - self._buckets.get(name, 0) for name, count in buckets.items()}
            values, rate = timings(new)
            sampled = "" if rate == 1 else f"|@{rate:.6g}"
            lines += [self._line("gunicorn.request.duration", f"{_number(value)}|ms{sampled}") for value in values]
        self._before, self._buckets = counters, buckets
        return lines

    def _line(self, name: str, value: str, tags: str = "") -> str:
        shown = ",".join(filter(None, (self._tags, tags)))
        return f"{self._prefix}{name}:{value}{'|#' if shown else ''}{shown}"

    def _gauges(self, status: Mapping[str, Any]) -> Iterator[str]:
        yield self._line("gunicorn.workers", f"{sum(one['pid'] is not None for one in status['workers'])}|g")
        queues = [one["accept_queue"] for one in status["listeners"] if one.get("accept_queue") is not None]
        if queues:
            yield self._line("gunicorn.backlog", f"{sum(queues)}|g")

    @staticmethod
    def _server_counters(status: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], float]]:
        totals = status["totals"]
        yield ("gunicorn.requests", ""), sum(totals["responses"].values())
        for code, count in totals["responses"].items():
            yield (f"gunicorn.request.status.{code}", ""), count

    def _app_gauges(self, family: Family) -> Iterator[str]:
        for one in family.samples:
            if family.kind == "gauge" and not isinstance(one.value, Buckets) and isfinite(one.value):
                name, tags = self._named(family.name, one.labels)
                if one.value < 0:  # a sign means a change of the value
                    yield self._line(name, "0|g", tags)
                yield self._line(name, f"{_number(one.value)}|g", tags)

    def _app_counters(self, family: Family) -> Iterator[tuple[tuple[str, str], float]]:
        for one in family.samples:
            name, tags = self._named(family.name, one.labels)
            if family.name == LOGGED:
                if (level := one.labels["level"]) in LEVELS and not isinstance(one.value, Buckets):
                    yield (f"gunicorn.log.{level}", ""), one.value
            elif isinstance(one.value, Buckets):
                yield (f"{name}.count", tags), one.value.count
                yield (f"{name}.sum", tags), one.value.sum
            elif family.kind == "counter":
                yield (name, tags), one.value

    def _named(self, name: str, labels: Mapping[str, str]) -> tuple[str, str]:
        if self._tags:
            return name, ",".join(f"{label}:{_fit(value)}" for label, value in labels.items())
        return ".".join([name, *(_fit(value).replace(".", "_") for value in labels.values())]), ""


def _fit(value: str) -> str:
    return _UNFIT.sub("_", value) or "_"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.10g}"


def datagrams(lines: Sequence[str], largest: int = LARGEST) -> Iterator[bytes]:
    """Join lines to datagrams of at most `largest` bytes; a longer line is left out."""
    found: list[bytes] = []
    size = 0
    for line in lines:
        data = line.encode("utf-8", "replace")
        if len(data) > largest:
            continue
        if found and size + len(data) > largest:
            yield b"\n".join(found)
            found, size = [], 0
        found.append(data)
        size += len(data) + 1
    if found:
        yield b"\n".join(found)


class Sender:
    """Sends datagrams; none is sent twice, and nothing waits for the receiver. In the admin process.

    Args:
        address: Where to.
        complain: Called with the first failure.
    """

    def __init__(self, address: Address, complain: Callable[[str], object]) -> None:
        self._address, self._complain = address, complain
        self._complained = False
        self._socket: socket.socket | None = None
        self._until = 0.0

    async def send(self, data: Iterable[bytes]) -> None:
        """Send these datagrams. What cannot be sent is dropped."""
        loop = asyncio.get_running_loop()
        try:
            if self._socket is None or loop.time() > self._until:
                self.close()
                self._socket = await self._open(loop)
                self._until = loop.time() + LOOK_UP_EVERY
            for one in data:
                self._send(self._socket, one)
        except OSError as error:
            self.close()  # a server may have made a new socket at the path
            self._failed(error)

    def _send(self, sock: socket.socket, data: bytes) -> None:
        try:
            sock.send(data)
        except ConnectionRefusedError as error:
            if self._address.kind == "unix":
                raise
            self._failed(error)  # so the host has said of an earlier datagram; this one was not sent
            with contextlib.suppress(ConnectionRefusedError):
                sock.send(data)

    def _failed(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            self._complain(error.strerror or str(error))

    async def _open(self, loop: asyncio.AbstractEventLoop) -> socket.socket:
        if self._address.kind == "unix":
            path = self._address.path
            return _connected(socket.AF_UNIX, f"\0{path[1:]}" if path.startswith("@") else path)
        host, port = self._address.host, self._address.port
        family, _, _, _, where = (await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM))[0]
        return _connected(family, where)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _connected(family: int, where: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.connect(where)
    except OSError:
        sock.close()
        raise
    return sock


async def run(
    link: MasterLink, families: Callable[[], Iterable[Family]], settings: Any, complain: Callable[[str], object]
) -> None:
    """Send a batch each second, until the task is cancelled. In the admin process.

    Args:
        link: Asks the master for the status.
        families: Reads the metrics of the app.
        settings: Those of the server.
        complain: Called with the first failure, in words.
    """
    loop = asyncio.get_running_loop()
    sender = Sender(
        parse_address(settings.statsd),
        lambda why: complain(f"--statsd {settings.statsd}: {why}; metrics are dropped until it can be reached"),
    )
    lines = Lines(settings.statsd_prefix, settings.dogstatsd_tags)
    at = loop.time()
    try:
        while True:
            try:
                found = lines.next(await link.status(), families())
            except MasterSilentError:
                found = []
            await sender.send(datagrams(found))
            at = max(at + EVERY, loop.time())
            await asyncio.sleep(at - loop.time())
    finally:
        sender.close()
