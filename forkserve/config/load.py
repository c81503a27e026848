"""Load: combine all sources of settings into one `Config`.

The sources, strongest first: command line, FORKSERVE_CMD_ARGS, FORKSERVE_<NAME>, UVICORN_<NAME>, GUNICORN_CMD_ARGS, the
configuration file, the well-known variables (WEB_CONCURRENCY, PORT, ...), the default. A source is a list of `Given`, one per
key, with the key's name in messages. All sources go through the same steps, so that a fault gives the same message whichever
source has it. All faults are reported together.
"""

import importlib.util
import inspect
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from forkserve.base import privileges
from forkserve.base.errors import ConfigError, did_you_mean
from forkserve.config import adminsettings, configfile, guess, sources, values
from forkserve.config.addresses import parse_address
from forkserve.config.apps import parse_app_spec
from forkserve.config.configfile import read_file
from forkserve.config.envfile import read_env_file
from forkserve.config.peers.uvicorn import NONE_MEANS
from forkserve.config.settings import Settings
from forkserve.config.spec import flag
from forkserve.config.table import NAMES, TABLE
from forkserve.config.translate import LATER, PEERS, Given, Said, settle_workers, translated
from forkserve.config.validation import shows_tracebacks, validate

Hook = Callable[..., object]

DEVELOPMENT_GRACE = 1.0  # seconds that an old worker gets with --reload
KEYWORD = "keyword"  # the origin of the keywords of a program
CONTEXT = "ssl_context_factory"  # of uvicorn.run, with the parameters of gunicorn's hook
MOST_FIELDS = 32768  # gunicorn's limit where none is set
LAST_WORDS = 2.0  # seconds of the graceful timeout that a stream gets to end after its http.disconnect

