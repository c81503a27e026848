"""SyslogFile: a log that goes to the syslog daemon of this machine, by its unix socket. It never blocks.

Lines wait as those of any log do (`LogFile`) while the daemon is slow or not there.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
import time
from typing import Final

from forkserve.base.errors import ConfigError
from forkserve.base.logfile import LogFile
from forkserve.base.logforms import SEPARATOR, printable

FORM: Final = re.compile("syslog:([^@]+)(?:@(/.*))?")
SOCKET: Final = "/var/run/syslog" if sys.platform == "darwin" else "/dev/log"
DAEMON: Final = 3 << 3  # the facility
INFO, ERR = 6, 3
MAX_DATAGRAM: Final = 8000  # bytes that syslog daemons take in one message
_LONGEST_ESCAPE: Final = 4  # characters for one byte
_LEAD: Final = re.compile(b"<([0-7])>")


class SyslogFile(LogFile):
    """Sends each line as one message of facility `daemon`, or as several if it is too long.

    Args:
        option: The option that names it, for messages.
        target: `syslog:NAME` or `syslog:NAME@/path/of/its/socket`.
        severity: That of lines that do not say theirs.
        of_ours: Whether the lines are records of ours: `<N>` in front is the severity, and `SEPARATOR` a newline within one.
        name: As for `LogFile`.
        descriptor: The socket, if it was inherited.

    Raises:
        ConfigError: There is no syslog daemon.
    """

    takes_output = False

    def __init__(
        self,
        option: str,
        target: str,
        *,
        severity: int = INFO,
        of_ours: bool = False,
        name: str = "",
        descriptor: int | None = None,
    ) -> None:
        match = FORM.fullmatch(target)
        assert match  # validated as a setting
        self._tag, self._socket_path = match[1], match[2] or SOCKET
        self._severity, self._of_ours = severity, of_ours
        self._last = severity  # of the line that is sent in several messages
        self._continues = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, fileno=descriptor)
        self._socket.setblocking(False)
        try:
            self._socket.connect(self._socket_path)
        except OSError as error:
            if descriptor is None:
                self._socket.close()
                why = error.strerror or error
                raise ConfigError(f"{option}: cannot reach the syslog socket {self._socket_path}: {why}") from None
        super().__init__(self._socket.fileno(), target, None, name)

    def prepare(self) -> None:
        """Send lines to the socket."""
        self._most, self._send = MAX_DATAGRAM, self._send_line

    def may_recover(self, error: OSError) -> bool:
        """Return True: the daemon may be started again."""
        return True

    def reopened(self) -> int | None:
        """Return None: nothing rotates a socket."""
        return None

    def is_current(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send_line(self, piece: bytes) -> int:
        """Send the first line of a piece, or the start of it; return the number of its bytes that went."""
        line, newline, _ = piece.partition(b"\n")
        if not newline:
            line = _cut(line, len(line))
        severity = self._last if self._continues else self._severity
        if self._of_ours and not self._continues and (lead := _LEAD.match(line)):
            severity, begin = int(lead[1]), lead.end()
        else:
            begin = 0
        data = self._shown(line[begin:])
        if len(data) > MAX_DATAGRAM:
            line, newline = _cut(line, MAX_DATAGRAM // _LONGEST_ESCAPE), b""
            data = self._shown(line[begin:])
        head = f"<{DAEMON | severity}>{time.strftime('%b %d %H:%M:%S')} {self._tag}[{os.getpid()}]: "
        if not self._deliver(head.encode() + data):
            return 0
        self._last, self._continues = severity, not newline
        return len(line) + len(newline)

    def _shown(self, line: bytes) -> bytes:
        text = line.decode("utf-8", "backslashreplace")
        return ("\n".join(map(printable, text.split(SEPARATOR))) if self._of_ours else printable(text)).encode()

    def _deliver(self, message: bytes) -> bool:
        """Send a message, once more if the daemon was restarted; return whether it went, or never will. Raises OSError."""
        try:
            try:
                self._socket.send(message)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    return True
                self._socket.connect(self._socket_path)
                self._socket.send(message)
        except BlockingIOError:
            return False
        return True


def _cut(line: bytes, end: int) -> bytes:
    """Return the start of a line, without a last character that is not ASCII and may not be whole."""
    start = line[:end]
    if start and start[-1] >= 0x80:
        lead = next((at for at in range(len(start) - 1, max(0, len(start) - 5), -1) if start[at] >= 0xC0), None)
        return start[:lead]
    return start
