"""Inbox: handles the messages of the master. In the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkserve.base import logs
from forkserve.prefork.ipc import messages
from forkserve.prefork.worker.call_future import OpenCalls
from forkserve.prefork.worker.dispatch import Dispatcher
from forkserve.prefork.worker.leave import Leave

if TYPE_CHECKING:
    from forkserve.prefork.ipc.messages import Message
    from forkserve.prefork.worker.running import RunningWorker


class Inbox:
    """Receives the messages for one worker. In its process, on the main thread."""

    def __init__(self, worker: RunningWorker) -> None:
        self._worker = worker
        self._dispatcher = Dispatcher(worker)
        self.calls = OpenCalls(worker)
        self.leave = Leave(worker, self.receive, self.calls.fail_all)

    def receive(self) -> None:
        """Handle the received messages, and run commands. An event loop calls it when the channel is readable."""
        worker = self._worker
        if worker.channel.closed:
            return
        for message in worker.channel.receive():
            self._handle(message)
        worker.between_requests(self._dispatcher.run)
        if worker.channel.closed:
            self.leave.orphaned()

    def _handle(self, message: Message) -> None:
        worker = self._worker
        match message:
            case messages.Command() | messages.Offer():
                self._dispatcher.take(message)
            case messages.Answer():
                self.calls.answered(message)
            case messages.Note():
                worker.note()
                worker.send(messages.Noted())
            case messages.ShowFault(text):
                worker.show_fault(text)
            case messages.LogFiles(files, descriptors):
                logs.take(files, descriptors)
            case messages.Drain(relieved, closing):
                if not worker.draining:
                    worker.relieved, worker.closing = relieved, closing
                    worker.drain()
            case messages.Stay(seconds):
                self.leave.stay(seconds)
            case messages.ServeOn():
                worker.serve_on()
            case unexpected:
                worker.log.error("unexpected message from the master: %.100r", unexpected)
