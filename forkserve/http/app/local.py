"""Who may see code: the judgement of the error page, and the stricter one of tracebacks and the debugger. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from forkserve.config.addresses import is_loopback
from forkserve.http.framing.endpoints import ProxiedEndpoints, hops

if TYPE_CHECKING:
    from forkserve.http.framing.endpoints import Endpoints
    from forkserve.http.message.fields import Fields

_FORWARDING: Final = re.compile(
    rb"""
    (?: x- )? forwarded (?: - .* )? | x-forward- .* | via | cdn-loop
    | (?: [a-z]+- )* (?: real | client | cluster-client | originating | remote | peer ) -? (?: ip | addr | port )
    | x- (?: original | proxy | proxyuser | tunnel | envoy | azure | arr | appengine | vercel | nf | amz | amzn | accel ) - .*
    | x- (?: host | scheme | url-scheme | nginx-proxy | request-start | cloud-trace-context | traefik .* )
    | (?: cf | fly | fastly | ngrok | tailscale | true-client | front-end ) - .*
    """,
    re.VERBOSE,
)
"""Fields that proxies and tunnels add. A browser or curl sends none of them."""


def is_local(endpoints: Endpoints, fields: Fields) -> bool:
    """Return whether the sender and every address that a proxy names, in a PROXY header or a field, are of this machine.

    A proxy need not be trusted here: a lie can only hide the text. Nor may the request be for another host: a page from there
    could read the answer if its name, for the browser, leads to this machine (DNS rebinding), and a tunnel comes from loopback.
    """
    named = endpoints.client, *((hop,) for hop in hops(fields))
    peer = endpoints.socket_peer
    host = fields.get(b"host")
    return (
        (not peer or is_loopback(peer))
        and all(one is None or is_loopback(one[0]) for one in named)
        and (host is None or _is_ours(host))
    )


def is_direct(endpoints: Endpoints, fields: Fields) -> bool:
    """Return whether a client on this machine has sent the request itself: no proxy or tunnel, and no page from elsewhere.

    The peer of the socket must be a loopback address. That of a unix socket is usually a proxy, and so is a client of HTTP/1.0:
    nginx forwards so, with a Host of this machine, if it is not told otherwise.
    """
    host = fields.get(b"host")
    return (
        is_loopback(endpoints.socket_peer)
        and not isinstance(endpoints, ProxiedEndpoints)
        and fields.version != "1.0"
        and host is not None
        and _is_ours(host)
        and not any(_FORWARDING.fullmatch(name) for name, _ in fields.headers)
    )


def _is_ours(host: bytes) -> bool:
    """Return whether a Host field is for a loopback address, or for a name that always leads to one."""
    return is_loopback(re.sub(r":\d*$", "", host.decode("latin-1")).removeprefix("[").removesuffix("]"))
