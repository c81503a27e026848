"""The metrics of the app as families of prometheus_client. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf

from prometheus_client.metrics_core import Metric

from forkserve.base.series import Buckets, Contents, Family, merged


def metrics(regions: Iterable[Contents]) -> list[Metric]:
    """Merge the metrics of all processes; with the number of series that did not fit."""
    found = list(regions)
    meaning = "How often a series of the app's metrics did not fit (--metrics-space)."
    dropped = Metric("forkserve_metrics_dropped", meaning, "counter")
    dropped.add_sample("forkserve_metrics_dropped_total", {}, float(sum(one.dropped for one in found)))
    return [*map(_metric, merged(found)), dropped]


def _metric(family: Family) -> Metric:
    made = Metric(family.name, family.help, family.kind)
    for sample in family.samples:
        if isinstance(sample.value, Buckets):
            for name, labels, value in _histogram(family.name, sample.labels, sample.value):
                made.add_sample(name, labels, value)
        else:
            made.add_sample(family.name + "_total" * (family.kind == "counter"), dict(sample.labels), sample.value)
    return made


def _histogram(name: str, labels: Mapping[str, str], value: Buckets) -> Iterator[tuple[str, dict[str, str], float]]:
    total = 0
    for bound, count in value.buckets:
        total += count
        yield f"{name}_bucket", {**labels, "le": "+Inf" if bound == inf else repr(bound)}, float(total)
    if value.buckets[0][0] >= 0:  # OpenMetrics has no sum of what may be negative, and then no number
        yield f"{name}_count", dict(labels), float(total)
        yield f"{name}_sum", dict(labels), value.sum
