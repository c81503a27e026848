"""Lines for statsd: gunicorn's names, the same sums as here, percentiles that hold, and a receiver that is slow, dead or absent."""

from __future__ import annotations

import asyncio
import random
import socket
from bisect import bisect_left
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.base.series import Buckets, Family, Sample
from forkserve.base.tally import NAMES, SECONDS
from forkserve.config import values
from forkserve.config.addresses import parse_address
from forkserve.ops import statsd
from forkserve.ops.statsd import Lines, Sender, datagrams, timings
from tests.unit.ops.statsd_server import StatsdServer

DURATION = "gunicorn.request.duration"


def status(*, seconds: list[float] = [], codes: dict[str, int] | None = None, queues: tuple[int | None, ...] = (3, None)) -> Any:  # noqa: B006
    buckets: dict[str, int] = {}
    for one in seconds:
        name = NAMES[bisect_left(SECONDS, one)]
        buckets[name] = buckets.get(name, 0) + 1
    return {
        "workers": [{"pid": 1}, {"pid": 2}, {"pid": None}],
        "listeners": [{"accept_queue": one} for one in queues] + [{}],
        "totals": {"responses": codes or {}, "latency": {"buckets": buckets, "count": len(seconds), "sum_s": sum(seconds)}},
    }


def sent(lines: list[str]) -> StatsdServer:
    server = StatsdServer()
    for one in datagrams(lines):
        assert len(one) <= 1432
        server.receive(one)
    return server


def test_the_names_are_gunicorns() -> None:
    lines = Lines("shop", "")
    lines.next(status(codes={"200": 5}), [])
    found = sent(lines.next(status(codes={"200": 7, "404": 1}, seconds=[0.010]), []))
    assert found.counters == {
        "shop.gunicorn.requests": 3,
        "shop.gunicorn.request.status.200": 2,
        "shop.gunicorn.request.status.404": 1,
    }
    assert found.gauges == {"shop.gunicorn.workers": 2, "shop.gunicorn.backlog": 3}
    assert found.durations[f"shop.{DURATION}"] == [pytest.approx(10, rel=0.06)]
    assert found.number[f"shop.{DURATION}"] == 1
    assert not sent(lines.next(status(codes={"200": 7, "404": 1}, seconds=[0.010], queues=()), [])).counters


def test_what_was_logged_is_counted() -> None:
    def logged(**levels: int) -> list[Family]:
        return [Family(statsd.LOGGED, "counter", "", [Sample({"level": level}, float(n)) for level, n in levels.items()])]

    lines = Lines("", "")
    lines.next(status(), logged(warning=1))
    found = sent(lines.next(status(), logged(warning=3, error=1, exception=2, critical=1, notice=5)))
    assert found.counters == {
        f"gunicorn.log.{level}": n for level, n in (("warning", 2), ("error", 1), ("exception", 2), ("critical", 1))
    }


APP = [
    Family("orders", "counter", "", [Sample({"shop": "north.1"}, 4.0), Sample({"shop": "é|#"}, 1.0)]),
    Family("depth", "gauge", "", [Sample({}, -2.5)]),
    Family("nothing", "gauge", "", [Sample({}, float("nan"))]),
    Family("seconds", "histogram", "", [Sample({"step": ""}, Buckets([(1.0, 2), (float("inf"), 1)], 4.5))]),
]


def test_metrics_of_the_app_are_sent_with_labels_in_the_name() -> None:
    lines = Lines("", "")
    lines.next(status(queues=()), [])
    found = sent(lines.next(status(queues=()), APP))
    assert found.counters == {"orders.north_1": 4, "orders.___": 1, "seconds._.count": 3, "seconds._.sum": 4.5}
    assert found.gauges == {"gunicorn.workers": 2, "depth": -2.5}


def test_with_tags_labels_are_tags() -> None:
    lines = Lines("", "env:prod,team:a")
    lines.next(status(queues=()), [])
    found = sent(lines.next(status(queues=()), APP))
    tags = "#env:prod,team:a"
    assert found.counters == {
        f"orders{tags},shop:north.1": 4,
        f"orders{tags},shop:___": 1,
        f"seconds.count{tags},step:_": 3,
        f"seconds.sum{tags},step:_": 4.5,
    }
    assert found.gauges == {f"gunicorn.workers{tags}": 2, f"depth{tags}": -2.5}


@given(st.lists(st.floats(0.0002, 90), max_size=300))
def test_few_durations_are_all_sent(seconds: list[float]) -> None:
    buckets = status(seconds=seconds)["totals"]["latency"]["buckets"]
    found, rate = timings(buckets, most=300)
    assert rate == 1
    assert found == pytest.approx([1000 * one for one in sorted(seconds)], rel=0.06)


@given(st.integers(0, 1 << 32), st.integers(201, 5000), st.integers(1, 200))
def test_of_many_durations_the_number_and_the_percentiles_are_right(seed: int, number: int, most: int) -> None:
    chance = random.Random(seed)
    seconds = sorted(chance.lognormvariate(-3, 1) for _ in range(number))
    buckets = status(seconds=seconds)["totals"]["latency"]["buckets"]
    found, rate = timings(buckets, most)
    assert len(found) == most
    assert len(found) / rate == pytest.approx(number)
    for q in (0.5, 0.9, 0.99):
        at = min(int(q * most), most - 1)
        low, high = int(at * number / most), min(int((at + 1) * number / most), number - 1)
        assert seconds[low] * 0.94 <= found[at] / 1000 <= seconds[high] * 1.06