# gunicorn's hook functions with their parameters.
HOOKS: Mapping[str, tuple[str, ...]] = {
    "on_starting": ("server",),
    "on_reload": ("server",),
    "when_ready": ("server",),
    "pre_fork": ("server", "worker"),
    "post_fork": ("server", "worker"),
    "post_worker_init": ("worker",),
    "worker_int": ("worker",),
    "worker_abort": ("worker",),
    "worker_exit": ("server", "worker"),
    "child_exit": ("server", "worker"),
    "nworkers_changed": ("server", "new_value", "old_value"),
    "pre_request": ("worker", "req"),
    "post_request": ("worker", "req", "environ", "resp"),
    "pre_exec": ("server",),
    "on_exit": ("server",),
    "ssl_context": ("config", "default_ssl_context_factory"),
}


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration of a server.

    Attributes:
        settings: The final values.
        origins: The origin of each value, by setting.
        hooks: gunicorn's hook functions by name, called in the process in which gunicorn calls them.
        again: Reads all sources once more; None: the program itself is the only source.
        given: The arguments of `load_config`, for a program that must repeat the call; None as above.
        said: What the log says of the sources at the start.
    """

    settings: Settings
    origins: Mapping[str, str]
    hooks: Mapping[str, Hook]
    again: Callable[[], "Config"] | None = None
    given: Mapping[str, Any] | None = None
    said: Said = field(default_factory=Said)

    def files(self) -> tuple[list[str], list[str]]:
        """Return the files that these settings were read from or name, and those that were looked for."""
        settings = self.settings
        named = (settings.env_file, settings.log_config, settings.certfile, settings.keyfile, settings.ca_certs)
        origins = {origin for origin in self.origins.values() if os.path.isabs(origin)}
        looked_for = [] if self.given is None else configfile.candidates(settings.config, self.given["directory"])
        return [*origins, *filter(None, named)], looked_for


def load_config(
    command_line: Mapping[str, object],
    *,
    environ: Mapping[str, str],
    directory: str,
    cmd_args: Mapping[str, object] = MappingProxyType({}),
    gunicorn_args: Mapping[str, object] = MappingProxyType({}),
    needs_app: bool = True,
    peer: str = "",
) -> Config:
    """Combine all sources, for the command. In the process that becomes the master.

    Args:
        command_line: The options given, by setting name.
        environ: The environment.
        directory: Where a configuration file is looked for, and what relative paths start from.
        cmd_args: The options of FORKSERVE_CMD_ARGS, by setting name.
        gunicorn_args: The options of GUNICORN_CMD_ARGS, likewise.
        needs_app: An app must be given.
        peer: The server that the command line was written for, if another one.

    Raises:
        ConfigError: A source or a value is wrong; the message has all faults.
    """
    stronger = [
        list(sources.of_line(gunicorn_args, "GUNICORN_CMD_ARGS", peer="gunicorn")),
        list(sources.of_uvicorn(environ)),
        list(sources.environment(environ)),
        list(sources.of_line(cmd_args, "FORKSERVE_CMD_ARGS")),
        list(sources.of_line(command_line, "", peer=peer)),
    ]
    where = [one for source in stronger for one in source if one.key == "config"]
    file = read_file(str(where[-1].value) if where else None, directory, HOOKS)
    weaker: list[list[Given]] = [list(sources.well_known(environ)), list(sources.of_file(file))]
    said = sources.first_said(file, weaker, stronger)
    everything = [*weaker, *stronger]
    combined = _combine(everything, environ, directory, needs_app=needs_app, http=True, said=said, guesses=True)
    arguments: dict[str, Any] = {"directory": directory, "cmd_args": dict(cmd_args), "gunicorn_args": dict(gunicorn_args)}
    again = partial(load_config, command_line, environ=dict(environ), needs_app=needs_app, **arguments)
    return replace(combined, again=again, given={"command_line": dict(command_line), **arguments})


def checked(values: Mapping[str, Any], given: Mapping[str, Any], environ: Mapping[str, str]) -> Config:
    """Return the `Config` of settings that a pre-flight has checked, as JSON values. In a program that takes over.

    Only `again` reads any source.
    """
    known = {one.name: _as_it_was(values[one.name]) for one in fields(Settings) if one.name in values}
    return Config(Settings(**known), {}, {}, partial(load_config, environ=dict(environ), **given), given)


def _as_it_was(value: Any) -> Any:
    """Return tuples for lists, which JSON has made of them."""
    return tuple(map(_as_it_was, value)) if isinstance(value, list) else value


def from_keywords(*, needs_app: bool = True, **keywords: object) -> Config:
    """Return the `Config` of the keywords of `Server(...)`: settings and hooks. No other source is read.

    Args:
        needs_app: An app must be given; without it, the worker is the caller's own class, and there is no default address.
        keywords: Settings and hooks by name.

    Raises:
        ConfigError: A keyword is wrong; the message names it.
    """
    plain = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in keywords.items()}
    plain |= {key: means for key, means in NONE_MEANS.items() if plain.get(key, means) is None}
    if plain.get(CONTEXT) is not None and not {"certfile", "ssl_certfile"} & plain.keys():
        raise ConfigError(f"{CONTEXT}: needs ssl_certfile, without which no TLS is spoken here")
    given = [Given(_meant_by(key, value), value, key, KEYWORD) for key, value in plain.items()]
    return _combine([given], os.environ, os.getcwd(), needs_app=needs_app, http=needs_app, said=Said())


def _meant_by(keyword: str, value: object) -> str:
    """Return the key for a keyword that `uvicorn.run` takes, but its command line does not."""
    if keyword == "log_config" and isinstance(value, Mapping):
        return "logconfig_dict"
    return "ssl_context" if keyword == CONTEXT else keyword


def _combine(
    given_by: Sequence[Iterable[Given]],
    environ: Mapping[str, str],
    directory: str,
    *,
    needs_app: bool,
    http: bool,
    said: Said,
    guesses: bool = False,
) -> Config:
    """Combine the sources, the weakest first, into the final settings.

    With *http* the worker serves HTTP unless --worker is given, so there is a default address. With *guesses*, FLASK_APP names
    the app if no source does.
    """
    faults: list[tuple[str, str]] = []  # setting and message
    given, hooks = _collect(given_by, faults, said)
    final: dict[str, Any] = {name: spec.default for name, spec in TABLE.items()}
    final["foreign"] = tuple(said.foreign.items())
    for name, one in sorted(given.items(), key=lambda pair: pair[0] != "chdir"):
        if name not in LATER:
            _read_into(final, name, one, directory, faults)
            if name == "chdir" and one.peer == "gunicorn" and final[name]:
                directory = final[name]  # what gunicorn's paths start from
    origins = {name: given[name].origin if name in given else "default" for name in TABLE}
    try:
        settle_workers(final, given, origins, said)
    except ValueError as error:
        faults.append(("threads", f"{given['worker_class'].label}: {error}"))

    if guesses and final["app"] is None and final["worker"] is None:
        try:
            _settle_flask_app(final, given, origins, environ, directory)
        except ValueError as error:
            faults.append(("app", f"{guess.VARIABLE}: {error}"))
    inherits = environ.get("LISTEN_FDS", "0") != "0" and environ.get("LISTEN_PID") == str(os.getpid())
    serves = final["app"] is not None or (http and final["worker"] is None)
    needs_address = serves and not inherits
    _settle_addresses(final, given, origins, default=needs_address)
    _settle_rest(final, given, origins)
    _leave_out_tls(final, given, origins, said)
    if final["reload"]:
        _settle_development(final, origins)
    _settle_debugging(final, origins)
    settings = Settings(**final)
    settings = replace(
        settings, shows_tracebacks=shows_tracebacks(settings, implied=origins["debug"] == "--reload", inherits=inherits)
    )
    wrong = {name for name, _ in faults}
    if wrong & {"host", *sources.ADDRESSES}:
        wrong.add("bind")
    if "paste" in wrong:
        wrong.add("app")
    for name, complaint in _complaints(settings, needs_app=needs_app, needs_address=needs_address):
        if name not in wrong and not any(flag(one) in complaint.split() for one in wrong):  # it may follow from these
            faults.append((name, f"{given[name].label if name in given else flag(name)}: {complaint}"))
    if faults:
        raise ConfigError(*dict.fromkeys(message for _, message in faults))
    return Config(settings, MappingProxyType(origins), MappingProxyType(hooks), said=said)


def _collect(
    given_by: Sequence[Iterable[Given]], faults: list[tuple[str, str]], said: Said
) -> tuple[dict[str, Given], dict[str, Hook]]:
    """Return the strongest source of each setting, and the hooks. Add what is wrong with a key to *faults*."""
    given: dict[str, Given] = {}
    hooks: dict[str, Hook] = {}
    for rank, source in enumerate(given_by):
        for one in source:
            if one.value is None:  # in a Python file: not set
                continue
            try:
                if one.key in HOOKS:
                    hooks[one.key] = _hook(one)
                elif means := _translated(one, said):
                    name = means.key if means.key in LATER else _setting_name(means)
                    given[name] = replace(means, rank=rank)
            except ConfigError as error:
                faults.append((NAMES.get(one.key, one.key), str(error)))
    if "port" in given and given["port"].origin == "PORT" and any(name in given for name in sources.ADDRESSES if name != "port"):
        del given["port"]  # the weakest source of an address, whatever its value is
    return given, hooks


def _translated(one: Given, said: Said) -> Given | None:
    try:
        return translated(one, said)
    except ValueError as error:
        raise ConfigError(f"{one.label}: {error}") from None


def _read_into(final: dict[str, Any], name: str, one: Given, directory: str, faults: list[tuple[str, str]]) -> None:
    try:
        final[name] = _read(name, one, directory)
    except ConfigError as error:
        faults.append((name, str(error)))


def _complaints(settings: Settings, *, needs_app: bool, needs_address: bool) -> Iterator[tuple[str, str]]:
    """Yield setting and message for everything that is wrong beyond single values."""
    try:
        if settings.app is not None:
            parse_app_spec(settings.app)
    except ConfigError as error:
        yield "app", str(error)
    yield from validate(settings)
    yield from privileges.complaints(settings)
    yield from adminsettings.complaints(settings)
    if needs_address and not settings.bind and settings.base_port is None:  # an empty list was given
        yield "bind", "names no address"
    try:
        for address in settings.bind:
            parse_address(address)
    except ValueError as error:
        yield "bind", str(error)
    try:
        read_env_file(settings.env_file)  # workers read it; a mistake in it is a usage error now
    except ConfigError as error:
        yield "env_file", str(error)
    for name, folders in (("reload_dir", settings.reload_dir), ("static", [folder for _, folder in settings.static])):
        for folder in folders:
            if not os.path.isdir(folder):
                yield name, f"there is no directory {folder}"
    if settings.preload and sys.platform != "linux":
        yield "preload", "needs Linux: no other system lets a process adopt workers that another process has forked; leave it out"
    if settings.reload and importlib.util.find_spec("watchdog") is None:
        yield "reload", "needs the package watchdog: pip install watchdog"
    if needs_app and settings.app is None and settings.worker is None:
        hint = guess.django_hint(settings.chdir or os.getcwd())
        yield "app", f"not given: write forkserve module:attr (see forkserve --help){hint}"


def _setting_name(one: Given) -> str:
    """Return the name of the setting. Raises ConfigError for an unknown key."""
    if one.key not in NAMES:
        if one.label.startswith(sources.PREFIX):
            near = did_you_mean(one.label, (sources.PREFIX + name.upper() for name in NAMES))
            raise ConfigError(f"unknown variable {one.label} in the environment{near}")
        near = did_you_mean(one.key, dict.fromkeys([*NAMES, *HOOKS, *PEERS["gunicorn"]]))
        own = "; a name of the file's own can start with _"
        from_file = one.origin != KEYWORD and (one.peer or callable(one.value))
        raise ConfigError(f"unknown setting {one.label}{near}{own if from_file else ''}")
    return NAMES[one.key]


def _hook(one: Given) -> Hook:
    """Return the hook function. Raises ConfigError if it cannot be called with gunicorn's parameters."""
    if not callable(one.value):
        raise ConfigError(f"{one.label}: a hook is a function, not {values.shown(one.value)}")
    parameters = HOOKS[one.key]
    if values.never_runs(one.value):
        raise ConfigError(f"{one.label}: a hook is only called: write it as `def`, without `async` and `yield`")
    try:
        inspect.signature(one.value).bind(*parameters)
    except TypeError:
        raise ConfigError(f"{one.label}: the hook must take ({', '.join(parameters)})") from None
    except ValueError:
        pass  # a callable in C without a signature
    return one.value


