"""Upgrade in place: another program takes over with the same pid, the same listeners and the same workers.

A pre-flight runs the new command line in a process of its own, up to the loaded app, and writes down what it has read: the
settings, the command line, the code of forkserve and of all other modules in Python that it has loaded by then (judged.py).
If a reload has run meanwhile, or one of the files has changed, there is another pre-flight. Then the master writes down what
it knows (state.py), lets its descriptors be inherited, and executes the new Python with what was judged; a reload follows,
which reads the configuration. What fails before the exec changes nothing. After it there is no way back, and so nothing is
read or imported that may have changed since (modules.py), and what cannot be opened any more is done without: listeners and
workers are kept whatever is on disk. A program of the user's own is run again instead, since only it can set itself up.

What must be as it was: the interpreter, its standard library, and modules in C, though those of them that are optional are
done without. If the addresses change, listeners.py decides which socket serves which generation.
"""
