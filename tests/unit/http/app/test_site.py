"""Templates that connections share."""

from types import SimpleNamespace
from typing import Any

from forkserve.http.app.environ import shared_environ
from forkserve.http.app.site import MOST_TEMPLATES, Site

Address = tuple[str, int]


def _site() -> Site:
    settings = SimpleNamespace(root_path="", threads=0, workers=1, proxy_headers=False)
    parts: Any = SimpleNamespace(settings=settings, loop=None, log=None, tally=None)
    unused: Any = None
    return Site(parts, unused, "wsgi", unused, str)


def _ends(client: Address | None, server: Address = ("127.0.0.1", 8000), scheme: str = "http") -> Any:
    return SimpleNamespace(client=client, server=server, scheme=scheme)


def test_connections_to_one_address_share_a_template() -> None:
    """What differs between them is given beside it."""
    site = _site()
    first, *one = shared_environ(site, _ends(("192.0.2.1", 1)), "1.1")
    second, *other = shared_environ(site, _ends(("192.0.2.2", 2)), "1.1")
    third, *unknown = shared_environ(site, _ends(None), "1.1")
    assert first is second is third
    assert (one, other, unknown) == (["192.0.2.1", "1"], ["192.0.2.2", "2"], ["", ""])


def test_what_a_template_says_is_not_shared_by_others() -> None:
    site = _site()
    client = ("192.0.2.1", 1)
    assert shared_environ(site, _ends(client), "1.0")[0]["SERVER_PROTOCOL"] == "HTTP/1.0"
    assert shared_environ(site, _ends(client), "1.1")[0]["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert shared_environ(site, _ends(client, scheme="https"), "1.1")[0]["wsgi.url_scheme"] == "https"
    assert shared_environ(site, _ends(client, ("127.0.0.2", 1)), "1.1")[0]["SERVER_PORT"] == "1"


def test_few_templates_are_kept() -> None:
    """A PROXY header may name any address as ours."""
    site = _site()
    kept = [shared_environ(site, _ends(None, ("192.0.2.1", port)), "1.1")[0] for port in range(3 * MOST_TEMPLATES)]
    assert len(site._templates) <= MOST_TEMPLATES
    assert [template["SERVER_PORT"] for template in kept[1:]] == [str(port) for port in range(1, 3 * MOST_TEMPLATES)]