def _read(name: str, one: Given, directory: str) -> object:
    """Read the value. Paths become absolute, since workers may change their directory."""
    kind = TABLE[name].kind
    try:
        value = kind.read(one.value)
    except ValueError as error:
        raise ConfigError(f"{one.label}: {error}") from None
    except Exception as error:  # noqa: BLE001 - of an object in a Python file or program, or nested too deeply
        raise ConfigError(f"{one.label}: {values.shown(one.value)} cannot be read: {values.shown(error)}") from None
    if kind is values.folders:
        return tuple(os.path.join(directory, folder) for folder in value)
    if kind is values.mounts:
        return tuple((url, os.path.abspath(os.path.join(directory, folder))) for url, folder in value)
    if kind not in (values.path, values.file, values.folder, values.socket, values.output, values.log) or value == "-":
        return value
    if kind is values.socket and value == values.NONE:
        return value
    if kind in (values.output, values.log) and (not isinstance(value, str) or value.startswith("syslog:")):
        return value
    path = os.path.abspath(os.path.join(directory, value))
    if kind is values.folder and not os.path.isdir(path):
        raise ConfigError(f"{one.label}: there is no directory {value}")
    if kind is values.file and not _is_file(path):
        raise ConfigError(f"{one.label}: there is no file {value}")
    return path


