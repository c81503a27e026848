"""How the benchmark of incidents tells from what servers show that something is wrong."""

import socket
import time

import pytest

from benchmarks.incidents import INCIDENTS, Row, Sighting, sought
from benchmarks.observed import FORKSERVE, SERVERS, SIGN, Sample, Statsd, above, lasts, ratio, shows

BEGAN = 100.0


def samples(*texts, first=BEGAN - 2):
    return [Sample(first + second, text) for second, text in enumerate(texts)]


def test_the_line_with_a_pattern_is_shown_without_its_time():
    test = shows("was sent")
    assert test(samples("[2026-11-30 22:57:40 +0000] [21309] [WARNING] Worker (pid:7) was sent SIGSEGV!\nother"), BEGAN) == (
        "[21309] [WARNING] Worker (pid:7) was sent SIGSEGV!"
    )
    assert test(samples("a quiet line"), BEGAN) == ""


def test_a_long_line_is_cut_on_both_sides_of_the_pattern():
    shown = shows("500")(samples("a" * 300 + " 500 " + "b" * 300), BEGAN)
    assert shown.startswith("...a")
    assert " 500 b" in shown
    assert shown.endswith("b...")
    assert len(shown) <= 120


def test_a_state_counts_when_each_look_for_some_seconds_has_shown_it():
    busy = ["worker 1: idle"] * 2 + ["worker 1: busy"] * 6
    assert lasts("worker 1: busy", 4)(samples(*busy), BEGAN) == "worker 1: busy (for 4 s)"
    assert lasts("worker 1: busy", 4)(samples(*busy, "worker 1: idle", "worker 1: busy"), BEGAN) == ""


def test_a_number_is_compared_with_what_was_usual_before():
    assert above("rss", r"rss (\d+)", 1.3, 10)(samples("rss 20", "rss 22", "rss 40 rss 80"), BEGAN) == "rss: 22 → 80"
    assert above("rss", r"rss (\d+)", 1.3, 10)(samples("rss 20", "rss 22", "rss 30"), BEGAN) == ""
    assert above("rss", r"rss (\d+)")(samples("rss 20", "nothing", "nothing"), BEGAN) == ""


def test_one_slow_request_in_a_log_is_an_accident():
    usual = "took 2\n" * 9
    test = above("ms", r"took (\d+)", recent=True)
    assert test(samples(usual, usual, "took 2\n" * 4 + "took 900\n"), BEGAN) == ""
    assert test(samples(usual, usual, "took 20\n" * 5), BEGAN) == "ms: 2 → 20"


def test_the_mean_of_what_came_last_is_compared_with_the_mean_before():
    text = "sum {} count {}".format
    test = ratio("mean", r"sum ([\d.]+)", r"count (\d+)")
    assert test(samples(text(1, 10), text(2, 20), text(2, 20), text(7, 25)), BEGAN) == "mean: 0.1 → 1"
    assert test(samples(text(1, 10), text(2, 20), text(2, 20), text(3, 30)), BEGAN) == ""
    assert test(samples(text(0, 0), text(0, 0), text(2, 20), text(3, 30)), BEGAN) == ""


def test_what_statsd_has_received_is_put_together_by_name():
    statsd = Statsd()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for line in (b"requests:1|c|@1.0", b"requests:2|c|@1.0", b"duration:20|ms", b"duration:40.0|ms", b"workers:2|g"):
                sock.sendto(line, ("127.0.0.1", statsd.port))
        deadline = time.monotonic() + 10
        while "workers" not in statsd.text() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert statsd.text() == "duration: 30 ms\nrequests: 1.0 a second\nworkers: 2"
    finally:
        statsd.close()


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: incident.name)
def test_each_server_has_sought_each_incident_and_of_its_own_views(server, incident):
    assert {view for _, view, _ in sought(incident, server)} <= {view.name for view in server.views}
    assert {fact for fact, _, _ in sought(incident, server)} <= {SIGN, *incident.facts}


def test_the_steps_are_the_fewest_views_that_show_all():
    row = Row(INCIDENTS[0], FORKSERVE)
    row.seen[SIGN] = {"/metrics": Sighting(2.4, "oldest | 2"), "top": Sighting(3, "stuck: 1")}
    row.seen["request"] = {"top": Sighting(1, "GET /report"), "ctl stacks": Sighting(2, "GET /report")}
    row.seen["stack"] = {"ctl stacks": Sighting(4.2, "in wait_for_lock")}
    assert str(row) == (
        "| a stuck worker | forkserve | /metrics: `oldest / 2` (also: top 3 s) | 2 | request (ctl stacks): `GET /report`;"
        " stack (ctl stacks): `in wait_for_lock` |  | 2 | 4 |"
    )


def test_a_server_that_shows_nothing_gets_a_row_that_says_so():
    assert str(Row(INCIDENTS[3], FORKSERVE)) == "| a memory leak | forkserve | nothing |  |  | request |  |  |"
