"""What forkserve is to reach beside its peers."""

from __future__ import annotations

import dataclasses
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.results import Results

OURS, PURE, OURS_ASGI, PURE_ASGI = "forkserve wsgi", "forkserve pure wsgi", "forkserve asgi", "forkserve pure asgi"
BJOERN, GRANIAN = ["bjoern wsgi"], ["granian wsgi"]
ASGI = ["granian asgi", "uvicorn asgi", "uvicorn zttp asgi", "gunicorn asgi"]


@dataclasses.dataclass(frozen=True)
class Goal:
    """A bound for forkserve's value in proportion to the best of some peers, or for the difference."""

    case: str
    server: str
    peers: list[str]
    bound: float
    difference: bool = False

    def measured(self, results: Results) -> tuple[float, str] | None:
        """Return the median of the rounds, and the peer with the least median; None if that cannot be known."""
        peer = results.best(self.case, self.peers)
        pairs = results.pairs(self.case, self.server, peer) if peer else []
        if not pairs or not peer:
            return None
        return statistics.median(one - two if self.difference else one / two for one, two in pairs), peer


GOALS = [
    Goal("real", OURS, BJOERN, 1.1),
    Goal("real", OURS, GRANIAN, 0.75),
    Goal("real", OURS_ASGI, ASGI, 0.6),
    Goal("real-1000", OURS, BJOERN, 1.15),
    Goal("real-1000", OURS_ASGI, ASGI, 0.65),
    Goal("flask", OURS, BJOERN, 3.0, difference=True),
    Goal("flask", OURS, GRANIAN, 1.0),
    Goal("django", OURS, BJOERN, 3.0, difference=True),
    Goal("django", OURS, GRANIAN, 1.0),
    Goal("post", OURS, BJOERN, 1.1),
    Goal("threads", OURS, GRANIAN, 1.4),
    Goal("sleep", OURS, GRANIAN, 1.4),
    Goal("websocket", OURS_ASGI, ASGI, 0.95),
    Goal("websocket-4k", OURS_ASGI, ASGI, 0.95),
    Goal("real", PURE, BJOERN, 1.7),
    Goal("real", PURE_ASGI, ASGI, 0.85),
]


def goals_table(results: Results) -> str:
    """Return a table in Markdown of what is reached and what is missed."""
    lines = ["| case | forkserve | best of | measured | bound | |", "|---|---|---|---|---|---|"]
    for goal in GOALS:
        found = goal.measured(results)
        bound = f"+ {goal.bound:g} us" if goal.difference else f"{goal.bound:g}"
        if found is None:
            lines.append(f"| {goal.case} | {goal.server} | {', '.join(goal.peers)} | | {bound} | not measured |")
            continue
        value, peer = found
        measured = f"{value:+.1f} us" if goal.difference else f"{value:.2f}"
        verdict = "passed" if value <= goal.bound else "missed"
        lines.append(f"| {goal.case} | {goal.server} | {peer} | {measured} | {bound} | {verdict} |")
    return "\n".join(lines) + "\n"
