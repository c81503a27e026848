"""The configuration of Caddy. Pure.

Caddy sets X-Forwarded-For and X-Forwarded-Proto by itself, without the values that the client sends, and passes WebSockets and
event streams at once.

Rejected: `read_timeout`, which also counts while a connection is idle and while a request is sent, and `write_timeout`, which
limits a whole upload (Caddy 2.6): both ended uploads that took longer.
"""

import re

from forkserve.config.addresses import Address
from forkserve.frontend.config import EDGE, HEALTH, FrontendConfig
from forkserve.frontend.page import Page, quoted, seconds

ROOT = re.compile("[A-Za-z0-9._~/-]+")
BALANCES = {
    "least_conn": ("least_conn", "the worker with the fewest requests in hand: none waits behind a slow one"),
    "round_robin": ("round_robin", "one worker after the other"),
    "ip_hash": ("ip_hash", "a client stays with its worker; chosen by its address"),
    "random": ("random_choose 2", "of two workers at random, the one with fewer requests in hand"),
}


def render(front: FrontendConfig) -> str:
    """Return the whole configuration. Raises ValueError for what Caddy cannot do."""
    page, limits, option = _page(), front.terms, front.option
    page.note(
        f"Caddy for {front.title}.",
        "Made by `forkserve nginx --format caddy`. Timeouts and limits are the server's: generate it again when they change.",
    )
    with page.block(""):
        if front.listen or not front.certificate:
            how = "disable_redirects" if front.certificate else "off"
            why = (
                "no other addresses than those below"
                if front.certificate
                else "for a name without http://, Caddy would get a certificate"
            )
            page.say(f"auto_https {how}", why)
        with page.block("servers"):
            page.say(
                f"max_header_size {limits.head_limit + EDGE}", f"a head of {option('limit_request_head')} fits, and some more"
            )
            with page.block("timeouts"):
                page.say(f"read_header {seconds(limits.header)}", option("header_timeout"))
                page.say(f"idle {seconds(limits.client_idle or 0.001)}", option("keep_alive"))
    page.gap()
    with page.block(_sites(front)):
        _site(front, page)
    return page.text


def render_upstream(front: FrontendConfig) -> str:
    """Return `reverse_proxy` only, to be imported within a site."""
    page = _page()
    page.note(
        f"Caddy's proxy for {front.title}.", "Made by `forkserve nginx --format caddy --upstream-only`; import it within a site."
    )
    _proxy(front, page)
    return page.text


def _page() -> Page:
    return Page(indent="\t", end="", aligned=False)


def _sites(front: FrontendConfig) -> str:
    scheme = "https" if front.certificate else "http"
    names = [name for name in front.server_names if name != "_"] or [""]
    if any(name.endswith(".*") for name in names):
        raise ValueError("Caddy knows no names that end with .*")
    listen = front.listen or (Address("tcp", port=443 if front.certificate else 80),)
    if any(one.kind != "tcp" for one in listen) or len({one.host for one in listen}) > 1:
        raise ValueError("--listen: give Caddy ports only, or all of them on one address")
    return ", ".join(f"{scheme}://{name}:{one.port}" for one in listen for name in names)


def _site(front: FrontendConfig, page: Page) -> None:
    if front.listen and front.listen[0].host:
        page.say(f"bind {front.listen[0].host}", "address for clients")
    if front.certificate:
        certificate, key = front.certificate
        page.say(f"tls {quoted(certificate)} {quoted(key)}", "the certificate with its chain, and its key")
    if front.terms.body_limit:
        with page.block("request_body"):
            page.say(f"max_size {front.terms.body_limit}", front.option("limit_request_body"))
    page.say("@plain not header_regexp Upgrade (?i)^websocket$", "requests for no WebSocket")
    page.say("request_header @plain -Upgrade", "request no other upgrade either, no h2c")
    with page.block(f"handle {HEALTH}"):
        page.say('respond "ok"', "by Caddy itself; for the app, use a page of its own")
    for url, directory in front.static:
        with page.block(f"handle_path {url}*"):
            page.say(f"root * {quoted(directory)}", "files; no worker is involved")
            page.say("file_server", "as they are")
    root = front.settings.root_path
    if root and not ROOT.fullmatch(root):
        raise ValueError(f"Caddy cannot remove {front.option('root_path')}: it has more than letters, digits, _, -, ., ~ and /")
    begin = "^" + root.replace(".", r"\.")
    if root:  # by the path as the client wrote it: `path` matches it decoded, with slashes merged, case-insensitively
        why = f"the app is mounted here: {front.option('root_path')}"
        page.say(rf"@app vars_regexp {{http.request.uri}} {begin}(/|\?|$)", why)
    with page.block("handle @app" if root else "handle"):
        if root:
            page.say(f"uri path_regexp {begin}/? /", "workers know the prefix, and get the rest unchanged")
        if front.upstream_file is not None:
            page.say(f"import {quoted(front.upstream_file)}", "the workers")
        else:
            _proxy(front, page)
    if root:
        with page.block("handle"):
            page.say("respond 404", "nothing else is here")


def _proxy(front: FrontendConfig, page: Page) -> None:
    limits = front.terms
    up = [one for one in front.backends if not one.down]
    if not up:
        raise ValueError("no worker is up, and Caddy needs at least one")
    for one in front.backends:
        if one.down:
            page.note(f"{one.label} ({one.address}) is down")
    where = " ".join(quoted(f"unix/{one.address.path}") if one.address.kind == "unix" else str(one.address) for one in up)
    with page.block(f"reverse_proxy {where}"):
        way, why = BALANCES.get(front.balance.way) or (_key(front.balance.key), "requests with the same key stay with one worker")
        page.say(f"lb_policy {way}", why)
        page.say(f"lb_retries {front.tries - 1}", "a request that a worker lost goes to another one; but no POST that was sent")
        page.say(f"lb_try_duration {seconds(limits.retry)}", "later the request may be the one that a worker was stuck in")
        if front.doubtful:
            page.say("fail_duration 5s", "how long a port that does not answer is left out")
        with page.block("transport http"):
            page.say("versions 1.1", "the protocol of the workers")
            page.say(f"dial_timeout {seconds(limits.connect)}", "a worker's port answers at once, even if the worker is busy")
            page.say(f"response_header_timeout {seconds(limits.read)}", f"until a response begins; {front.silence_reason}")
            if limits.idle:
                page.say(f"keepalive {seconds(limits.idle)}", f"less than {front.option('keep_alive')}: Caddy closes first")
                page.say("keepalive_idle_conns_per_host 32", "idle connections to each worker, to save handshakes")
            else:
                page.say("keepalive off", front.no_keepalive_reason)
            if front.scheme == "https":
                page.say("tls_insecure_skip_verify", "the workers use TLS; their certificate is not verified")


def _key(key: str) -> str:
    if key == "$request_uri":
        return "uri_hash"
    if key in ("$remote_addr", "$binary_remote_addr"):
        return "ip_hash"
    if found := re.fullmatch(r"\$http_([A-Za-z0-9_]+)", key):
        return f"header {found[1].replace('_', '-')}"
    raise ValueError(f"Caddy knows no {key!r} for `hash`: give one of $http_NAME, $request_uri, $remote_addr")
