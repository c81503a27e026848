"""Medians, ratios, goals, tables and pictures, from samples alone."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from benchmarks import report
from benchmarks.goals import GOALS, goals_table
from benchmarks.plot import Bar, bars
from benchmarks.results import Results, Sample


def results(**servers: list[float | None]) -> Results:
    """Return a run of the case `real` with these values; `_` in the name of a server is a space."""
    run = Results("2026-01-31", "a CPU, 2 cores", {"bjoern": "3.2"}, 3, 1.0, {"real": "real requests"}, {"real": "us"})
    for server, values in servers.items():
        for value in values:
            run.add("real", server.replace("_", " "), None if value is None else Sample(value, 1e6 / value, 0.01, 0.5))
    return run


def test_results_survive_json() -> None:
    run = results(forkserve_wsgi=[1.0, None], nginx_static=[2.0, 3.0])

    assert Results.from_json(run.to_json()) == run


def test_a_ratio_is_the_median_of_the_ratios_of_rounds_and_not_the_ratio_of_medians() -> None:
    run = results(forkserve_wsgi=[10.0, 20.0, 30.0], bjoern_wsgi=[10.0, 40.0, 20.0])

    assert run.ratio("real", "forkserve wsgi", "bjoern wsgi") == 1.0
    assert run.median("real", "forkserve wsgi") == 20.0


def test_rounds_in_which_one_of_two_servers_failed_have_no_ratio() -> None:
    run = results(forkserve_wsgi=[10.0, None, 30.0], bjoern_wsgi=[5.0, 1.0, None])

    assert run.ratio("real", "forkserve wsgi", "bjoern wsgi") == 2.0
    assert run.ratio("real", "forkserve wsgi", "granian wsgi") is None


def test_the_best_server_is_the_one_with_the_least_median() -> None:
    run = results(granian_asgi=[5.0, 5.0, 5.0], uvicorn_asgi=[1.0, 9.0, 9.0], gunicorn_asgi=[None, None, None])

    assert run.best("real", ["granian asgi", "uvicorn asgi", "gunicorn asgi", "hypercorn asgi"]) == "granian asgi"
    assert run.best("real", ["gunicorn asgi"]) is None


@pytest.mark.parametrize(("value", "text"), [(None, ""), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")])
def test_numbers_have_three_digits_or_more(value: float | None, text: str) -> None:
    assert report.number(value) == text


def test_a_cell_shows_the_spread_and_failures() -> None:
    run = results(one_wsgi=[3.0, 1.0, 2.0], two_wsgi=[None, 4.0, 6.0], three_wsgi=[None, None, None])

    assert report.cell(run, "real", "one wsgi") == "2.00 (1.00\N{EN DASH}3.00)"
    assert report.cell(run, "real", "two wsgi") == "5.00 (4.00\N{EN DASH}6.00), 1 failed"
    assert report.cell(run, "real", "three wsgi") == "failed"
    assert report.cell(run, "real", "four wsgi") == ""


def test_tables_have_as_many_cells_in_each_row() -> None:
    run = results(forkserve_wsgi=[1.0], bjoern_wsgi=[2.0], forkserve_asgi=[3.0], nginx_static=[None])

    for text in (report.page_tables(run), report.readme_table(run), report.case_table(run, "real"), goals_table(run)):
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_a_page_says_when_and_where_it_was_measured() -> None:
    text = report.page_tables(results(forkserve_wsgi=[1.0]))

    assert "2026-01-31: a CPU, 2 cores. 3 rounds of 1 s" in text
    assert "at most 1.0% of the cores" in text
    assert "bjoern 3.2" in text


def test_the_least_value_of_a_row_of_the_readme_is_bold() -> None:
    text = report.readme_table(results(forkserve_wsgi=[9.0], bjoern_wsgi=[10.0]))

    assert "| WSGI | **9.00** | 10.0 |  |  |  |" in text


def test_only_the_marked_part_of_a_page_is_replaced() -> None:
    page = "a\n<!-- measured: tables -->\nold\n<!-- /measured -->\nb\n"

    assert report.replaced(page, "tables", "new \\1\n") == "a\n<!-- measured: tables -->\nnew \\1\n<!-- /measured -->\nb\n"
    with pytest.raises(ValueError, match="no place"):
        report.replaced(page, "plots", "new\n")


@pytest.mark.parametrize(("ours", "verdict"), [(11.0, "passed"), (11.5, "missed")])
def test_a_goal_is_passed_up_to_its_bound(ours: float, verdict: str) -> None:
    text = goals_table(results(forkserve_wsgi=[ours] * 3, bjoern_wsgi=[10.0] * 3))

    assert f"| real | forkserve wsgi | bjoern wsgi | {ours / 10:.2f} | 1.1 | {verdict} |" in text
    assert text.count("not measured") == len(GOALS) - 1


def test_a_goal_of_asgi_is_measured_by_the_best_peer() -> None:
    text = goals_table(results(forkserve_asgi=[5.0], granian_asgi=[20.0], uvicorn_asgi=[10.0]))

    assert "| real | forkserve asgi | uvicorn asgi | 0.50 | 0.6 | passed |" in text


@pytest.mark.parametrize(("ours", "verdict"), [(13.0, "passed"), (13.1, "missed")])
def test_a_goal_may_be_a_difference(ours: float, verdict: str) -> None:
    run = results()
    run.samples = {"flask": {"forkserve wsgi": [Sample(ours)], "bjoern wsgi": [Sample(10.0)]}}

    assert f"| flask | forkserve wsgi | bjoern wsgi | {ours - 10:+.1f} us | + 3 us | {verdict} |" in goals_table(run)


def test_a_picture_is_xml_whose_bars_are_as_long_as_their_values() -> None:
    rows = [Bar("<ours>", 10.0, 9.0, 20.0, "10.0", ours=True), Bar("theirs", 20.0, 20.0, 20.0, "20.0", ours=False)]
    picture = ET.fromstring(bars([("a & b", rows)], "a description"))
    name = "{http://www.w3.org/2000/svg}"
    widths = {one.get("class"): float(one.get("width") or 0) for one in picture.iter(f"{name}rect")}

    assert widths["bar"] == pytest.approx(2 * widths["ours"], abs=0.1)
    assert [one.text for one in picture.iter(f"{name}text")] == ["a & b", "<ours>", "10.0", "theirs", "20.0"]


def test_a_picture_of_nothing_is_empty() -> None:
    assert "rect class" in bars([], "nothing")
