"""Settings that contradict each other. Pure. A single value is checked by its `Kind`."""

from collections.abc import Iterator

from forkserve.config.addresses import is_loopback, parse_address
from forkserve.config.settings import LAST_PORT, Settings
from forkserve.config.spec import flag

NEEDS = (
    *((name, "certfile") for name in ("keyfile", "keyfile_password", "ca_certs")),
    ("nginx_reload", "nginx_upstream"),
    ("admin_token_file", "admin"),
)


def validate(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield setting and message for each contradiction between settings."""
    most = max(settings.workers, settings.max_workers)
    if settings.base_port and settings.base_port + most - 1 > LAST_PORT:
        yield "base_port", f"{most} workers would need ports above {LAST_PORT}"
    for name, needed in NEEDS:
        if getattr(settings, name) is not None and getattr(settings, needed) is None:
            yield name, f"needs {flag(needed)}"
    if settings.cert_reqs and settings.ca_certs is None:
        yield "cert_reqs", "needs --ca-certs, which client certificates are checked against"
    if settings.limit_request_head == 0:
        yield "limit_request_head", "must be more than 0: every request would be refused"
    if settings.limit_request_head < settings.limit_request_line:
        yield "limit_request_head", "is less than --limit-request-line, which is part of it"
    if settings.max_workers and not max(1, settings.min_workers) <= settings.workers <= settings.max_workers:
        yield "max_workers", "needs --workers between --min-workers (or 1) and itself"
    if settings.min_workers and not settings.max_workers:
        yield "min_workers", "needs --max-workers"
    if settings.min_spare >= settings.max_spare:
        yield "min_spare", "must be less than --max-spare"
    if not all(address.strip() for address in settings.bind):
        yield "bind", "names no address"
    named = [address for address in settings.bind if not address.endswith(":0")]  # each of those is a port of its own
    if len(set(named)) < len(named):
        yield "bind", "names one address twice"
    yield from _validate_admin(settings, most)
    yield from _validate_output(settings)


def _validate_admin(settings: Settings, most: int) -> Iterator[tuple[str, str]]:
    if settings.admin_write and settings.admin_token_file is None:
        yield "admin_write", "needs --admin-token-file: only those with the token may change the server"
    if settings.admin is not None and settings.admin in settings.bind and not settings.admin.endswith(":0"):
        yield "admin", "is an address of --bind, too: choose another one"
    if settings.ready_workers > most:
        yield "ready_workers", f"is more than the {most} workers that there are at most"


def _validate_output(settings: Settings) -> Iterator[tuple[str, str]]:
    outputs = [name for name in ("worker_stdout", "worker_stderr") if getattr(settings, name) is not None]
    if outputs and settings.capture_output:
        yield outputs[0], "contradicts --capture-output: leave out one of them"
    if settings.capture_output and settings.error_logfile.startswith("syslog:"):
        yield "capture_output", "needs a file as error log: for syslog use --worker-stdout and --worker-stderr"
    if settings.worker_output_prefix and not outputs:
        yield "worker_output_prefix", "needs --worker-stdout or --worker-stderr (- leaves them as they are)"


def shows_tracebacks(settings: Settings, *, implied: bool, inherits: bool) -> bool:
    """Return whether browsers get tracebacks of requests. Where others reach the server, --debug itself must be given.

    Args:
        settings: The settings.
        implied: Only --reload has turned --debug on.
        inherits: There are listeners of the program that has started this one: their addresses are not known.
    """
    if not settings.debug or settings.user is not None:
        return False
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    addresses = (*settings.bind, *(() if settings.base_port is None else (host,)))
    return not implied or not (inherits or any(map(_is_open, addresses)))


def _is_open(text: str) -> bool:
    """Return whether other machines may reach an address. That of a descriptor is not known."""
    try:
        address = parse_address(text)
    except ValueError:
        return True
    return address.kind == "fd" or (address.kind == "tcp" and not is_loopback(address.host))
