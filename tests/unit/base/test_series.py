"""Regions of metrics: what is written is read, whatever else the memory holds; and the merging of several processes."""

from __future__ import annotations

import json
from math import inf, isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.base import series
from forkserve.base.series import (
    FIRST_WORKER,
    HEADER,
    MASTER,
    MOLD,
    NOBODY,
    USED,
    Buckets,
    Contents,
    Declaration,
    Region,
    Series,
    Totals,
    merged,
)

SPACE = 4096
names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.integers(0, 1 << 40).map(float)


@st.composite
def declarations(draw: st.DrawFn) -> Declaration:
    kind = draw(st.sampled_from(series.KINDS))
    labels = tuple(draw(st.lists(st.sampled_from(["a", "b", "c"]), unique=True)))
    bounds = tuple(sorted(draw(st.sets(st.integers(-5, 5).map(float))))) if kind == "histogram" else ()
    return Declaration(draw(names), kind, labels, bounds, draw(texts), draw(st.sampled_from(series.MERGES)))  # type: ignore[arg-type]


@st.composite
def written(draw: st.DrawFn) -> list[Series]:
    found: dict[object, Series] = {}
    for one in draw(st.lists(declarations(), max_size=5, unique_by=lambda one: one.name)):
        for _ in range(draw(st.integers(1, 3))):
            values = tuple(draw(texts) for _ in one.labels)
            found[(one, values)] = Series(one, values, [draw(numbers) for _ in range(one.cells)])
    return list(found.values())


def region_with(found: list[Series], memory: memoryview) -> Region:
    region = Region(memory)
    for one in found:
        cells = region.append(one.declaration, one.values)
        assert cells is not None
        for index, number in enumerate(one.numbers):
            cells[index] = number
    return region


@given(written())
def test_a_reader_finds_what_was_written(found: list[Series]) -> None:
    memory = memoryview(bytearray(1 << 16))
    series.clear(memory, FIRST_WORKER + 3, 7)
    region_with(found, memory)
    contents = series.read(memory)
    assert contents == Contents(FIRST_WORKER + 3, 7, 0, found)
    assert [one.declaration.help for one in contents.series] == [one.declaration.help for one in found]


@given(written(), st.data())
def test_a_reader_finds_the_beginning_of_what_is_half_written(found: list[Series], data: st.DataObject) -> None:
    memory = memoryview(bytearray(1 << 16))
    region_with(found, memory)
    used = max(HEADER, memory[:HEADER].cast("Q")[USED])
    position = data.draw(st.integers(HEADER, used))
    memory[position:used] = bytes(used - position)  # what had not been written yet
    contents = series.read(memory)
    assert [(one.declaration, one.values) for one in contents.series] == [
        (one.declaration, one.values) for one in found[: len(contents.series)]
    ]


@given(st.binary(max_size=600), st.integers(0, (1 << 64) - 1))
def test_any_memory_can_be_read(found: bytes, used: int) -> None:
    memory = memoryview(bytearray(1024))
    memory[HEADER : HEADER + len(found)] = found
    memory[:HEADER].cast("Q")[USED] = used
    assert series.read(memory).series == []
    Totals(memory)


@given(st.recursive(st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3), st.lists, max_leaves=8))
def test_any_text_of_a_record_can_be_read(found: object) -> None:
    memory = memoryview(bytearray(1024))
    region = Region(memory)
    region._write(json.dumps(found).encode(), [1.0])
    assert region.append(Declaration("after", "counter"), ()) is not None
    merged([series.read(memory)])


def test_what_does_not_fit_is_refused_and_leaves_the_others() -> None:
    memory = memoryview(bytearray(series.LEAST_SPACE))
    region = Region(memory)
    one = Declaration("a", "counter", ("path",))
    fits = 0
    while region.append(one, (f"/{fits}",)) is not None:
        fits += 1
    region.drop()
    contents = series.read(memory)
    assert [found.values for found in contents.series] == [(f"/{number}",) for number in range(fits)]
    assert contents.dropped == 1
    assert fits > 10
    assert Region(memoryview(bytearray(HEADER + 8))).append(one, ("x",)) is None


def test_an_emptied_region_begins_anew() -> None:
    memory = memoryview(bytearray(SPACE))
    region_with([Series(Declaration("a", "counter"), (), [5.0])], memory)
    series.clear(memory)
    cells = Region(memory).append(Declaration("a", "counter"), ())
    assert cells is not None
    assert list(cells) == [0.0]


# Merging.

N = Declaration("n", "counter")


def process(owner: int, age: int, *found: Series) -> Contents:
    return Contents(owner, age, 0, list(found))


