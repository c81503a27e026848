"""Metrics of an app: counters, gauges and histograms, which the server adds up over all its workers.

```python
from forkserve import metrics

orders = metrics.counter("orders", "Orders that were placed.", labels=["shop"])
orders.inc(shop="north")
```

`--admin` serves them at ``/metrics``, and `--statsd` sends them. An update is a store into shared memory: no lock, no call of the
system. Outside of a server the numbers are in the process's own memory, so code that counts also runs in scripts and tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from forkserve.base.registry import DEFAULT_BUCKETS, OWN_PREFIX, Counter, Gauge, Histogram, registry, strings
from forkserve.base.series import Declaration, Merge, plain

__all__ = ["DEFAULT_BUCKETS", "Counter", "Gauge", "Histogram", "counter", "gauge", "histogram"]


def counter(name: str, help: str = "", labels: Sequence[str] = ()) -> Counter:  # noqa: A002 - Prometheus's word
    """Return the counter of this name, the same object each time.

    Args:
        name: As Prometheus wants it. `_total` is added where it is shown.
        help: What it counts.
        labels: The names of its labels. Each combination of values is a series, so choose labels of few values.

    Raises:
        ValueError: A name is wrong, or the metric exists with another declaration.
    """
    return registry.declare(
        Counter, Declaration(_own(name).removesuffix("_total"), "counter", strings(name, labels), help=plain(help))
    )


def gauge(name: str, help: str = "", labels: Sequence[str] = (), *, merge: Merge = "sum") -> Gauge:  # noqa: A002 - as above
    """Return the gauge of this name, the same object each time.

    Args:
        name: As Prometheus wants it.
        help: What its value is, and the unit.
        labels: The names of its labels.
        merge: What the values of several workers become: their `sum`, the `max` or `min` of them, or `live`: each is shown, with
            the label `worker`. Workers that are gone, or have never set it, do not count.

    Raises:
        ValueError: A name is wrong, or the metric exists with another declaration.
    """
    return registry.declare(Gauge, Declaration(_own(name), "gauge", strings(name, labels), help=plain(help), merge=merge))


def histogram(
    name: str,
    help: str = "",  # noqa: A002 - as above
    labels: Sequence[str] = (),
    *,
    buckets: Iterable[float] = DEFAULT_BUCKETS,
) -> Histogram:
    """Return the histogram of this name, the same object each time.

    Args:
        name: As Prometheus wants it.
        help: What is observed, and the unit.
        labels: The names of its labels.
        buckets: The upper bounds of the buckets, rising. One without a bound is added.

    Raises:
        ValueError: A name or the bounds are wrong, or the metric exists with another declaration.
    """
    try:
        bounds = [float(bound) for bound in buckets]
    except (TypeError, ValueError):
        raise ValueError(f"{name}: the bounds of buckets must be numbers") from None
    if bounds and bounds[-1] == float("inf"):
        bounds.pop()
    return registry.declare(Histogram, Declaration(_own(name), "histogram", strings(name, labels), tuple(bounds), plain(help)))


def _own(name: str) -> str:
    if not isinstance(name, str) or name.startswith(OWN_PREFIX):
        raise ValueError(f"{name!r} is no name for a metric of an app: those that begin with {OWN_PREFIX} are the server's")
    return name
