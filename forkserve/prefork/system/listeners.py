"""The sockets that a server listens on: opened, inherited, handed to workers, closed.

The master opens each one before the first fork that needs it, and keeps its own copy as long as the address is wanted, so that
an accept queue outlives any worker.

An upgrade may bring other addresses. Addresses belong to generations: a worker accepts from those of its own generation,
whenever it is forked. So

- the old addresses stay open and are used for new workers until the new generation is committed, and again if it is rolled back;
  the new ones, which have not been announced, are closed if the generation is never committed;
- once it is committed, whatever happens to the reload, new workers have the new addresses, and an old address stays open as long
  as workers accept from it, or may do so again;
- the listed address of a slot is the one that its ready worker accepts from: the old address until the new worker is ready and
  its generation is committed.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from forkserve.base.errors import ListenError
from forkserve.base.handover import InheritedFd, copied
from forkserve.base.records import record
from forkserve.config.addresses import Address, parse_address
from forkserve.prefork.system import acceptqueue
from forkserve.prefork.system.binding import Listener
from forkserve.prefork.system.opener import Opener

__all__ = ["Address", "Listener", "Listeners", "parse_address"]


@record
class Addresses:
    """The settings of addresses of a program, in an upgrade."""

    bind: tuple[str, ...] = ()
    base_port: int | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    uds: str | None = None
    fd: int | None = None


@record
class ListenerState:
    """A listener in an upgrade; the fields are those of `Listener`."""

    socket: InheritedFd
    slot: int | None
    adopted: bool
    opened_for: str
    first: int
    last: int | None
    without: int | None
    left_at: float | None
    lost: bool
    file: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class AddressSet:
    """The addresses of workers of the generations from `first` to `last`; None: of all later ones."""

    bind: Sequence[str]
    host: str
    base_port: int | None
    first: int = 0
    last: int | None = None

    def of(self, slots: Iterable[int]) -> list[tuple[int, Address]]:
        """Return the slots' own addresses. Raises ListenError."""
        return [] if self.base_port is None else [(slot, self._of_slot(slot, self.base_port)) for slot in slots]

    def _of_slot(self, slot: int, base_port: int) -> Address:
        port = base_port and base_port + slot - 1
        if port > 65535:
            raise ListenError(f"worker {slot} would listen on port {port}; the last one is 65535")
        return Address("tcp", host=self.host, port=port)


