"""From messages to an application: WSGI, ASGI, WebSocket, lifespan."""
