"""The configuration of HAProxy. Pure.

Unsupported options are refused: HAProxy serves no files, and reads a certificate's key only from the same file or from one
beside it.
"""

import re

from forkserve.config.addresses import Address
from forkserve.config.values import show_bytes
from forkserve.frontend.config import EDGE, HEALTH, FrontendConfig
from forkserve.frontend.page import Page, quoted, seconds

BALANCES = {
    "least_conn": ("leastconn", "next is the worker with the fewest requests in hand: none waits behind a slow one"),
    "round_robin": ("roundrobin", "one worker after the other"),
    "ip_hash": ("source", "a client stays with its worker; chosen by its address"),
    "random": ("random(2)", "of two workers at random, the one with fewer requests in hand"),
}
MOST_BYTES = (256 << 20) - 16  # of a buffer
MOST_FIELDS = 32767
ROOT = re.compile("[A-Za-z0-9_/-]+")
KEYS = {  # nginx's variables, and their names here
    r"\$cookie_([A-Za-z0-9_]+)": r"hash req.cook(\1)",
    r"\$http_([A-Za-z0-9_]+)": r"hdr(\1)",
    r"\$arg_([A-Za-z0-9_]+)": r"url_param \1",
    r"\$request_uri": "uri whole",
    r"\$uri": "uri",
    r"\$(?:binary_)?remote_addr": "source",
}


def render(front: FrontendConfig) -> str:
    """Return the whole configuration. Raises ValueError for what HAProxy cannot do."""
    if front.static:
        raise ValueError("HAProxy serves no files: leave out --static, or have nginx or Caddy")
    if front.upstream_file is not None:
        raise ValueError("HAProxy includes no files: give it both, haproxy -f FILE -f FILE")
    page = _page()
    page.note(
        f"HAProxy for {front.title}.",
        "Made by `forkserve nginx --format haproxy`. Timeouts and limits are the server's: generate it again when they change.",
    )
    page.gap()
    _global(front, page)
    page.gap()
    _defaults(front, page)
    page.gap()
    _frontend(front, page)
    page.gap()
    _backend(front, page)
    return page.text


def render_upstream(front: FrontendConfig) -> str:
    """Return the section `backend` only, for a separate file."""
    page = _page()
    page.note(
        f"HAProxy's backend for {front.title}.",
        "Made by `forkserve nginx --format haproxy --upstream-only`; start HAProxy with both files, -f FILE -f FILE.",
    )
    page.gap()
    _backend(front, page)
    return page.text


def _page() -> Page:
    return Page(end="")


def _global(front: FrontendConfig, page: Page) -> None:
    with page.section("global"):
        page.say("maxconn 4096", "connections to clients")
        size = front.terms.head_limit + EDGE
        if size > MOST_BYTES:
            raise ValueError(f"HAProxy takes no head of {show_bytes(front.terms.head_limit)}: limit it to 255m or less")
        page.say(f"tune.bufsize {size}", f"a head of {front.option('limit_request_head')} fits, and some more")
        number = max(front.settings.limit_request_fields + 16, 101)
        more = "and some more: the server checks them" if number <= MOST_FIELDS else "but HAProxy passes no more"
        page.say(f"tune.http.maxhdr {min(number, MOST_FIELDS)}", f"{front.option('limit_request_fields')}, {more}")
        if front.remote:
            page.note("To drain a machine by hand, send `set server BACKEND/SERVER state drain` to this socket.")
            page.note("stats socket /run/haproxy/admin.sock mode 660 level admin")


def _defaults(front: FrontendConfig, page: Page) -> None:
    limits, option = front.terms, front.option
    with page.section("defaults"):
        page.say("mode http", "requests are balanced, not connections")
        page.say(f"timeout connect {seconds(limits.connect)}", "a worker's port answers at once, even if the worker is busy")
        # A worker is also silent while the client that sends a body is; HAProxy does not extend the timeout for that.
        if limits.body > limits.read:
            why = f"{option('body_timeout')}: the worker is silent while the client is, within a body"
        else:
            why = front.silence_reason
        page.say(f"timeout server {seconds(max(limits.read, limits.body))}", why)
        why = "a client is silent while the worker is, and may be within a body or while it reads a response"
        page.say(f"timeout client {seconds(max(limits.read, limits.body, limits.write))}", why)
        pings = option("ws_ping_interval")
        why = f"WebSockets are kept alive by {pings}" if front.settings.ws_ping_interval else f"{pings}: nothing keeps them alive"
        page.say(f"timeout tunnel {seconds(limits.read)}", why)
        page.say(f"timeout http-request {seconds(limits.header)}", option("header_timeout"))
        page.say(f"timeout http-keep-alive {seconds(limits.client_idle or 0.001)}", option("keep_alive"))
        if front.remote:
            # Each port may fail twice: a request breaks off with the worker that has it, or finds the port closed.
            page.say(f"retries {2 * (front.tries - 1)}", "a request gets past a dead machine: each of its ports may fail twice")
        else:
            page.say(f"retries {front.tries - 1}", "a request that kills workers does not reach them all")
        page.say("option redispatch 1", "each further attempt goes to another worker")
        again = " 503" if front.settings.limit_concurrency and len(front.backends) > 1 else ""
        why = "a request that a worker lost goes to another one" + ("; 503: it is full" if again else "")
        page.say(f"retry-on conn-failure empty-response{again}", why)


