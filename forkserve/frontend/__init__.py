"""What a front end (nginx, HAProxy, Caddy) needs to know of a server, and its configuration as text."""
