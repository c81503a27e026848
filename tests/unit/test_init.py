"""`import forkserve` in a separate process: it only defines names."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

NAMES = [
    "CommandError", "ConfigError", "HTTPWorker", "Reply", "Server", "Worker", "WouldDeadlock", "connect", "current_worker", "run",
]  # fmt: skip

PROGRAM = """
import contextlib, json, os, signal, sys, threading

def state():
    dispositions = {}
    for one in signal.valid_signals():
        dispositions[int(one)] = repr(signal.getsignal(one))
    descriptors = {}
    for one in range(256):
        with contextlib.suppress(OSError):
            descriptors[one] = repr(os.fstat(one)[:2])
    return {
        "signals": dispositions,
        "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "descriptors": descriptors,
        "environ": dict(os.environ),
        "directory": os.getcwd(),
        "path": list(sys.path),
        "threads": threading.active_count(),
        "hooks": [repr(sys.excepthook), repr(threading.excepthook)],
    }

sys.path.insert(0, sys.argv[1])
before = state()
import forkserve
after = state()
print(json.dumps([before, after, sorted(one for one in sys.modules if one.partition(".")[0] == "forkserve")]))
"""


def test_import_has_no_side_effects() -> None:
    root = __file__.removesuffix("/tests/unit/test_init.py")
    environ = {"PATH": "/usr/bin:/bin", "FORKSERVE_UPGRADE": "1:0", "LISTEN_FDS": "0"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, root], env=environ, capture_output=True, check=True, text=True)
    before, after, modules = json.loads(done.stdout)

    assert after == before
    assert before["environ"].items() >= environ.items()
    assert modules == ["forkserve", "forkserve.version"]


def test_every_public_name_can_be_imported() -> None:
    import forkserve

    assert sorted(forkserve.__all__) == sorted([*NAMES, "__version__", "metrics", "testing"])
    assert all(getattr(forkserve, name).__name__ == name for name in NAMES)


def test_an_unknown_name_raises_attribute_error() -> None:
    import forkserve

    with pytest.raises(AttributeError, match="no attribute 'Sever'"):
        _ = forkserve.Sever
