"""What the operating system offers: descriptors, signals, sockets, shared memory, as the master and its workers use them."""
