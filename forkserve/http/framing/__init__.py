"""From bytes to messages and back: connections, TLS, the PROXY header, what waits to be written."""
