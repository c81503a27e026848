"""Upgrade in place: another program takes over with the same pid, the same listeners and the same workers.

A pre-flight runs the new command line in a process of its own, up to the loaded app. Then the master writes down what it
knows (state.py), lets its descriptors be inherited, and executes that command line; a reload follows. What fails before
the exec changes nothing; after it there is no way back. Who listens where, if the addresses change, is in listeners.py.
"""
