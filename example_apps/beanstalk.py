"""Consumers of a work queue (beanstalkd) that lose no job: a job is deleted when it is done and released when it fails.

Run it: `python example_apps/beanstalk.py 127.0.0.1 11300`; a job says how many seconds of work it is.
"""

import contextlib
import sys
import time

import greenstalk

from forkserve import Server, Worker


class Consumer(Worker):
    """Does one job at a time. If the worker dies or is killed, beanstalkd gives the job to another one."""

    def run(self) -> None:
        """Wait a second for a job, then look at `alive` again: an idle worker notices a stop within that second."""
        with greenstalk.Client((sys.argv[1], int(sys.argv[2]))) as queue:
            while self.alive():
                with contextlib.suppress(greenstalk.TimedOutError):
                    self.consume(queue, queue.reserve(timeout=1))

    def consume(self, queue: greenstalk.Client[str], job: greenstalk.Job[str]) -> None:
        """Do the job; release it for another try if that fails; bury it at the fourth try, for a person to look at."""
        if queue.stats_job(job)["reserves"] > 3:
            return queue.bury(job)
        try:
            time.sleep(float(job.body))
            self.log.info("job %d done", job.id)
        except Exception:
            self.log.exception("job %d failed", job.id)
            return queue.release(job, delay=1)
        return queue.delete(job)


if __name__ == "__main__":
    sys.exit(Server(worker=Consumer, workers=4).run())