@given(st.lists(written(), max_size=4), st.lists(written(), max_size=3))
def test_nothing_counted_is_lost_or_doubled_when_a_process_ends(alive: list[list[Series]], gone: list[list[Series]]) -> None:
    """The merged counters are the same before the end of a process and after it."""
    living = [process(FIRST_WORKER + age, age, *found) for age, found in enumerate(alive, 10)]
    ended = [process(FIRST_WORKER + age, age, *found) for age, found in enumerate(gone, 1)]
    memory = memoryview(bytearray(1 << 18))
    totals = Totals(memory)
    for one in ended:
        totals.add(one)
    before, after = merged([*ended, *living]), merged([series.read(memory), *living])
    counted = {one.name: one for one in before if one.kind != "gauge" and one.samples}
    if len({(one.declaration.name, one.declaration.kind) for of in [*alive, *gone] for one in of}) == len(
        {one.declaration.name for of in [*alive, *gone] for one in of}
    ):  # no name of two kinds
        found = {one.name: one for one in after if one.kind != "gauge"}
        assert counted.keys() == found.keys()
        for name, one in counted.items():
            assert total(one) == total(found[name])


def total(family: series.Family) -> float:
    return sum(one.value.count + one.value.sum if isinstance(one.value, Buckets) else one.value for one in family.samples)


def gauge(merge: series.Merge, value: float) -> Series:
    return Series(Declaration("g", "gauge", merge=merge), (), [value])


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        ("sum", [({}, 8.0)]),
        ("max", [({}, 5.0)]),
        ("min", [({}, 1.0)]),
        ("live", [({"worker": "1"}, 5.0), ({"worker": "2"}, 1.0), ({"worker": "master"}, 2.0)]),
    ],
)
def test_gauges_are_merged_as_declared(merge: series.Merge, expected: list[tuple[dict[str, str], float]]) -> None:
    found = merged(
        [
            process(NOBODY, 0, gauge(merge, 100)),  # of processes that are gone, of a mold, and not set yet
            process(MASTER, 0, gauge(merge, 2)),
            process(MOLD, 1, gauge(merge, 100)),
            process(FIRST_WORKER + 1, 2, gauge(merge, 5)),
            process(FIRST_WORKER + 2, 3, gauge(merge, 1)),
            process(FIRST_WORKER + 3, 4, gauge(merge, float("nan"))),
        ]
    )
    assert [(one.labels, one.value) for one in found[0].samples] == expected


def test_of_two_processes_of_one_worker_the_later_shows_its_gauge() -> None:
    found = merged([process(FIRST_WORKER + 1, 9, gauge("live", 7)), process(FIRST_WORKER + 1, 2, gauge("live", 1))])
    assert [(one.labels, one.value) for one in found[0].samples] == [({"worker": "1"}, 7.0)]


def test_the_latest_declaration_counts() -> None:
    old = process(FIRST_WORKER + 1, 1, Series(Declaration("n", "gauge", help="old"), (), [3.0]))
    new = process(FIRST_WORKER + 2, 2, Series(Declaration("n", "counter", help="new"), (), [4.0]))
    (found,) = merged([old, new])
    assert (found.kind, found.help, [one.value for one in found.samples]) == ("counter", "new", [4.0])


@given(
    st.sets(st.integers(0, 20).map(float)).map(sorted),
    st.sets(st.integers(0, 20).map(float)).map(sorted),
    st.lists(st.integers(0, 25).map(float)),
)
def test_other_buckets_keep_all_that_was_counted(before: list[float], after: list[float], observed: list[float]) -> None:
    counts = [0.0] * (len(before) + 2)
    for value in observed:
        counts[sum(bound < value for bound in before)] += 1
    counts[-1] = sum(observed)
    moved = series.rebucketed(Series(Declaration("h", "histogram", (), tuple(before)), (), counts), tuple(after))
    assert sum(moved[:-1]) == len(observed)
    assert moved[-1] == sum(observed)
    for index, bound in enumerate(after):  # none is counted in a bucket that is too low
        assert sum(moved[: index + 1]) <= sum(value <= bound for value in observed)


@given(st.lists(written(), max_size=3))
def test_counts_go_through_another_layout(found: list[list[Series]]) -> None:
    regions = [process(FIRST_WORKER + age, age, *one) for age, one in enumerate(found, 1)]
    counts = json.loads(json.dumps(series.write_counts(regions)))
    kept = [one for of in found for one in of if one.declaration.kind != "gauge"]
    read = series.read_counts(counts)
    assert sum(sum(one.numbers) for one in read.series) == sum(sum(one.numbers) for one in kept)
    assert {one.declaration for one in read.series} == {one.declaration for one in kept}


