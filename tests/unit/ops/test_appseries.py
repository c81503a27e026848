"""The app's metrics in the formats of Prometheus: its own parsers read what was counted."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from prometheus_client import exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from forkserve.base.series import FIRST_WORKER, Contents, Declaration, Series
from forkserve.ops.appseries import metrics

FOUND = [
    Series(Declaration("orders", "counter", ("shop",), help='Orders\n"x" \\'), ('a"b\n\\é',), [3.0]),
    Series(Declaration("depth", "gauge", merge="live"), (), [2.5]),
    Series(Declaration("seconds", "histogram", (), (0.1, 1.0)), (), [1.0, 2.0, 4.0, 12.5]),
    Series(Declaration("change", "histogram", (), (-1.0, 1.0)), (), [1.0, 2.0, 4.0, 12.5]),
]


class Registry:
    def collect(self) -> Any:
        return metrics([Contents(FIRST_WORKER + 1, 1, 2, FOUND), Contents(FIRST_WORKER + 2, 2, 3, [])])


@pytest.mark.parametrize(
    ("write", "parse"), [(exposition.generate_latest, parse_text), (openmetrics.generate_latest, parse_openmetrics)]
)
def test_prometheus_reads_it(write: Any, parse: Any) -> None:
    families = list(parse(write(Registry()).decode()))
    found = {(one.name, tuple(one.labels.values())): one.value for family in families for one in family.samples}
    assert found[("orders_total", ('a"b\n\\é',))] == 3
    assert found[("depth", ("1",))] == 2.5
    assert [found[("seconds_bucket", (bound,))] for bound in ("0.1", "1.0", "+Inf")] == [1, 3, 7]
    assert (found[("seconds_count", ())], found[("seconds_sum", ())]) == (7, 12.5)
    assert found[("change_bucket", ("+Inf",))] == 7
    assert found[("forkserve_metrics_dropped_total", ())] == 5
    assert inf not in found.values()