def _is_file(path: str) -> bool:
    """Whether the file exists. In a place that this user may not see it may exist: opening it later gives the error."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False


def _settle_flask_app(
    final: dict[str, Any], given: dict[str, Given], origins: dict[str, str], environ: Mapping[str, str], directory: str
) -> None:
    """Use the app of FLASK_APP."""
    folder = final["chdir"] or directory
    if found := guess.flask_app(folder, environ, development=final["reload"]):
        final["app"], place = found
        given["app"] = Given("app", final["app"], guess.VARIABLE, guess.VARIABLE)
        origins["app"] = guess.VARIABLE
        if place != os.path.realpath(folder) and place != folder:
            final["pythonpath"] = (*final["pythonpath"], place)


def _settle_addresses(
    final: dict[str, Any],
    given: dict[str, Given],
    origins: dict[str, str],
    *,
    default: bool,
) -> None:
    """Turn --port, --uds and --fd into addresses of --bind, and fill in the default address.

    They are four spellings of one thing, so the strongest source that uses any of them decides. The variable PORT means an
    address on all interfaces.
    """
    host = final["host"] = final["host"].strip("[]")
    if origins["port"] == "PORT":
        host = host if "host" in given else "0.0.0.0"  # noqa: S104 - the meaning of PORT
    host = f"[{host}]" if ":" in host else host
    spellings = {
        "bind": final["bind"],
        "port": (f"{host}:{final['port']}",),
        "uds": (f"unix:{final['uds']}",),
        "fd": (f"fd://{final['fd']}",),
    }
    used = [given[name] for name in spellings if name in given]
    if used:
        strongest = max(one.rank for one in used)
        kept = [name for name in spellings if name in given and given[name].rank == strongest]
        final["bind"] = tuple(address for name in kept for address in spellings[name])
        given["bind"] = given[kept[0]]
        origins["bind"] = given["bind"].origin
        for name in spellings.keys() - {"bind", *kept}:
            final[name], origins[name] = None, "default"
    elif final["base_port"] is None and default:
        final["bind"] = (f"{host}:8000",)
        origins["bind"] = origins["host"]


def _settle_rest(final: dict[str, Any], given: Mapping[str, Given], origins: dict[str, str]) -> None:
    """Set the final values that depend on other settings or on the machine."""
    final["workers"] = final["workers"] or usable_cores()
    final["limit_request_fields"] = final["limit_request_fields"] or MOST_FIELDS
    if "limit_request_head" not in given:
        final["limit_request_head"] = max(final[f"limit_request_{name}"] for name in ("head", "line", "field_size"))
    final["limit_request_line"] = final["limit_request_line"] or final["limit_request_head"]
    if final["stream_grace"] is None and final["graceful_timeout"]:
        final["stream_grace"] = max(0.0, final["graceful_timeout"] - LAST_WORDS)
    if final["access_log"] and final["access_logfile"] is None:
        final["access_logfile"], origins["access_logfile"] = "-", origins["access_log"]
    elif final["access_log"] is False and (
        "access_logfile" not in given or given["access_log"].rank >= given["access_logfile"].rank
    ):
        final["access_logfile"] = None
    if final["log_format"] == "json" and "access_logformat" not in given:
        final["access_logformat"], origins["access_logformat"] = "json", origins["log_format"]
    named = final["app"] or final["worker"]
    if final["name"] is None and named:
        final["name"] = named.partition(":")[0].replace("/", "-")


def _leave_out_tls(final: dict[str, Any], given: Mapping[str, Given], origins: dict[str, str], said: Said) -> None:
    """Ignore what says how TLS is spoken where it is not: files for gunicorn and uvicorn often have it for all cases."""
    if final["certfile"] is not None:
        return
    for name in ("ca_certs", "cert_reqs", "ciphers"):
        if name in given and final[name] != TABLE[name].default and (given[name].peer or name == "ciphers"):
            final[name], origins[name] = TABLE[name].default, "default"
            said.ignored.append(f"{given[name].label} (no --certfile, so no TLS)")


def _settle_development(final: dict[str, Any], origins: dict[str, str]) -> None:
    """Speed up development reloads, and turn debugging on.

    A reload waits neither for old workers nor for one new worker after the other. Values that were given win, except those of
    --graceful-timeout and --preload, which are likely to be from a file written for production.
    """
    defaults = {"linger": 0.2, "stream_grace": 0.0, "reload_settle": 0.0, "reload_surge": final["workers"], "debug": True}
    quicker = {name: value for name, value in defaults.items() if origins[name] == "default"}
    if not 0 < final["graceful_timeout"] <= DEVELOPMENT_GRACE:
        quicker["graceful_timeout"] = DEVELOPMENT_GRACE
    if final["preload"]:
        quicker["preload"] = False  # every save makes outdated what is loaded only once
    final.update(quicker)
    origins.update(dict.fromkeys(quicker, "--reload"))


def _settle_debugging(final: dict[str, Any], origins: dict[str, str]) -> None:
    """Let no timeout kill a worker that is in a debugger, unless it was set."""
    for name in ("timeout", "boot_timeout") if final["debug"] else ():
        if origins[name] == "default":
            final[name], origins[name] = 0.0, "--debug"


def usable_cores() -> int:
    """Return how many cores this process may use, by its affinity and its container's quota."""
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        cores = min(cores, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no limit: no file, or the word "max"
    return max(1, cores)
