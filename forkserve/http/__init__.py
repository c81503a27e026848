"""HTTP/1.x and WebSocket for one process, on sockets that it is given; knows nothing of masters and workers."""
