"""The samples of a run, and what follows from them."""

from __future__ import annotations

import dataclasses
import json
import statistics


@dataclasses.dataclass(frozen=True)
class Sample:
    """One measurement of one server."""

    value: float
    """In the unit of the case."""
    rate: float | None = None
    """Requests per second."""
    others: float | None = None
    """The share of the cores that was used by neither the server nor the client: if it is large, the value is worth little."""
    switches: float | None = None
    """How often the server's threads have waited, per request."""


@dataclasses.dataclass
class Results:
    """A run."""

    date: str
    machine: str
    versions: dict[str, str]
    """Of servers, by the name of their module."""
    rounds: int
    seconds: float
    titles: dict[str, str] = dataclasses.field(default_factory=dict)
    """By case."""
    units: dict[str, str] = dataclasses.field(default_factory=dict)
    """By case."""
    samples: dict[str, dict[str, list[Sample | None]]] = dataclasses.field(default_factory=dict)
    """By case and server: one for each round, or None if it has failed."""

    def add(self, case: str, server: str, sample: Sample | None) -> None:
        """Add the sample of a round."""
        self.samples.setdefault(case, {}).setdefault(server, []).append(sample)

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Return what `to_json` has written."""
        read = json.loads(text)
        read["samples"] = {
            case: {server: [sample and Sample(**sample) for sample in samples] for server, samples in of_case.items()}
            for case, of_case in read["samples"].items()
        }
        return cls(**read)

    def servers(self, case: str, interface: str) -> list[str]:
        """Return the servers of a case that have an interface."""
        return [server for server in self.samples.get(case, {}) if server.endswith(f" {interface}")]

    def measured(self, case: str, server: str) -> list[Sample]:
        """Return the samples that have not failed."""
        return [sample for sample in self.samples.get(case, {}).get(server, []) if sample is not None]

    def failures(self, case: str, server: str) -> int:
        """Return how many rounds have failed."""
        return self.samples.get(case, {}).get(server, []).count(None)

    def values(self, case: str, server: str) -> list[float]:
        """Return the values of the rounds that have not failed."""
        return [sample.value for sample in self.measured(case, server)]

    def median(self, case: str, server: str) -> float | None:
        """Return the median value, or None if there is none."""
        values = self.values(case, server)
        return statistics.median(values) if values else None

    def median_of(self, field: str, case: str, server: str) -> float | None:
        """Return the median of another field."""
        found = [value for sample in self.measured(case, server) if (value := getattr(sample, field)) is not None]
        return statistics.median(found) if found else None

    def pairs(self, case: str, server: str, other: str) -> list[tuple[float, float]]:
        """Return the values of two servers in the rounds in which both have been measured."""
        of_case = self.samples.get(case, {})
        both = zip(of_case.get(server, []), of_case.get(other, []), strict=False)
        return [(one.value, two.value) for one, two in both if one and two]

    def ratio(self, case: str, server: str, other: str) -> float | None:
        """Return the median of a server's value in proportion to another's in the same round."""
        ratios = [one / two for one, two in self.pairs(case, server, other) if two]
        return statistics.median(ratios) if ratios else None

    def best(self, case: str, servers: list[str]) -> str | None:
        """Return the server with the least median."""
        medians = {server: median for server in servers if (median := self.median(case, server)) is not None}
        return min(medians, key=lambda server: medians[server], default=None)