def _frontend(front: FrontendConfig, page: Page) -> None:
    with page.section(f"frontend {front.ident}-in"):
        _bind(front, page)
        page.say(
            f'http-request return status 200 content-type text/plain string "ok" if {{ path {HEALTH} }}', "by HAProxy itself"
        )
        if front.certificate and not front.listen:
            page.say("http-request redirect scheme https code 301 unless { ssl_fc }", "clients without TLS")
        if front.terms.body_limit:
            test = f"{{ req.hdr_val(content-length) gt {front.terms.body_limit} }}"
            page.say(f"http-request deny deny_status 413 if {test}", front.option("limit_request_body"))
        page.say("http-request del-header Upgrade unless { req.hdr(upgrade) -i websocket }", "WebSockets pass, no h2c")
        if front.remote:
            page.note("The workers trust these fields if their --forwarded-allow-ips has this machine.")
        elif not front.settings.proxy_headers:
            page.note("The workers ignore these fields: --no-proxy-headers.")
        if front.trusts_all:
            why = "only the peer's address, as the workers trust every peer (--forwarded-allow-ips *)"
            page.say("http-request set-header X-Forwarded-For %[src]", why)
        else:
            page.say("option forwardfor", "X-Forwarded-For: workers use the last address that is not a trusted proxy's")
        page.say("http-request set-header X-Forwarded-Proto https if { ssl_fc }", "the app sees the scheme that the client sees")
        page.say("http-request set-header X-Forwarded-Proto http unless { ssl_fc }", "whatever the client sent")
        if root := front.settings.root_path:
            if not ROOT.fullmatch(root):
                raise ValueError(
                    f"HAProxy cannot remove {front.option('root_path')}: it has more than letters, digits, _, - and /"
                )
            page.say(f"http-request return status 404 unless {{ path {root} }} || {{ path_beg {root}/ }}", "nothing else is here")
            page.say(
                f"http-request set-path %[path,regsub(^{root}/?,/)]", f"workers know the prefix: {front.option('root_path')}"
            )
        page.say(f"default_backend {front.ident}", "the workers")


def _bind(front: FrontendConfig, page: Page) -> None:
    secure = ""
    if front.certificate:
        certificate, key = front.certificate
        if key not in (certificate, f"{certificate}.key"):
            raise ValueError(f"HAProxy reads the key from the certificate's own file, or from {certificate}.key: put it there")
        secure = f" ssl crt {quoted(certificate)} alpn h2,http/1.1"
        if not front.listen:
            page.say("bind :80", "clients without TLS")
    for address in front.listen or (Address("tcp", port=443 if front.certificate else 80),):
        where = f"unix@{quoted(address.path)}" if address.kind == "unix" else str(address)
        page.say(f"bind {where}{secure}", "address for clients")


def _backend(front: FrontendConfig, page: Page) -> None:
    with page.section(f"backend {front.ident}"):
        way, why = BALANCES.get(front.balance.way) or (_key(front.balance.key), "requests with the same key stay with one worker")
        page.say(f"balance {way}", why)
        if front.balance.way in ("hash", "ip_hash"):
            page.say("hash-type consistent", "even when workers come and go")
        page.say("http-request disable-l7-retry unless METH_GET", "a POST that was sent may have been processed")
        if not front.terms.idle:
            page.say("option http-server-close", front.no_keepalive_reason)
        options = ""
        if front.doubtful:
            # Checks alone are not enough: a port that refuses has the fewest requests, so all would go there until the checks
            # fail.
            options = " check inter 1s fall 2 rise 1 observe layer4 error-limit 1 on-error mark-down"
            page.note("check: a port that does not answer is left out until it does; observe: from the first request on.")
        if front.scheme == "https":
            options += " ssl verify none"
        for one in front.backends:
            where = f"unix@{quoted(one.address.path)}" if one.address.kind == "unix" else str(one.address)
            page.say(f"server {one.ident} {where}{options}{' disabled' if one.down else ''}", one.label)


def _key(key: str) -> str:
    for variable, name in KEYS.items():
        if found := re.fullmatch(variable, key):
            return found.expand(name).replace("_", "-") if "hdr" in name else found.expand(name)
    raise ValueError(
        f"HAProxy knows no {key!r} for `hash`: give one of $cookie_NAME, $http_NAME, $arg_NAME, $request_uri, $remote_addr"
    )
