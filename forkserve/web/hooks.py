"""What the hooks of a worker get: the app, and the arguments of `pre_request` and `post_request`. In a worker."""

from __future__ import annotations

from ssl import SSLContext
from typing import TYPE_CHECKING, Any

from forkserve.base.errors import BootError
from forkserve.config import apps
from forkserve.config.values import shown
from forkserve.http.message.fields import with_headers
from forkserve.prefork.ipc.hooks import run_hook

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.config.apps import LoadedApp
    from forkserve.config.hooksettings import HookSettings
    from forkserve.http.app.exchange import Exchange
    from forkserve.prefork.worker.worker import Worker


class HookApp:
    """The app as hooks see it in `worker.app`, with gunicorn's names.

    Attributes:
        callable: The app; None before it is loaded. What `post_fork` sets is served instead of it.
        app_uri: Its name, as `module:attr`.
        cfg: The settings.
    """

    def __init__(self, cfg: HookSettings, load: Callable[[], LoadedApp], loaded: LoadedApp | None = None) -> None:
        """*load* loads the app, unless it is *loaded* already."""
        self.cfg = cfg
        self.app_uri: str = cfg.app or ""
        self._load, self._loaded = load, loaded
        self.callable: Any = loaded and loaded.app

    def wsgi(self) -> Any:
        """Return the app, and load it if no hook has done so before. Raises AppLoadError."""
        if self.callable is None:
            self._loaded = self._load()
            self.callable = self._loaded.app
        return self.callable

    load = wsgi

    def to_serve(self, app: Any) -> LoadedApp:
        """Return the app with its interface, which is detected once more if a hook has set another app."""
        if self._loaded is not None and self._loaded.app is app:
            return self._loaded
        return apps.loaded(app, self.cfg.interface, self.app_uri)


def tls_context(worker: Worker, usual: SSLContext) -> SSLContext:
    """Return the TLS context that the hook `ssl_context` makes, or the usual one without that hook.

    Raises:
        BootError: The hook failed, or returned something else.
    """
    hook = worker.hooks.get("ssl_context")
    if hook is None:
        return usual
    try:
        made = hook(worker.cfg, lambda: usual)
    except Exception as error:
        raise BootError(f"hook ssl_context failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, SSLContext):
        raise BootError(f"hook ssl_context must return an ssl.SSLContext, not {shown(made)}")
    return made


class HookRequest:
    """The argument `req` of the hooks `pre_request` and `post_request`, with gunicorn's names.

    Both hooks of a request get the same object, and may set attributes of their own. What `pre_request` does to `headers` and
    `scheme` changes what the app and the access log get; a change of anything else has no effect.

    Attributes:
        method: The method.
        uri: The target as it was sent.
        path: The path, percent-decoded.
        query: The query, without its question mark.
        version: The HTTP version, as `(1, 1)`.
        headers: The fields: pairs of name, in upper case, and value.
        remote_addr, peer_addr: Address and port of the client; empty on a unix socket. A trusted proxy has named it.
        scheme: `http` or `https`.
    """

    def __init__(self, exchange: Exchange) -> None:
        target, fields = exchange.target, exchange.fields
        line: dict[str, str] = {}
        target.put_line(line)
        client, self.scheme = exchange.writer.connection.endpoints.seen_through(fields, exchange.site.trusted)
        self.method = target.method
        self.uri = target.raw
        self.path = line["PATH_INFO"]
        self.query = line["QUERY_STRING"]
        self.version = (1, int(fields.version[2]))
        self.headers = [(name.decode("ascii").upper(), value.decode("latin-1")) for name, value in fields.headers]
        self.remote_addr: tuple[str, int] | str = client or ""
        self.peer_addr = self.remote_addr

    def apply(self, exchange: Exchange, headers: list[tuple[str, str]], scheme: str) -> None:
        """Let the app get what a hook has changed.

        Args:
            exchange: The request.
            headers: The fields before the call.
            scheme: The scheme before the call.

        Raises:
            ValueError, TypeError, AttributeError: A hook has set something that is no field or no scheme.
        """
        if self.headers == headers and self.scheme == scheme:
            return
        endpoints = exchange.writer.connection.endpoints
        client, _ = endpoints.seen_through(exchange.fields, exchange.site.trusted)
        changed = [(name.lower().encode("ascii"), str(value).encode("latin-1")) for name, value in self.headers]
        fields = with_headers(exchange.fields, changed)
        if self.scheme not in ("http", "https"):
            raise ValueError(f"req.scheme is http or https, not {self.scheme!r}")
        exchange.fields = fields
        endpoints.see(fields, client, self.scheme)


class HookResponse:
    """The argument `resp` of the hook `post_request`, with gunicorn's names.

    Attributes:
        status: As `200 OK`; empty without a head.
        status_code: The status code; 500 without a head.
        headers: The fields that the app has given.
        response_length: The Content-Length that the app has given, or None.
        sent: The bytes of the body.
        headers_sent: Whether the response has begun.
        req: The request.
    """

    def __init__(self, exchange: Exchange, req: HookRequest) -> None:
        head = exchange.head
        self.status, self.status_code = "", 500
        self.headers: list[tuple[str, str]] = []
        self.response_length: int | None = None
        if head is not None:
            self.status, self.status_code = f"{head.code} {head.phrase.decode('latin-1')}".strip(), head.code
            self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.fields]
            self.response_length = head.content_length
        self.sent = exchange.sent
        self.headers_sent = exchange.started
        self.req = req


class RequestHooks:
    """Calls the hooks `pre_request` and `post_request`.

    Args:
        worker: The hooks' first argument.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def before(self, exchange: Exchange) -> None:
        """Call `pre_request`."""
        req = HookRequest(exchange)
        headers, scheme = req.headers.copy(), req.scheme
        run_hook(self._worker.hooks, "pre_request", self._worker, req, keep=True)
        try:
            req.apply(exchange, headers, scheme)
        except (ValueError, TypeError, AttributeError):
            self._worker.log.exception(
                "hook pre_request: req.headers or req.scheme is not usable; the app gets the request unchanged"
            )
        exchange.hook_request = req

    def after(self, exchange: Exchange) -> None:
        """Call `post_request`."""
        req = getattr(exchange, "hook_request", None) or HookRequest(exchange)  # an error page has none
        arguments = req, exchange.scope_or_environ or {}, HookResponse(exchange, req)
        run_hook(self._worker.hooks, "post_request", self._worker, *arguments, keep=True)
