"""Every case of the corpus in the pure modules, split at every position, with each reader."""

from collections.abc import Iterator

import pytest

from tests.integration.http.case import Case, allowed, check_fields, sent
from tests.integration.http.corpus import CASES
from tests.integration.http.talk import READERS, Outcome, Refusal, Request, Unfinished, converse

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
SPLIT_EVERYWHERE = 1500
"""Cases up to this number of bytes are split at every position; longer ones at their ends and at every 499th position."""


def cuts(data: bytes) -> Iterator[int]:
    """Return the positions at which to split ``data`` in two."""
    for position in range(1, len(data)):
        if len(data) <= SPLIT_EVERYWHERE or position < 100 or position > len(data) - 200 or position % 499 == 0:
            yield position


def check_pure(case: Case, outcome: Outcome) -> None:
    """Check the result of the pure modules for a case."""
    requests = [item for item in outcome if isinstance(item, Request)]
    refusals = [item.status for item in outcome if isinstance(item, Refusal)]
    if refusals:
        assert allowed(refusals[0], case.statuses[len(requests)]), outcome
    elif case.ends and any(isinstance(item, Unfinished) for item in outcome):
        pass  # decided at the end of the connection, which the pure modules do not see
    else:
        assert len(requests) == len(case.statuses) - case.statuses.count(0), outcome
    for request, seen in zip(requests, case.seen, strict=False):
        assert (request.method, request.path, request.query, request.body) == (
            seen.method, seen.path.encode(), seen.query.encode(), seen.body,
        )  # fmt: skip
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers]
        check_fields(seen, headers)
    if not any(isinstance(status, frozenset) for status in case.statuses):
        assert len(requests) == len(case.seen)
    if case.opens is not None and requests and not refusals and not case.ends:
        assert requests[-1].keep_alive is case.opens


@pytest.mark.parametrize("reader", READERS)
@every_case
def test_a_case_has_its_outcome_in_any_pieces(case: Case, reader: str) -> None:
    """The outcome is the same as a whole, in any two pieces, and byte by byte."""
    data = sent(case)
    whole = converse(reader, [data])
    check_pure(case, whole)

    assert whole == converse(reader, (data[i : i + 1] for i in range(len(data))))
    for cut in cuts(data):
        assert whole == converse(reader, [data[:cut], data[cut:]]), cut


@every_case
def test_all_readers_agree_on_a_case(case: Case) -> None:
    """All readers give the same requests with all fields."""
    outcomes = [converse(reader, [sent(case)]) for reader in READERS]
    assert outcomes == outcomes[:1] * len(READERS)