@pytest.mark.parametrize(
    "found",
    [
        None,
        1,
        [],
        ["n"],
        ["n", "counter", [], [], "", [[[], ["x"]]]],
        ["n", "what", [], [], "", []],
        ["n", "counter", [], [], "", 3],
    ],
)
def test_counts_that_cannot_be_read_are_left_out(found: object) -> None:
    good = ["n", "counter", [], [], "", [[[], [2.0]]]]
    assert series.read_counts([found, good]).series == [Series(N, (), [2.0])]


def test_what_is_no_number_is_not_added() -> None:
    memory = memoryview(bytearray(SPACE))
    totals = Totals(memory)
    for number in (float("nan"), inf, 2.0):
        totals.add(process(NOBODY, 0, Series(N, (), [number]), gauge("sum", number)))
    assert [(one.declaration, one.numbers) for one in series.read(memory).series] == [(N, [2.0])]
    assert merged([process(1, 1, Series(N, (), [inf]))])[0].samples[0].value == 0.0


def test_totals_that_do_not_fit_are_counted() -> None:
    memory = memoryview(bytearray(series.LEAST_SPACE))
    totals = Totals(memory)
    many = [Series(Declaration("n", "counter", ("path",)), (f"/{number}",), [1.0]) for number in range(100)]
    totals.add(Contents(NOBODY, 0, 4, many))
    found = series.read(memory)
    assert len(found.series) + found.dropped == 104
    assert Totals(memory) is not None
    assert series.read(memory) == found  # a program that takes over keeps them


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (Declaration("1a", "counter"), "'1a' is no name of a metric"),
        (Declaration("a-b", "counter"), "'a-b' is no name of a metric"),
        (Declaration("a\n", "counter"), "is no name of a metric"),
        (Declaration("a", "counter", ("__b",)), "a: '__b' is no name of a label"),
        (Declaration("a", "counter", ("b", "b")), "a: two labels have the same name"),
        (Declaration("a", "histogram", ("le",)), "a: 'le' is no name of a label: the server itself sets it"),
        (Declaration("a", "gauge", ("worker",), merge="live"), "a: 'worker' is no name of a label: the server itself sets it"),
        (Declaration("a", "histogram", (), (2.0, 1.0)), "a: the bounds of buckets must be numbers that rise"),
        (Declaration("a", "histogram", (), (1.0, inf)), "a: the bounds of buckets must be numbers that rise"),
        (Declaration("a", "gauge", merge="mean"), "a: merge='mean': it must be sum, max, min or live"),  # type: ignore[arg-type]
    ],
)
def test_what_prometheus_would_refuse_is_refused(wrong: Declaration, says: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        series.check(wrong)
    assert says in str(caught.value)


def test_a_gauge_that_was_never_set_is_no_number() -> None:
    (value,) = Declaration("g", "gauge").fresh()
    assert isnan(value)


@pytest.mark.parametrize("text", ["{", "[]", "[-1]", "3", '["n", "what", [], [], "", "sum"]', "[7]", '[0, "a value too many"]'])
def test_a_record_that_says_nothing_is_left_out(text: str) -> None:
    memory = memoryview(bytearray(SPACE))
    region = Region(memory)
    region.append(N, ())
    region._write(text.encode(), [1.0])
    assert region.append(Declaration("after", "counter"), ()) is not None
    found = [one.declaration.name for one in series.read(memory).series]
    assert found[:1] == ["n"]


def test_a_reader_stops_where_a_record_is_not_whole() -> None:
    memory = memoryview(bytearray(SPACE))
    region = Region(memory)
    begins = []
    for name in ("a", "b"):
        begins.append(max(HEADER, memory[:HEADER].cast("Q")[USED]))
        region.append(Declaration(name, "counter"), ())
    damaged = memoryview(bytearray(memory))
    damaged[begins[1] + series.HEADER_OF_RECORD] ^= 1  # the text
    assert [one.declaration.name for one in series.read(damaged).series] == ["a"]
    damaged[begins[1]] ^= 1  # the size
    assert [one.declaration.name for one in series.read(damaged).series] == ["a"]


def test_values_move_to_the_bucket_that_holds_them() -> None:
    one = Series(Declaration("h", "histogram", (), (1.0, 2.0)), (), [3.0, 4.0, 5.0, 60.0])
    assert series.rebucketed(one, (1.0, 2.0)) == one.numbers
    assert series.rebucketed(one, (2.0,)) == [7.0, 5.0, 60.0]


def test_an_upgrade_takes_no_gauges_and_no_series_of_another_form() -> None:
    counts = series.write_counts([process(FIRST_WORKER, 1, Series(N, (), [2.0]), gauge("sum", 9.0))])
    assert [one[0] for one in counts] == ["n"]
    counts[0][-1].append([["a value too many"], [1.0]])
    assert series.read_counts(counts).series == [Series(N, (), [2.0])]
