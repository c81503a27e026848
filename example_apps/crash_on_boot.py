"""An app that does not load: its import raises, as with a missing setting or a database that is down.

    forkserve example_apps.crash_on_boot:app

Prints the traceback once, ends with exit code 4.
"""

REASON = "this app never starts"
raise RuntimeError(REASON)
