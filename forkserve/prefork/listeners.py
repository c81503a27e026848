"""The sockets that a server listens on: bound, inherited, handed to workers, closed.

The master opens each before the first fork that needs it and keeps its own copy as long as the
address is wanted, so that an accept queue outlives any worker.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from forkserve.errors import ListenError
from forkserve.prefork.addresses import Address, parse_address
from forkserve.prefork.inherited import adopt, inherit
from forkserve.prefork.portholder import describe_holder
from forkserve.prefork.upgrade.state import Exported, Kept, fields_of, made

__all__ = ["Address", "Listener", "Listeners", "parse_address"]


@dataclass(eq=False, slots=True)
class Listener:
    """One listening socket, non-blocking.

    `slot` is the worker it belongs to, None if all workers share it; `adopted` says that somebody
    else bound it; `asked` is the address that it was opened for, empty if for none.
    """

    sock: socket.socket
    slot: int | None = None
    adopted: bool = False
    asked: str = ""
    # The socket file as we made it (device, inode): another server may have replaced it since.
    _file: tuple[int, int] | None = field(default=None, repr=False)

    @property
    def port(self) -> int | None:
        """The TCP port that is really bound; None for a unix socket."""
        return None if self.sock.family == socket.AF_UNIX else int(self.sock.getsockname()[1])

    def describe(self, scheme: str) -> str:
        """Return it for a reader: `http://127.0.0.1:9000 (worker 1)`, or `unix:/path`."""
        return self.address(scheme) + ("" if self.slot is None else f" (worker {self.slot})")

    def address(self, scheme: str) -> str:
        """Return `http://127.0.0.1:9000`, or `unix:/path`, which is absolute."""
        name = self.sock.getsockname()
        if self.sock.family == socket.AF_UNIX:
            path = _unix_name(name)
            return f"unix:{path if path.startswith('@') else os.path.abspath(path)}"
        host = f"[{name[0]}]" if self.sock.family == socket.AF_INET6 else name[0]
        return f"{scheme}://{host}:{name[1]}"

    def close(self) -> None:
        """Close this process's copy."""
        self.sock.close()

    def unlink(self) -> None:
        """Remove the socket file, if it is still the one that we made. For the master."""
        if self._file is None:
            return
        path = self.sock.getsockname()
        with contextlib.suppress(OSError):
            if _identity(path) == self._file:
                os.unlink(path)


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
        self._bind = [parse_address(text) for text in bind]
        self._host = host
        self._base_port = base_port
        self._backlog = backlog
        self._mode = socket_mode
        self._owner = owner
        self._inherited: list[Listener] = []  # those that are open already, for the addresses that they match
        self._all: list[Listener] = []
        self._retired: list[Listener] = []  # not wanted any more after an upgrade, but old workers accept from them
        self._undo: Callable[[], None] | None = None  # of what an upgrade has changed, until its reload is done

    def __iter__(self) -> Iterator[Listener]:
        """Iterate over the open listeners, the slots' first, in the order of their slots."""
        return iter(sorted(self._all, key=lambda one: (one.slot is None, one.slot or 0)))

    def open(self, slots: int, environ: Mapping[str, str]) -> None:
        """Open the shared addresses and those of slots 1 to `slots`; adopt LISTEN_FDS sockets.

        An inherited socket serves the address that it matches, else it is shared by all workers.
        Raises ListenError; what was opened before is closed then.
        """
        try:
            self._inherited = [Listener(sock, adopted=True) for sock in inherit(environ)]
            for address in self._bind:
                self._all.append(self._open_for(address, None))
            self.open_slots(range(1, slots + 1))
            self._all += self._inherited
            self._inherited = []
        except ListenError:
            self.close_all()
            raise

    def open_slots(self, slots: Iterable[int]) -> None:
        """Open what is not open yet of the slots' own addresses: all of them, or none.

        Raises ListenError.
        """
        if self._base_port is None:
            return
        before = len(self._all)
        open_now = {one.slot for one in self._all}
        try:
            for slot in slots:
                if slot not in open_now:
                    self._all.append(self._open_for(self._slot_address(slot, self._base_port), slot))
        except ListenError:
            for listener in self._all[before:]:
                listener.close()
            del self._all[before:]
            raise

    def _slot_address(self, slot: int, base_port: int) -> Address:
        port = base_port and base_port + slot - 1
        if port > 65535:
            raise ListenError(f"worker {slot} would listen on port {port}; the last one is 65535")
        return Address("tcp", host=self._host, port=port)

    def _open_for(self, address: Address, slot: int | None) -> Listener:
        listener = self._open(address)
        listener.slot, listener.asked = slot, str(address)
        return listener

    def _open(self, address: Address) -> Listener:
        match address.kind:
            case "fd":
                for listener in self._inherited:
                    if listener.sock.fileno() == address.fd:
                        self._inherited.remove(listener)
                        return listener
                return Listener(adopt(address.fd), adopted=True)
            case "unix":
                inherited = self._take(socket.AF_UNIX, _same_file(address.path))
                return inherited or _bind_unix(address, self._mode, self._backlog, self._owner)
        family, name = _resolve(address)
        inherited = self._take(family, name[:2]) if name[1] else None
        return inherited or Listener(_bind_tcp(address, family, name, self._backlog))

    def _take(self, family: int, name: object) -> Listener | None:
        """Return the inherited listener that is bound to the address, if there is one."""
        for listener in self._inherited:
            if listener.sock.family == family and _comparable(listener.sock) == name:
                self._inherited.remove(listener)
                return listener
        return None

    def for_slot(self, slot: int) -> list[Listener]:
        """Return what a worker of the slot inherits: its own listener, then the shared ones."""
        return [one for one in self if one.slot in (slot, None)]

    def port(self, slot: int) -> int | None:
        """Return the TCP port that is the slot's own, if it has one."""
        return next((one.port for one in self if one.slot == slot), None)

    def close(self, slot: int | None) -> None:
        """Close a slot's own listener, or with None the shared ones; remove a socket file of ours.

        For the master, when no worker accepts from it any more.
        """
        for listener in [one for one in self._all if one.slot == slot]:
            listener.unlink()
            listener.close()
            self._all.remove(listener)

    def close_all(self) -> None:
        """Close everything, for the master at its end."""
        for listener in self._inherited:
            listener.close()
        for slot in {one.slot for one in self._all}:
            self.close(slot)
        self.close_retired()

    def close_retired(self) -> None:
        """Close what is not wanted any more, when no worker of before the upgrade is left."""
        self._undo = None
        while self._retired:
            listener = self._retired.pop()
            listener.unlink()
            listener.close()

    def take_back(self) -> None:
        """Go on with the addresses of before the upgrade, as its reload has failed and the old workers stay."""
        if self._undo is not None:
            self._undo()

    def close_in_child(self, slot: int | None) -> None:
        """Close the copies that a worker of the slot must not hold; with None, all of them. For the child, after a fork."""
        for listener in self._all:
            if slot is None or listener.slot not in (slot, None):
                listener.close()
        for listener in self._retired:
            listener.close()

    def export(self) -> list[Exported]:
        """Describe them, for an upgrade."""
        return [
            fields_of(one, "sock") | {"socket": Kept(one.sock.fileno()), "_file": one._file and list(one._file)}  # noqa: SLF001 - its own module
            for one in [*self._all, *self._retired]
        ]

    def adopt(self, found: Sequence[Exported], slots: Iterable[int]) -> ListenError | None:
        """Go on with them in the new program, whose settings may ask for others.

        An address is kept by how it was written, or else by what it is bound to; those that nobody asks for any more are
        kept for the old workers alone. If a new one cannot be had, all are kept as they were, and the error is returned.
        """
        wanted: list[tuple[int | None, str]] = [(None, str(address)) for address in self._bind]
        before, opened = [_adopted(one) for one in found], list[Listener]()
        were = [(listener.slot, listener.asked) for listener in before]

        def undo() -> None:
            for listener in (one for one in opened if one not in before):
                listener.unlink()
                listener.close()
            for listener, (slot, asked) in zip(before, were, strict=True):
                listener.slot, listener.asked = slot, asked
            self._all, self._inherited, self._retired, self._undo = before, [], [], None

        try:
            if self._base_port is not None:
                wanted += [(slot, str(self._slot_address(slot, self._base_port))) for slot in slots]
            self._inherited = []
            for listener in before:
                key = listener.slot, listener.asked
                if key in wanted:
                    wanted.remove(key)
                elif listener.asked and (listener.slot is None or listener.slot in slots):
                    self._inherited.append(listener)
                    continue
                self._all.append(listener)
            opened.extend(self._open_for(parse_address(text), slot) for slot, text in wanted)
        except ListenError as error:
            undo()
            return error
        self._all += opened
        self._retired, self._inherited, self._undo = self._inherited, [], undo
        return None


