"""Process many numbers in parallel, each in the first idle worker, like the Ruby gem `parallel`.

Run it: `python example_apps/parallel_map.py 91 1001 1000000007`. If a worker dies, another one gets its number, once.
"""

import math
import sys

from forkserve import Reply, Server, Worker


class Divisors(Worker):
    """Does nothing but run commands."""

    def run(self) -> None:
        """Wait for commands."""
        while self.alive():
            self.wait()

    def child_divide(self, number: int) -> int:
        """Return the smallest divisor greater than 1; for a prime it is the number itself."""
        return next((one for one in range(2, math.isqrt(number) + 1) if number % one == 0), number)


def begin(server: Server) -> None:
    """Send out the numbers when the workers are ready; the master does not wait for the replies."""
    numbers = [int(word) for word in sys.argv[1:]]

    def show(replies: list[Reply]) -> None:
        for number, reply in zip(numbers, replies, strict=True):
            print(number, reply.value if reply.ok else reply.status)
        server.stop()

    server.map("divide", numbers, timeout=None, retries=1).then(show)


if __name__ == "__main__":
    sys.exit(Server(worker=Divisors, workers=4, when_ready=begin).run())
