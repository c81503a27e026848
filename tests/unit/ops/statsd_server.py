"""What a statsd server makes of lines, written from the protocol's description: for tests."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

LINE = re.compile(
    r"(?P<name>[^:|@#\s]+):(?P<value>[+-]?[0-9.e-]+)\|(?P<kind>c|g|ms|h)(\|@(?P<rate>[0-9.e-]+))?(\|#(?P<tags>[^|\s]+))?"
)


@dataclass
class StatsdServer:
    """Aggregates as etsy's statsd does: a counter and the number of durations grow by 1/rate, and percentiles are of what came."""

    counters: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    gauges: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    durations: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    number: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def receive(self, datagram: bytes) -> None:
        for line in datagram.decode().split("\n"):
            found = LINE.fullmatch(line)
            assert found, line
            name = found["name"] + (f"#{found['tags']}" if found["tags"] else "")
            value, rate = float(found["value"]), float(found["rate"] or 1)
            match found["kind"]:
                case "c":
                    self.counters[name] += value / rate
                case "g":
                    self.gauges[name] = self.gauges[name] + value if found["value"][0] in "+-" else value
                case "ms":
                    self.durations[name].append(value)
                    self.number[name] += 1 / rate

    def percentile(self, name: str, q: float) -> float:
        ordered = sorted(self.durations[name])
        return ordered[min(int(q * len(ordered)), len(ordered) - 1)]