def _adopted(found: Exported) -> Listener:
    sock = socket.socket(fileno=found["socket"])
    sock.setblocking(False)
    return made(Listener, found, sock=sock, _file=found["_file"] and tuple(found["_file"]))


def _resolve(address: Address) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        raise ListenError(f"cannot listen on {address}: {address.host!r}: {reason}") from None
    # A name such as localhost has two addresses; clients that try IPv6 first fall back to IPv4.
    family, _, _, _, name = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, name  # type: ignore[return-value]


def _new_socket(family: int, address: Address) -> socket.socket:
    try:
        return socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:  # no descriptor is left, or the kernel has no such family
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from None


def _bind_tcp(address: Address, family: int, name: tuple[str, int], backlog: int) -> socket.socket:
    sock = _new_socket(family, address)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # [::] is not also 0.0.0.0, so that both can be bound side by side.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(name)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            holder = describe_holder(address.port)
            reason = f"port {address.port} is already in use{holder}"
        elif error.errno == errno.EACCES:
            reason = f"port {address.port} needs privileges that this process has not"
        else:
            reason = error.strerror or str(error)
        raise ListenError(f"cannot listen on {address}: {reason}") from None
    sock.setblocking(False)
    return sock


def _bind_unix(address: Address, mode: int, backlog: int, owner: tuple[int, int] | None) -> Listener:
    path = address.path
    abstract = path.startswith("@")
    sock = _new_socket(socket.AF_UNIX, address)
    sock.setblocking(False)
    try:
        if abstract:
            sock.bind("\0" + path[1:])
        else:
            _remove_stale(address)
            # The mode holds from the first moment: between bind and chmod anybody could connect.
            mask = os.umask(0o777 & ~mode)
            try:
                sock.bind(path)
            finally:
                os.umask(mask)
            os.chmod(path, mode)
            if owner is not None:
                os.chown(path, *owner)
        sock.listen(backlog)
    except ListenError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise ListenError(f"cannot listen on {address}: {reason}") from None
    return Listener(sock, _file=None if abstract else _identity(path))


def _remove_stale(address: Address) -> None:
    """Remove a socket file that nobody listens on. Raises ListenError for anything else."""
    try:
        if not stat.S_ISSOCK(os.lstat(address.path).st_mode):
            raise ListenError(f"cannot listen on {address}: the file exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            os.unlink(address.path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its queue is full, so it lives
        except OSError as error:
            raise ListenError(f"cannot listen on {address}: {error.strerror}") from None
    raise ListenError(f"cannot listen on {address}: another server is listening there")


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _comparable(sock: socket.socket) -> object:
    name = sock.getsockname()
    return _same_file(_unix_name(name)) if sock.family == socket.AF_UNIX else name[:2]


def _same_file(path: str) -> str:
    """Return the one way to write a socket's path: `s` is `/run/s` in `/run`, and so may be `/var/run/s`."""
    return path if path.startswith("@") else os.path.realpath(path)


def _unix_name(name: str | bytes) -> str:
    """Return the path of a socket's name, `@name` for the abstract namespace."""
    if isinstance(name, bytes):
        return "@" + name[1:].decode("utf-8", "backslashreplace")
    return name