def test_the_server_computes_the_number_from_the_rate() -> None:
    lines = Lines("", "")
    lines.next(status(), [])
    found = sent(lines.next(status(seconds=[0.01] * 900 + [1.0] * 100), []))
    assert found.number[DURATION] == pytest.approx(1000, rel=1e-4)
    assert (found.percentile(DURATION, 0.5), found.percentile(DURATION, 0.95)) == pytest.approx((10, 1000), rel=0.06)


def test_buckets_of_another_version_and_long_durations() -> None:
    assert timings({"0.5": 1, "inf": 1, "0.0001": 1})[0] == pytest.approx([0.05, 472.5, 100_000], rel=0.01)
    assert timings({"0.5": -1, "1.0": 0}) == ([], 1)


def test_a_line_that_is_too_long_is_left_out() -> None:
    assert list(datagrams(["a" * 5, "b" * 20, "c" * 4, "d"], largest=10)) == [b"aaaaa\ncccc", b"d"]


# Settings.


@pytest.mark.parametrize(
    ("given_", "means"),
    [
        ("localhost:9125", "localhost:9125"),
        ("localhost", "localhost:8125"),
        ("[::1]", "[::1]:8125"),
        ("unix:///run/s.sock", "unix:/run/s.sock"),
    ],
)
def test_addresses(given_: str, means: str) -> None:
    assert values.statsd_address.read(given_) == means


@pytest.mark.parametrize("wrong", ["", "fd://3", "h:0", "h:x", 8125])
def test_wrong_addresses(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        values.statsd_address.read(wrong)


def test_prefix_and_tags() -> None:
    assert values.statsd_prefix.read("shop..") == "shop"
    assert values.statsd_prefix.read("") == values.statsd_tags.read("") == ""
    assert values.statsd_tags.read("env:prod,a") == "env:prod,a"
    for wrong in ("a:b", "a b", "a|b", "é", 3):
        with pytest.raises(ValueError, match=r"is not a (name|plain text)"):
            values.statsd_prefix.read(wrong)
    for wrong in ("a|b", "a\nb", 3):
        with pytest.raises(ValueError, match=r"is not (NAME:VALUE|a plain text)"):
            values.statsd_tags.read(wrong)


# The socket.


def receiver(family: int, where: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(10)
    sock.bind(where)
    return sock


def send(address: str, *batches: list[bytes], complaints: list[str]) -> None:
    async def run() -> None:
        sender = Sender(parse_address(address), complaints.append)
        for batch in batches:
            await sender.send(batch)
        sender.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("family", "host", "form"), [(socket.AF_INET, "127.0.0.1", "127.0.0.1:{}"), (socket.AF_INET6, "::1", "[::1]:{}")]
)
def test_it_is_sent_over_udp(family: int, host: str, form: str) -> None:
    complaints: list[str] = []
    with receiver(family, (host, 0)) as sock:
        send(form.format(sock.getsockname()[1]), [b"a:1|c", b"b:1|c"], [], [b"c:1|c"], complaints=complaints)
        assert [sock.recv(100) for _ in range(3)] == [b"a:1|c", b"b:1|c", b"c:1|c"]
    assert complaints == []


def test_it_is_sent_to_a_unix_socket_which_may_be_made_again(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    complaints: list[str] = []

    async def run() -> None:
        sender = Sender(parse_address(f"unix:{path}"), complaints.append)
        await sender.send([b"early:1|c"])  # there is no server yet
        for _ in range(2):
            with receiver(socket.AF_UNIX, str(path)) as sock:
                await sender.send([b"a:1|c"])
                await sender.send([b"a:1|c"])  # the first batch after a restart of the server may be lost
                assert sock.recv(100) == b"a:1|c"
            path.unlink()
        sender.close()

    asyncio.run(run())
    assert complaints == ["No such file or directory"]


def test_a_dead_receiver_is_one_complaint_and_loses_nothing_later() -> None:
    with receiver(socket.AF_INET, ("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    complaints: list[str] = []

    async def run() -> None:
        sender = Sender(parse_address(f"127.0.0.1:{port}"), complaints.append)
        for _ in range(5):
            await sender.send([b"a:1|c", b"a:1|c"])
        with receiver(socket.AF_INET, ("127.0.0.1", port)) as sock:
            await sender.send([b"b:1|c", b"c:1|c"])
            assert [sock.recv(100) for _ in range(2)] == [b"b:1|c", b"c:1|c"]
        sender.close()

    asyncio.run(run())
    assert complaints == ["Connection refused"]


def test_a_name_that_does_not_resolve_is_one_complaint() -> None:
    complaints: list[str] = []
    send("no-such-host.invalid:8125", [b"a:1|c"], [b"a:1|c"], complaints=complaints)
    assert len(complaints) == 1


def test_a_receiver_that_does_not_read_does_not_hold_the_sender(tmp_path: Path) -> None:
    complaints: list[str] = []
    with receiver(socket.AF_UNIX, str(tmp_path / "s.sock")):
        send(f"unix:{tmp_path / 's.sock'}", *[[b"x" * 1400] * 200] * 5, complaints=complaints)
    assert complaints == ["Resource temporarily unavailable"]
