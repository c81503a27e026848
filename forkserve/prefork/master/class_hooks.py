"""The hooks of the worker class that run in the master: on_register, on_unregister, on_timeout and on_exit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkserve.prefork.ipc.hooks import call_hook

if TYPE_CHECKING:
    from collections.abc import Mapping

    from forkserve.prefork.ipc.hooks import WorkerHandle
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.worker.worker import Worker


class ClassHooks:
    """Calls the hooks, and keeps the registered slots. An exception in a hook is logged.

    Args:
        worker_class: Defines the hooks.
        pool: Has the slots.
        children: The processes.
    """

    def __init__(self, worker_class: type[Worker], pool: Pool, children: Children) -> None:
        self._class, self._pool, self._children = worker_class, pool, children
        self._registered: dict[int, WorkerHandle] = {}

    def register_slots(self) -> None:
        """Call the hooks for new and removed slots. Called after a plan was made, before it is carried out."""
        slots = {member.slot for member in self._pool.members.workers()}
        for slot in sorted(slots - self._registered.keys()):
            self._registered[slot] = self._children.forker.handle(slot, self._pool.generations.committed)
            self._call("on_register", self._registered[slot])
        for slot in sorted(self._registered.keys() - slots):
            self._call("on_unregister", self._registered.pop(slot))

    def unregister_all(self) -> None:
        """Call the hook for every slot: the server has ended."""
        while self._registered:
            self._call("on_unregister", self._registered.pop(min(self._registered)))

    def timed_out(self, child: Child) -> None:
        """Call the hook for a worker that has passed a deadline."""
        self._call("on_timeout", child.handle)

    def exited(self, worker: WorkerHandle, status: int) -> None:
        """Call the hook for a worker that has exited."""
        self._call("on_exit", worker, status)

    def export(self) -> dict[int, int]:
        """Describe the registered slots, for an upgrade: the generation of each."""
        return {slot: handle.generation for slot, handle in self._registered.items()}

    def adopt(self, found: Mapping[int, int]) -> None:
        """Take the slots over in the new program, without another call of the hook."""
        for slot, generation in found.items():
            handle = self._children.forker.handle(slot, self._pool.generations.committed)  # that has its port
            vars(handle).update(generation=generation)
            self._registered[slot] = handle

    def _call(self, hook: str, *arguments: object) -> None:
        call_hook(f"hook {hook}", getattr(self._class, hook), *arguments)
