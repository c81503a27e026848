"""The configuration of nginx. Pure.

Rejected: `max_fails=1` for workers of one machine, since their master keeps each port open while it replaces a worker, and
leaving the port out would only lose the connections in its queue; `proxy_next_upstream` for POST, which may have been processed;
`http_503` there unless the server itself answers 503, or each page of an app in maintenance would be requested from every worker;
`proxy_buffering off`: responses of unknown length pass nginx at once anyway, and with the others a worker must not wait for a
slow client.
"""

from urllib.parse import quote

from forkserve.config.addresses import Address
from forkserve.config.settings import KIB
from forkserve.config.values import show_bytes
from forkserve.frontend.config import EDGE, HEALTH, FrontendConfig
from forkserve.frontend.page import Page, quoted, seconds

BALANCES = {
    "least_conn": ("least_conn", "next is the worker with the fewest requests in hand: none waits behind a slow one"),
    "ip_hash": ("ip_hash", "a client stays with its worker; chosen by its address (IPv4: the first three numbers)"),
    "random": ("random two least_conn", "of two workers at random, the one with fewer requests in hand"),
}
ADDED = "$proxy_add_x_forwarded_for"
BUCKET = 64  # bytes
TYPES = (
    ("text/html", "html htm"),
    ("text/css", "css"),
    ("text/javascript", "js mjs"),
    ("text/plain", "txt"),
    ("text/xml", "xml"),
    ("application/json", "json map"),
    ("application/manifest+json", "webmanifest"),
    ("application/pdf", "pdf"),
    ("application/wasm", "wasm"),
    ("application/zip", "zip"),
    ("audio/mpeg", "mp3"),
    ("font/ttf", "ttf"),
    ("font/woff", "woff"),
    ("font/woff2", "woff2"),
    ("image/avif", "avif"),
    ("image/gif", "gif"),
    ("image/jpeg", "jpeg jpg"),
    ("image/png", "png"),
    ("image/svg+xml", "svg"),
    ("image/webp", "webp"),
    ("image/x-icon", "ico"),
    ("video/mp4", "mp4"),
    ("video/webm", "webm"),
)


def render(front: FrontendConfig) -> str:
    """Return the whole configuration. Raises ValueError for a path that it cannot hold."""
    page = Page()
    page.note(
        f"nginx for {front.title}.",
        "Made by `forkserve nginx`. Timeouts and limits are the server's: generate it again when they change.",
    )
    page.gap()
    page.note("user www-data;  # the user that opens sockets and files: enable this line if nginx's default is another user")
    page.say("worker_processes auto", "one nginx process per core")
    page.say("worker_rlimit_nofile 16384", "descriptors per process: two for each proxied connection, and files")
    page.gap()
    with page.block("events"):
        page.say("worker_connections 4096", "per nginx process, to clients and to workers together")
    page.gap()
    with page.block("http"):
        _room(front, page)
        _backends(front, page)
        page.gap()
        _maps(front, page)
        page.gap()
        if front.static:
            _types(page)
            page.gap()
        if front.certificate and not front.listen:
            _to_https(front, page)
            page.gap()
        with page.block("server"):
            _server(front, page)
    return page.text


def render_upstream(front: FrontendConfig) -> str:
    """Return the upstream only, to be included within `http`."""
    page = Page()
    made = "Kept up to date by the server while it runs" if front.live else "Made by `forkserve nginx --upstream-only`"
    page.note(f"nginx's upstream for {front.title}.", f"{made}; include it within `http`.")
    page.gap()
    _upstream(front, page)
    return page.text


def _room(front: FrontendConfig, page: Page) -> None:
    """Widen nginx's tables of names, if the default (a cache line) is too small."""
    longest = (
        ("variables", len(f"{front.field}_connection"), "the length of names of variables, which contain the server's name"),
        ("server_names", max(map(len, front.server_names), default=0), "the length of a name of this server"),
    )
    found = [(table, room, why) for table, length, why in longest if (room := _bucket(length)) > BUCKET]
    for table, room, why in found:
        page.say(f"{table}_hash_bucket_size {room}", why)
    if found:
        page.gap()


