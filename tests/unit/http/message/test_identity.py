"""The readers of request heads give the same values, and refuse the same heads with the same status and message.

The reader in C may answer None, which leaves the head to Python; for ordinary heads it must not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forkserve.http.message.errors import RequestError
from forkserve.http.message.readers import new_reader, ordinary_reader
from tests.integration.http.corpus import CASES
from tests.integration.http.talk import LIMITS, READERS
from tests.unit.http.message.heads import BASES, LARGE, PIECES, SMALL, values
from tests.unit.http.message.ordinary_heads import ORDINARY

if TYPE_CHECKING:
    from forkserve.http.message.http1 import RequestLimits


def outcome(reader: str, head: bytes, limits: RequestLimits) -> object:
    """Return the values of a head, or status and message of its refusal."""
    try:
        return values(*new_reader(reader, limits)(head))
    except RequestError as refusal:
        return refusal.status, refusal.detail


def check(head: bytes, limits: RequestLimits) -> None:
    """Check that all readers agree on a head."""
    expected = outcome("python", head, limits)
    assert {reader: outcome(reader, head, limits) for reader in READERS} == dict.fromkeys(READERS, expected)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A head that is nearly an ordinary one."""
    head = draw(st.sampled_from(BASES))
    for _ in range(draw(st.integers(0, 4))):
        starts = [0, *(at + 2 for at in range(len(head) - 3) if head[at : at + 2] == b"\r\n")]
        at = draw(st.sampled_from(starts) | st.integers(0, len(head)))
        end = at + draw(st.sampled_from((0, 0, 0, 1, 1, 2, 5)))
        head = head[:at] + draw(st.sampled_from(PIECES) | st.just(b"") | st.binary(max_size=3)) + head[end:]
    end = head.find(b"\r\n\r\n")
    return head[: end + 4] if end >= 0 else head.rstrip(b"\r\n") + b"\r\n\r\n"


@given(mutated(), st.sampled_from((LIMITS, SMALL, LARGE)))
@example(b"GET /%4\x00 HTTP/1.1\r\nHost: a\r\n\r\n", LIMITS)
@example(b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n", LIMITS)
@example(b"\r\n\r\n", LIMITS)
@example(b"\r\n\r\n\r\n\r\n", LIMITS)
@settings(max_examples=500)
def test_all_readers_agree_on_a_head_that_is_nearly_ordinary(head: bytes, limits: RequestLimits) -> None:
    check(head, limits)


@pytest.mark.heavy
@given(mutated(), st.sampled_from((LIMITS, SMALL, LARGE)))
@settings(max_examples=20_000)
def test_all_readers_agree_on_many_heads(head: bytes, limits: RequestLimits) -> None:
    check(head, limits)


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