class Listeners:
    """The master's table of listeners: those that all workers share, and one for each slot."""

    def __init__(
        self,
        *,
        bind: Sequence[str] = (),
        host: str = "127.0.0.1",
        base_port: int | None = None,
        backlog: int = 2048,
        socket_mode: int = 0o660,
        owner: tuple[int, int] | None = None,
    ) -> None:
        self._address_sets = [AddressSet(bind, host, base_port)]  # while an upgrade's reload runs, the old ones and the new ones
        self._bind = [parse_address(text) for text in bind]
        ports = Counter(address.port for address in self._bind if address.kind == "tcp")
        self._opener = Opener(backlog, socket_mode, owner, [port for port, times in ports.items() if port and times > 1])
        self._all: list[Listener] = []
        self._old_only: list[Listener] = []  # only for old workers, until the reload after an upgrade has ended
        self._renewed: list[tuple[Listener, Listener]] = []  # listeners that lost their file, with their replacements
        self._turned = False  # new slots get only the new addresses

    def __iter__(self) -> Iterator[Listener]:
        """Iterate over the open listeners, the slots' first, in the order of their slots."""
        return iter(sorted(self._all, key=lambda one: (one.slot is None, one.slot or 0)))

    def open(self, slots: int, environ: Mapping[str, str]) -> None:
        """Open the shared addresses and those of slots 1 to `slots`; adopt LISTEN_FDS sockets.

        An inherited socket serves the address that it matches, else it is shared by all workers.
        Raises ListenError, after closing everything that it has opened.
        """
        try:
            self._opener.inherit(environ)
            for address in self._bind:
                self._open_for(address, None, self._address_sets[-1])
            self.open_slots(range(1, slots + 1))
            self._all += self._opener.unclaimed()
        except ListenError:
            self.close_all()
            raise

    def open_slots(self, slots: Collection[int]) -> None:
        """Open the slots' own addresses that are not open yet: all of them, or none. Raises ListenError."""
        before = list(self._all)
        self.admit(slots)
        try:
            for wanted in self._address_sets[-1:] if self._turned else self._address_sets:
                there = {one.slot for one in self._all if one.serves(wanted.first)}
                for slot, address in wanted.of(slot for slot in slots if slot not in there):
                    self._open_for(address, slot, wanted)
        except ListenError:
            self._close(lambda one: one not in before)
            raise

    def _open_for(self, address: Address, slot: int | None, wanted: AddressSet) -> None:
        listener = self._opener.open(address, self._all, wanted.first)
        listener.slot, listener.opened_for, listener.first, listener.last = slot, str(address), wanted.first, wanted.last
        self._all.append(listener)
        if wanted.last is not None:
            self._old_only.append(listener)

    def for_slot(self, slot: int, generation: int) -> list[Listener]:
        """Return the listeners of a worker: its slot's own one, then the shared ones."""
        return [one for one in self if one.accepted_by(slot, generation)]

    def port(self, slot: int, generation: int) -> int | None:
        """Return the slot's own TCP port, if it has one."""
        return next((one.port for one in self if one.slot == slot and one.serves(generation)), None)

    def listed(self, serving: Mapping[int, int], committed: int) -> list[Listener]:
        """Return the listeners that requests may be sent to: the slots' own ones, then the shared ones, the preferred first.

        Args:
            serving: The generations of ready workers, by their slots.
            committed: The generation of workers that are not ready yet.
        """
        ready = {*serving.values()}
        own = [one for one in self if one.slot is not None and one.serves(serving.get(one.slot, committed))]
        shared = [one for one in self if one.slot is None and any(map(one.serves, ready | {committed}))]
        shared.sort(key=lambda one: (not any(map(one.serves, ready)), not one.serves(committed)))
        return own + shared

    def elsewhere(self, committed: int) -> list[Listener]:
        """Return the listeners that no worker of the committed generation has."""
        return [one for one in self._all if not one.serves(committed)]

    def look(self) -> list[Listener]:
        """Look for lost socket files; return the listeners that had their file at the last look. For the master."""
        before = {id(one) for one in self._all if one.lost}
        for one in self._all:
            one.lost = one.last is None and one.has_lost_its_file()
        return [one for one in self._all if one.lost and id(one) not in before]

    def renew(self, generation: int) -> list[ListenError]:
        """Replace listeners with a lost socket file, for workers from this generation on. Return the errors."""
        self.look()
        errors = []
        for old in [one for one in self._all if one.lost]:
            try:
                fresh = self._opener.renew(parse_address(old.opened_for))
            except ListenError as error:
                errors.append(error)
                continue
            fresh.slot, fresh.opened_for, fresh.first, old.last = old.slot, old.opened_for, generation, generation - 1
            self._all.append(fresh)
            self._renewed.append((old, fresh))
        return errors

    def settle_renewed(self, committed: int) -> None:
        """Close the replacements of a reload that has ended, unless its generation is the committed one."""
        renewed, self._renewed = self._renewed, []
        for old, fresh in renewed:
            if committed < fresh.first:
                old.last = None
                self._close(lambda one, gone=fresh: one is gone)  # type: ignore[misc]

    def closing(
        self,
        worker: tuple[int, int],
        committed: int,
        kept: Collection[int] | None,
        others: Collection[tuple[int, int]],
        *,
        back: bool,
    ) -> list[int]:
        """Return the identities (`acceptqueue`) of the listeners that are closed when a draining worker accepts no more.

        Args:
            worker: Its slot and generation.
            committed: The generation of new workers.
            kept: The slots that keep their listeners; None if everything is closed.
            others: Slots and generations of the workers that stay.
            back: Whether workers of earlier generations may be forked again.
        """
        back = back or (len(self._address_sets) > 1 and committed < self._address_sets[-1].first)

        def stays(one: Listener) -> bool:
            if one.adopted:
                return True  # another process has it too, such as a service manager, for the next server
            if kept is None:
                return False
            wanted = (one.slot is None or one.slot in kept) and (back or one.serves(committed))
            return wanted or any(one.accepted_by(*other) for other in others)

        used = {acceptqueue.identity(one.sock) for one in self._all if stays(one)}
        return [mine for one in self.for_slot(*worker) if (mine := acceptqueue.identity(one.sock)) not in used]

    def admit(self, slots: Collection[int]) -> None:
        """Let connections into the queues of these slots' own listeners again: they are not closed after all."""
        for one in self._all:
            if one.slot in slots and not one.adopted:
                acceptqueue.admit(one.sock)

    def last_look(self, slot: int | None) -> bool:
        """Let no more connections into the queue of a slot's own listener (None: the shared ones); return whether some wait.

        Adopted listeners are left alone: another process has them too, and may accept.
        """
        mine = [one for one in self._all if one.slot == slot and not one.adopted]
        for one in mine:
            acceptqueue.refuse(one.sock)
        return any(acceptqueue.length(one.sock) for one in mine)

    def close(self, slot: int | None) -> None:
        """Close a slot's own listener (None: the shared ones), and remove its socket file if it was made here.

        For the master, when no worker accepts from it any more.
        """
        self._close(lambda one: one.slot == slot)

    def _close(self, which: Callable[[Listener], bool]) -> None:
        for listener in [one for one in self._all if which(one)]:
            self._all.remove(listener)
            listener.unlink(self._all)
            listener.close()

    def close_all(self) -> None:
        """Close all listeners, for the master at its end."""
        for listener in self._opener.unclaimed():
            listener.close()
        self._close(lambda _: True)

    def close_unused(
        self,
        committed: int,
        workers: Collection[tuple[int, int]],
        advertised: Callable[[Listener], bool],
        now: float,
        longest: float,
    ) -> float | None:
        """Close the listeners that no new worker gets, and that none of these workers accepts from. For the master.

        Args:
            committed: The generation of new workers.
            workers: Slots and generations.
            advertised: Whether a front end may send requests to one: then it is kept, as its worker may have died.
            now: The time.
            longest: Seconds for which it is kept at most.

        Returns when this must be called again for those that are kept from now on; None for never.
        """
        if len(self._address_sets) > 1 and committed < self._address_sets[-1].first:
            return None  # it is about to be committed
        if any(committed < fresh.first for _, fresh in self._renewed):
            return None  # as above
        due = []
        for listener in self.elsewhere(committed):
            if any(listener.accepted_by(*worker) for worker in workers):
                listener.left_at = None
                continue
            kept = now < (now if listener.left_at is None else listener.left_at) + longest and advertised(listener)
            if not kept:
                self._close(lambda one, gone=listener: one is gone)  # type: ignore[misc]
            elif listener.left_at is None:
                listener.left_at = now
                due.append(now + longest)
        return min(due, default=None)

    def close_in_child(self, kept: Collection[Listener]) -> None:
        """Close the copies that a child must not hold: all but those that it inherits. For the child, after a fork."""
        for listener in self._all:
            if listener not in kept:
                listener.close()

    def export(self) -> list[ListenerState]:
        """Describe them, for an upgrade."""
        return list(map(export_one, self._all))

    def adopt(
        self, found: Sequence[ListenerState], slots: Collection[int], generations: tuple[int, int], before: Addresses
    ) -> ListenError | None:
        """Take them over in the new program, which may have other addresses in its settings, until `settle`.

        An address is matched as it was written, or else by the bound address. If a new one cannot be opened, all are kept as
        they were, and the error is returned.

        Args:
            found: The listeners of the previous program.
            slots: Those that have listeners.
            generations: The committed one, and that of the reload that follows.
            before: The settings of the previous program.
        """
        committed, following = generations
        now, self._all = self._address_sets[-1], [adopt_one(one) for one in found]
        was = AddressSet(before.bind, before.host, before.base_port, first=committed, last=following - 1)
        self._address_sets = [was, replace(now, first=following)]
        old = list(self._all)
        try:
            both = [*((None, address) for address in self._bind), *now.of(slots)]
            wanted = {(slot, str(address)): address for slot, address in both}
            for listener in (one for one in old if one.last is None):
                if wanted.pop((listener.slot, listener.opened_for), None):
                    continue
                if listener.opened_for and (listener.slot is None or listener.slot in slots):
                    self._old_only.append(listener)
                    listener.last = following - 1
            for (slot, _), address in wanted.items():
                self._open_for(address, slot, self._address_sets[-1])
        except ListenError as error:
            self._close(lambda one: one not in old)
            self.settle(committed, following - 1)
            return error
        return None

    def turn(self, *, committed: bool) -> None:
        """Set whether new slots get only the new addresses: the upgrade is about to be committed, or is not, after all."""
        self._turned = committed

    def settle(self, committed: int, newest: int) -> bool:
        """End the transition of an upgrade, after its reload. Return whether the old addresses are in use (again).

        Args:
            committed: The generation of new workers.
            newest: The last one tried: if the upgrade's was not tried, the next reload gets that generation.
        """
        if len(self._address_sets) == 1:
            return True
        (was, now), old_only = self._address_sets, self._old_only
        self._old_only, self._turned = [], False
        if committed >= now.first:
            self._address_sets = [now]
            return False
        self._address_sets = [replace(was, last=None)]
        for listener in self._all:
            if listener.first == now.first:
                listener.last = min(now.first, newest)
            elif listener in old_only:
                listener.last = None
                listener.without = now.first if newest >= now.first else listener.without
        return True


def export_one(one: Listener) -> ListenerState:
    """Describe a listener, for an upgrade."""
    return copied(one, ListenerState, socket=InheritedFd(one.sock.fileno()), file=one._file)  # noqa: SLF001 - its own module


def adopt_one(found: ListenerState) -> Listener:
    """Take a listener over in the new program."""
    sock = socket.socket(fileno=found.socket)
    sock.setblocking(False)
    return copied(found, Listener, sock=sock, _file=found.file)
