"""WebSocket (RFC 6455, RFC 7692) on a connection that HTTP has handed over: frames, pings, closing."""
