"""The readers of request heads give the same values, and refuse the same heads with the same status and message.

The reader in C may answer None, which leaves the head to Python; for ordinary heads it must not.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkserve.http.message.errors import RequestError
from forkserve.http.message.readers import new_reader, ordinary_reader
from tests.integration.http.corpus import CASES
from tests.integration.http.talk import LIMITS, READERS
from tests.unit.http.message.heads import BASES, LARGE, PIECES, SMALL, values
from tests.unit.http.message.ordinary_heads import ORDINARY

if TYPE_CHECKING:
    from forkserve.http.message.http1 import RequestLimits


reading = cache(new_reader)


def outcome(reader: str, head: bytes, limits: RequestLimits) -> object:
    """Return the values of a head, or status and message of its refusal."""
    try:
        return values(*reading(reader, limits)(head))
    except RequestError as refusal:
        return refusal.status, refusal.detail


def check(head: bytes, limits: RequestLimits) -> None:
    """Check that all readers agree on a head."""
    outcomes = {reader: outcome(reader, head, limits) for reader in READERS}
    assert outcomes == dict.fromkeys(READERS, outcomes["python"]), (head, limits)


def mutated(random: Random) -> bytes:
    """Return a head that is nearly an ordinary one."""
    head = random.choice(BASES)
    for _ in range(random.randrange(5)):
        starts = [0, *(at + 2 for at in range(len(head) - 3) if head[at : at + 2] == b"\r\n")]
        at = random.choice(starts) if random.randrange(2) else random.randrange(len(head) + 1)
        piece = random.choice((random.choice(PIECES), random.randbytes(1), b""))
        head = head[:at] + piece + head[at + random.choice((0, 0, 0, 1, 1, 2, 5)) :]
    end = head.find(b"\r\n\r\n")
    return head[: end + 4] if end >= 0 else head.rstrip(b"\r\n") + b"\r\n\r\n"


def check_mutated(seed: int) -> None:
    random = Random(seed)
    for _ in range(100):
        check(mutated(random), random.choice((LIMITS, SMALL, LARGE)))


@given(st.integers(0, 1 << 32))
@settings(max_examples=20)
def test_all_readers_agree_on_heads_that_are_nearly_ordinary(seed: int) -> None:
    check_mutated(seed)


@pytest.mark.heavy
@given(st.integers(0, 1 << 32))
@settings(max_examples=600)
def test_all_readers_agree_on_60_000_heads(seed: int) -> None:
    check_mutated(seed)


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"GET /%4\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a:65535\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: []\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /%41%4a%zz%+1%4 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n",
    ],
)
def test_all_readers_agree_on_a_head(head: bytes) -> None:
    check(head, LIMITS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_readers_agree_on_the_heads_of_the_corpus(case: object) -> None:
    """Values that the conversations of the corpus do not show, among them the whole environ."""
    head, end, _ = case.data.partition(b"\r\n\r\n")  # type: ignore[attr-defined]
    check(head + (end or b"\r\n\r\n"), LIMITS)


@pytest.mark.parametrize("sender", ORDINARY)
def test_an_ordinary_head_is_read(sender: str) -> None:
    check(ORDINARY[sender], LIMITS)
    assert len(outcome("python", ORDINARY[sender], LIMITS)) > 2  # type: ignore[arg-type]


if "c" in READERS:

    @pytest.mark.parametrize("sender", ORDINARY)
    def test_the_reader_in_c_leaves_no_ordinary_head_to_python(sender: str) -> None:
        assert ordinary_reader(LIMITS)(ORDINARY[sender]) is not None


def test_there_are_many_ordinary_heads() -> None:
    assert len(ORDINARY) >= 60
