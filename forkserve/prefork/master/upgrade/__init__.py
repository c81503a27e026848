"""Upgrade in place: another program takes over, with the same pid, the same listeners and the same workers.

1. A pre-flight runs the new command line in a process of its own until the app is loaded (rehearsal.py). It writes down what it
   has read: the settings, the command line, and the code of forkserve and all other Python modules loaded by then (checked.py).
2. If a reload has run meanwhile, or one of the files has changed, another pre-flight runs.
3. The master writes down its own state (state.py), makes its descriptors inheritable, and executes the new Python with what was
   checked.
4. The new program reloads, which reads the configuration.

Before the exec, a failure changes nothing. After it there is no way back. So nothing is read or imported that may have changed
since the pre-flight (modules.py), and what cannot be opened any more is left out: listeners and workers stay, whatever is on
disk. A user's own program is run again by its command line instead, since only that program can set itself up.

The interpreter, its standard library and required C modules must be unchanged. An optional C module that cannot be loaded any
more is left out. If the addresses change, listeners.py decides which socket serves which generation.
"""