def _bucket(length: int) -> int:
    """Return the size of a bucket that holds a name: a pointer, the name with its length in whole words, and a terminator."""
    size = BUCKET
    while 8 + -(-(length + 2) // 8) * 8 + 8 > size:
        size *= 2
    return size


def _backends(front: FrontendConfig, page: Page) -> None:
    if front.upstream_file is None:
        _upstream(front, page)
    else:
        page.say(f"include {quoted(front.upstream_file)}", f"the upstream {front.ident}: one port per worker")


def _upstream(front: FrontendConfig, page: Page) -> None:
    limits, number = front.terms, len(front.backends)
    with page.block(f"upstream {front.ident}"):
        zone = -(-max(64, 2 * number) // 64) * 64
        page.say(f"zone {front.ident} {zone}k", "nginx's processes share the load of each worker")
        if front.balance.way == "hash":
            why = "requests with the same key stay with one worker, even when workers come and go"
            page.say(f"hash {front.balance.key} consistent", why)
        elif front.balance.way != "round_robin" and number > 1:
            page.say(*BALANCES[front.balance.way])
        page.gap()
        sure, unsure = "max_fails=0", "max_fails=1 fail_timeout=5s"
        if number > len(front.doubtful) and number > 1:
            page.note(f"{sure}: never left out after a failure, since the port stays open while a worker is replaced.")
        if front.doubtful:
            where = "on a machine that is gone" if front.remote else "of a worker that is not needed for the load"
            page.note(f"{unsure}: left out for a while, since the port may be {where}.")
        for one in front.backends:
            line = f"server {quoted(str(one.address))} {unsure if one in front.doubtful else sure}{' down' if one.down else ''}"
            page.say(line, one.label)
            if number == 1:
                page.say(line, "once more: a request that a dying worker lost may be tried again")
        if limits.idle:
            page.gap()
            page.say(f"keepalive {max(32, 4 * number)}", "idle connections kept per nginx process, to save handshakes")
            why = f"less than {front.option('keep_alive')}, so that no request meets a connection that is being closed"
            page.say(f"keepalive_timeout {seconds(limits.idle)}", why)


def _maps(front: FrontendConfig, page: Page) -> None:
    with page.block(f"map $http_upgrade ${front.field}_upgrade", "only WebSockets pass, no h2c"):
        page.say("~*^websocket$ websocket", "the client requests one")
        page.say("default ''", "an empty field is not sent")
    page.gap()
    with page.block(f"map $http_upgrade ${front.field}_connection", "the field for it"):
        page.say("~*^websocket$ upgrade", "the connection becomes the WebSocket's")
        if front.terms.idle:
            page.say("default ''", "the client's field is about its own connection")
        else:
            page.say("default close", front.no_keepalive_reason)
    page.gap()
    with page.block(f"map $http_host ${front.field}_host", "the name that the client used"):
        named = front.server_names and not set(front.server_names[0]) & set("*_")
        page.say(f"'' {'$host' if named else '$hostname'}", "HTTP/1.0 may have none")
        page.say("default $http_host", "with its port, for the URLs that the app makes")
    if front.by_socket:
        page.gap()
        _client_addresses(front, page)


def _client_addresses(front: FrontendConfig, page: Page) -> None:
    """The client's address: a request by a unix socket has none of its own, but another proxy in front adds it."""
    if front.trusts_all:
        with page.block(
            f"map $http_x_forwarded_for ${front.field}_last", "the address that the proxy adds, not those of clients"
        ):
            page.say('"~([^, ]+)[, ]*$" $1', "added at the end")
            page.say("default ''", "no address")
        page.gap()
    here, there = ("$remote_addr", f"${front.field}_last") if front.trusts_all else (ADDED, "$http_x_forwarded_for")
    with page.block(f"map $remote_addr ${front.field}_for", "the client's address"):
        page.say(f"unix: {there}", "by a unix socket: as the proxy there says")
        page.say(f"default {here}", "otherwise the peer's")


def _types(page: Page) -> None:
    with page.block("types", "of static files, by extension"):
        for kind, ends in TYPES:
            page.say(f"{kind} {ends}")
    page.say("default_type application/octet-stream", "of all other files")


def _to_https(front: FrontendConfig, page: Page) -> None:
    with page.block("server"):
        page.say("listen 80", "clients without TLS")
        page.say(f"server_name {_names(front)}", "the names that this is for")
        page.say("server_tokens off", "clients need not know nginx's version")
        page.say("return 301 https://$host$request_uri", "are redirected to TLS")


def _server(front: FrontendConfig, page: Page) -> None:
    _listen(front, page)
    page.say("server_tokens off", "clients need not know nginx's version")
    page.say("absolute_redirect off", "redirect to a path with a final slash on the host that the client used")
    page.gap()
    _limits(front, page)
    page.gap()
    _forwarding(front, page)
    page.gap()
    _waiting(front, page)
    page.gap()
    for url, directory in front.static:
        with page.block(f"location ^~ {url}", "files; no worker is involved"):
            page.say(f"alias {quoted(directory)}", "the directory; nginx's user must be able to read it")
            page.say("sendfile on", "the kernel copies them")
            page.say("tcp_nopush on", "head and content in full packets")
        page.gap()
    with page.block(f"location = {HEALTH}", "whether nginx runs; for the app, use a page of its own"):
        page.say("access_log off", "requested very often")
        page.say("default_type text/plain", "to be shown in a browser")
        page.say('return 200 "ok\\n"', "by nginx itself")
    page.gap()
    if front.settings.root_path:
        _mounted(front, page)
    else:
        with page.block("location /"):
            page.say(f"proxy_pass {front.scheme}://{front.ident}", "to the workers, with the path unchanged")


def _mounted(front: FrontendConfig, page: Page) -> None:
    """Pass paths below --root-path without it. `proxy_pass` with a path would rewrite the rest (%2F as a slash)."""
    root, where = front.settings.root_path, f"{front.scheme}://{front.ident}"
    page.say("merge_slashes off", "the app gets slashes as the client wrote them")
    with page.block(f"location {quoted(root + '/')}", f"the app is mounted here: {front.option('root_path')}"):
        begin = quote(root).replace(".", r"\.")
        with page.block(f'if ($request_uri ~ "^{begin}(?<as_written>/.*)$")', "the client wrote the prefix literally"):
            page.say(f"proxy_pass {where}$as_written", "to the workers, without the prefix, which they know")
        page.say(f"proxy_pass {where}/", "the same for other spellings; but the rest is decoded and encoded again")
    page.gap()
    with page.block("location /"):
        page.say("return 404", "nothing else is here")


def _names(front: FrontendConfig) -> str:
    return " ".join(front.server_names) or "_"


def _listen(front: FrontendConfig, page: Page) -> None:
    usual = (Address("tcp", port=443 if front.certificate else 80),)
    for address in front.listen or usual:
        where = str(address.port) if address.kind == "tcp" and not address.host else quoted(str(address))
        page.say(f"listen {where}{' ssl http2' if front.certificate else ''}", "address for clients")
    page.say(f"server_name {_names(front)}", "host names" if front.server_names else "any host name")
    if front.certificate:
        certificate, key = front.certificate
        page.say(f"ssl_certificate {quoted(certificate)}", "with its chain")
        page.say(f"ssl_certificate_key {quoted(key)}", "read by nginx's master, as root")
        page.say("ssl_protocols TLSv1.2 TLSv1.3", "older ones are broken")
        page.say("ssl_session_cache shared:forkserve_tls:10m", "a returning client needs no full handshake")
        page.say("ssl_session_timeout 1d", "how long sessions are kept")
        page.say("ssl_session_tickets off", "their keys would have to be changed by hand")


def _limits(front: FrontendConfig, page: Page) -> None:
    limits, option = front.terms, front.option
    body = show_bytes(limits.body_limit) if limits.body_limit else "0"
    page.say(f"client_max_body_size {body}", option("limit_request_body"))
    page.say("client_body_buffer_size 512k", "as in the server: larger bodies are stored on disk")
    size = limits.head_limit
    why = f"{option('limit_request_head')}: nginx passes what the server accepts"
    page.say(f"large_client_header_buffers 4 {size // KIB}k" if size % KIB == 0 else f"large_client_header_buffers 4 {size}", why)
    page.say(f"client_header_timeout {seconds(limits.header)}", option("header_timeout"))
    page.say(f"client_body_timeout {seconds(limits.body)}", option("body_timeout"))
    page.say(f"send_timeout {seconds(limits.write)}", option("write_timeout"))
    page.say(f"keepalive_timeout {seconds(limits.client_idle)}", option("keep_alive"))


def _forwarding(front: FrontendConfig, page: Page) -> None:
    if front.remote:
        page.note("The workers trust these fields if their --forwarded-allow-ips has this machine.")
    elif not front.settings.proxy_headers:
        page.note("The workers ignore these fields: --no-proxy-headers.")
    page.say("proxy_http_version 1.1", "for keep-alive, chunked responses and WebSockets")
    page.say(f"proxy_set_header Connection ${front.field}_connection", "not the client's, which may say close")
    page.say(f"proxy_set_header Upgrade ${front.field}_upgrade", "WebSocket, or nothing")
    page.say(f"proxy_set_header Host ${front.field}_host", "the app builds its URLs with it")
    if front.trusts_all:
        why = "only the peer's address, as the workers trust every peer (--forwarded-allow-ips *)"
        value = "$remote_addr"
    else:
        why = "workers use the last address that is not a trusted proxy's"
        value = ADDED
    page.say(f"proxy_set_header X-Forwarded-For {f'${front.field}_for' if front.by_socket else value}", why)
    page.say("proxy_set_header X-Forwarded-Proto $scheme", "the app sees the scheme that the client sees")
    page.say("proxy_redirect off", "the app knows its host name, so nothing is rewritten")
    if front.scheme == "https":
        page.say("proxy_ssl_session_reuse on", "the workers use TLS; their certificate is not verified")


def _waiting(front: FrontendConfig, page: Page) -> None:
    limits, settings = front.terms, front.settings
    page.say(f"proxy_connect_timeout {seconds(limits.connect)}", "a worker's port answers at once, even if the worker is busy")
    page.say(f"proxy_read_timeout {seconds(limits.read)}", front.silence_reason)
    page.say(f"proxy_send_timeout {seconds(limits.read)}", "a busy worker reads nothing meanwhile")
    again = " http_503" if settings.limit_concurrency and len(front.backends) > 1 else ""
    why = "a request that a worker lost goes to another one; but no POST that was sent" + ("; 503: it is full" if again else "")
    page.say(f"proxy_next_upstream error timeout{again}", why)
    why = "new connections for a request that kills workers; each broken idle one allows one more"
    page.say(f"proxy_next_upstream_tries {front.tries}", why)
    why = (
        f"later, it may be what a worker was stuck in: {front.option('timeout')}"
        if settings.timeout
        else "then the request fails"
    )
    page.say(f"proxy_next_upstream_timeout {seconds(limits.retry)}", why)
    why = f"response heads of up to {EDGE // KIB}k fit, such as large cookies; larger ones become a 502"
    page.say(f"proxy_buffer_size {EDGE // KIB}k", why)
    page.say(
        f"proxy_buffers 8 {EDGE // KIB}k",
        "responses leave the worker at once, however slow the client; chunks (SSE) pass at once",
    )
