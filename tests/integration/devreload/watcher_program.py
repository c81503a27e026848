"""Run the watcher alone: `watcher_program.py CHANNEL OPTIONS`; CHANNEL is a descriptor, OPTIONS is a Python literal."""

from __future__ import annotations

import ast
import os
import resource
import signal
import socket
import sys

from forkserve.base.libc import libc
from forkserve.config import load as config
from forkserve.devreload.reloader import make_rules, real_folders
from forkserve.devreload.watcher import Watch, become_watcher
from forkserve.prefork.ipc.channel import Channel

if __name__ == "__main__":
    os.dup2(int(sys.argv[1]), 3)
    options = ast.literal_eval(sys.argv[2])
    since, descriptors, watches = options.pop("since"), options.pop("descriptors", None), options.pop("watches", None)
    settings = config.from_keywords(app="some:app", reload=True, **options).settings
    watch = Watch(real_folders(settings), make_rules(settings), settings.reload_delay, settings.reload_engine, since)
    if descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    if watches is not None:  # in a user namespace, which has its own limits
        assert libc is not None
        assert libc.unshare(0x10000000) == 0, "CLONE_NEWUSER"
        with open("/proc/sys/user/max_inotify_watches", "w") as file:
            file.write(str(watches))
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    become_watcher(Channel(socket.socket(fileno=3), of_child=True), watch, settings, os.getppid())
