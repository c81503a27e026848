"""Apps: from "module:attr" to a callable.

The text is parsed in the master (pure, so that a mistake is a usage error). The import happens in a worker, or in another
process that ends when it fails, never in the master. Each fault has its own message, because each has its own remedy: there is
no such module, the app fails while it is imported, the module has no such name, the name is not callable, the factory fails.
"""

import ast
import contextlib
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from forkserve.base import installed, startup
from forkserve.base.errors import AppLoadError, ConfigError, NestedServerError, did_you_mean
from forkserve.base.logs import logger
from forkserve.config import envfile, nearmodules
from forkserve.config.settings import Settings

SYNCHRONOUS = "a factory is called before the loop runs: write it as `def`, and await in the app's lifespan"
OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
USUAL_NAMES = ("application", "app")  # tried in this order if the spec names only a module
FIRST_ARGUMENTS = ("environ", "env", "environment", "scope", "request")  # of apps, by their usual names
USUAL_FACTORIES = ("create_app", "make_app")  # tried after these, as Flask does
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class AppSpec:
    """A parsed APP: `attr` is None for a module alone; `call` says that `attr` is a factory."""

    module: str
    attr: str | None = None
    call: bool = False
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadedApp:
    """A callable ready to serve; `name` is `module:attr` as found."""

    app: Callable[..., Any]
    interface: Literal["wsgi", "asgi"]
    name: str


class _State:
    """The state of this process."""

    loading = False  # the app's module is being imported, or its factory runs


_state = _State()


def is_loading() -> bool:
    """Return whether this process is importing the app: then a server started now was not meant to run here."""
    return _state.loading


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    before, _state.loading = _state.loading, True
    try:
        yield
    finally:
        _state.loading = before


def parse_app_spec(spec: str) -> AppSpec:
    """Parse `module`, `module:attr` or `module:factory(literals)`; pure.

    Raises ConfigError if *spec* is none of them.
    """
    module, colon, rest = spec.partition(":")
    if module.endswith(".py") or "/" in module:
        guess = module.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(f"{spec!r} names a file: write the module, as in {guess}:{rest or 'app'}")
    if not all(part.isidentifier() for part in module.split(".")) or (colon and not rest):
        raise ConfigError(f"{spec!r} is not an app: write module:attr, module:factory() or module")
    if not colon:
        return AppSpec(module)
    try:
        node = ast.parse(rest.strip(), mode="eval").body
    except (
        SyntaxError,
        ValueError,
        RecursionError,
        MemoryError,
    ):  # a NUL in the text; or nested too deeply, which may be either of the last two
        raise ConfigError(f"{spec!r} is not an app: {rest!r} is not a name or a call") from None
    if not isinstance(node, ast.Call):
        return AppSpec(module, _dotted(spec, node))
    try:
        args = tuple(map(ast.literal_eval, node.args))
        kwargs = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
        if len(kwargs) < len(node.keywords):
            raise ValueError("**")  # noqa: TRY301 - one answer for all
    except (ValueError, TypeError, RecursionError):  # TypeError: a list as a key
        raise ConfigError(f"{spec!r}: the arguments of a factory must be literals") from None
    return AppSpec(module, _dotted(spec, node.func), True, args, kwargs)


def _dotted(spec: str, node: ast.expr) -> str:
    """Return the dotted name of *node*. Raises ConfigError if it is another expression."""
    name = ast.unparse(node)
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{spec!r} is not an app: {name!r} is not a name")
    return name


def prepare_process(settings: Settings) -> None:
    """Set the variables, working directory and import path of the app. In a worker, before `load_app`.

    Raises ConfigError if the env file cannot be read, or the directory cannot be entered.
    """
    variables = envfile.expand(envfile.read_env_file(settings.env_file), os.environ)
    os.environ.update({name: value for name, value in variables.items() if name not in os.environ})
    os.environ.update(settings.env)
    try:
        # With --reload, the watched directories stay the same as well.
        os.chdir(settings.chdir or startup.working_directory(real=settings.reload))
    except OSError as error:
        where = f"--chdir {settings.chdir}" if settings.chdir else f"the working directory {startup.directory}"
        raise ConfigError(f"{where}: {error.strerror}") from None
    if settings.reload:  # one worker warns for all
        is_first = os.environ.get("FORKSERVE_WORKER_ID") == "1"
        os.environ.update(envfile.read_development_files(os.getcwd(), os.environ, warns=is_first))
    if settings.shows_tracebacks:
        os.environ.setdefault("FLASK_DEBUG", "1")  # else Flask answers 500 by itself, and nobody else gets the exception
    installed.refresh()
    extend_path(settings)


def extend_path(settings: Settings) -> None:
    """Make the app's directory and --pythonpath importable; in the master too, for --worker."""
    for directory in (settings.chdir or os.getcwd(), *settings.pythonpath):
        if directory not in sys.path:
            sys.path.insert(0, directory)


def load_app(spec: str, given: Callable[..., Any] | None = None, *, interface: str = "auto", factory: bool = False) -> LoadedApp:
    """Import an app and detect its interface. Never in the master.

    Args:
        spec: `module`, `module:attr` or `module:factory(literals)`.
        given: The app itself, or its factory, if the program has it; *spec* is its name in messages then.
        interface: `auto`, `wsgi` or `asgi`.
        factory: Call the attribute, without arguments, to get the app.

    Raises:
        AppLoadError: The app cannot be loaded.
        ConfigError: The spec is malformed.
    """
    parsed = parse_app_spec(spec)
    with _loading():
        return _load(parsed, given, interface, factory=factory)


def _load(parsed: AppSpec, given: Callable[..., Any] | None, interface: str, *, factory: bool) -> LoadedApp:
    app, attr = resolve(parsed) if given is None else (given, parsed.attr)
    name = f"{parsed.module}:{attr}"
    if not callable(app):
        raise AppLoadError(f"{name!r} is not callable: it is {_kind(app)}")
    if parsed.call or factory or (parsed.attr is None and attr in USUAL_FACTORIES):
        app = _made_by(app, parsed, f"the factory {name!r}")
    elif _needs_nothing(app):
        app = _made_by(app, parsed, f"{name!r}, called as a factory since it takes no argument,")
        _say("%r takes no argument, so it is called as a factory (--factory says so)", name)
    if interface == "auto" and _takes(app) is None and speaks(app) == "wsgi":
        _say("%r is taken for WSGI, as its signature does not tell: --interface asgi or --interface wsgi does", name)
    return loaded(app, interface, name)


def _made_by(factory: Callable[..., Any], parsed: AppSpec, what: str) -> Callable[..., Any]:
    """Return the app that a factory makes; *what* names the factory in errors."""
    try:
        app = factory(*parsed.args, **parsed.kwargs)
    except NestedServerError as error:
        raise AppLoadError(f"{what} {error}") from None
    except (Exception, SystemExit) as error:
        raise AppLoadError(f"{what} failed: {_line(error)}", own_traceback(error)) from error
    if inspect.iscoroutine(app):
        app.close()
        raise AppLoadError(f"{what} is `async def`: {SYNCHRONOUS}")
    if not callable(app):
        raise AppLoadError(f"{what} returned no app: {_kind(app)} is not callable")
    if not inspect.isclass(app) and _needs_nothing(app):  # aiohttp.web.Application returns itself
        raise AppLoadError(f"{what} returned no app: what it returned takes no argument either")
    return app  # type: ignore[no-any-return]


def _say(text: str, name: str) -> None:
    """Log a line in the first worker, or in the mold; the others load the app in the same way."""
    if os.environ.get("FORKSERVE_WORKER_ID", "1") == "1":
        logger.info(text, name)


def loaded(app: Callable[..., Any], interface: str, name: str) -> LoadedApp:
    """Return an app that is there, with its interface (`auto`: detected)."""
    found = speaks(app) if interface == "auto" else interface
    if found == "wsgi":
        return LoadedApp(app, "wsgi", name)
    if interface == "asgi" and _takes(app) == 2 and speaks(app) == "wsgi":
        raise AppLoadError(
            f"{name!r} is a WSGI app: it takes two arguments; an ASGI app is asked for (--interface, worker class)"
        )
    if _is_async(app):
        _check_arguments(app, name)
    elif _takes(app) == 1:
        app = functools.partial(_single_callable, app)
    return LoadedApp(app, "asgi", name)


def _check_arguments(app: Callable[..., Any], name: str) -> None:
    """Raise AppLoadError if an async callable cannot take the three arguments of ASGI."""
    parameters = _parameters(app)
    if parameters is None or any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return
    most = sum(one.kind in _POSITIONAL for one in parameters)
    if most == 0:
        raise AppLoadError(f"{name!r} is an async function without arguments, so no app; {SYNCHRONOUS}")
    if not (_takes(app) or 0) <= 3 <= most:
        raise AppLoadError(f"{name!r} is async, but an ASGI app takes three arguments (scope, receive, send), not {most}")


def resolve(spec: AppSpec) -> tuple[Any, str]:
    """Import the module of *spec* and return its attribute, and that attribute's name.

    Raises AppLoadError: no such module, an exception at import, no such attribute.
    """
    try:
        found: Any = importlib.import_module(spec.module)
    except NestedServerError as error:
        raise AppLoadError(f"{spec.module!r} {error}") from None
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and _strip(error.__traceback__) is None:
            raise AppLoadError(
                f"there is no module {spec.module!r} in {os.getcwd()} or on Python's path{nearmodules.remedy(spec.module)}"
            ) from None
        raise AppLoadError(f"{spec.module!r} failed at import: {_line(error)}", own_traceback(error)) from error
    if spec.attr is None:
        attr = next((name for name in USUAL_NAMES if hasattr(found, name)), None)
        attr = attr or next((name for name in USUAL_FACTORIES if inspect.isfunction(getattr(found, name, None))), None)
        if attr is None:
            raise AppLoadError(
                f"module {spec.module!r} has neither 'application' nor 'app': name the app, as in {spec.module}:NAME"
            )
        return getattr(found, attr), attr
    owner = f"module {spec.module!r}"
    for part in spec.attr.split("."):
        if not hasattr(found, part):
            near = did_you_mean(part, (name for name in dir(found) if not name.startswith("_")))
            raise AppLoadError(f"{owner} has no attribute {part!r}{near}")
        found, owner = getattr(found, part), repr(part)
    return found, spec.attr


def speaks(app: Callable[..., Any]) -> Literal["wsgi", "asgi"]:
    """Return the interface of *app*: a coroutine function is ASGI, else the number of its arguments decides.

    WSGI takes two arguments, ASGI three, and ASGI 2 one (it returns a coroutine function). An app with a signature that leaves
    the number open (`*args`) is WSGI.
    """
    return "asgi" if _is_async(app) or _takes(app) in (1, 3) else "wsgi"


def _is_async(app: Callable[..., Any]) -> bool:
    """Return whether a call of *app* makes a coroutine."""
    call = app if inspect.isclass(app) else getattr(app, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(call)


def _needs_nothing(app: Callable[..., Any]) -> bool:
    """Return whether *app* can be called without arguments, but not as WSGI or ASGI: it may make the app."""
    if inspect.iscoroutinefunction(app):
        return False
    parameters = _parameters(app)
    if parameters is None or not all(one.default is not one.empty or one.kind in _OPEN for one in parameters):
        return False
    if inspect.isclass(app) and _defines(app, "__call__") and not _defines(app, "__iter__"):
        return True  # whatever it takes, its instances are no responses
    positional = [one for one in parameters if one.kind in (*_POSITIONAL, one.VAR_POSITIONAL)]
    if any(one.kind is one.VAR_POSITIONAL for one in positional):
        return False
    return len(positional) < 2 or (inspect.isfunction(app) and positional[0].name not in FIRST_ARGUMENTS)


def _defines(app: type, name: str) -> bool:
    """Return whether instances of a class have a method."""
    return any(name in vars(base) for base in app.__mro__)


def _takes(app: Callable[..., Any]) -> int | None:
    """Return how many positional arguments *app* needs; None if that is unknown."""
    parameters = _parameters(app)
    if parameters is None or any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return None
    return sum(one.default is one.empty and one.kind in _POSITIONAL for one in parameters)


def _parameters(app: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Return the parameters of *app*; None if they are unknown.

    A decorator such as `functools.wraps` shows those of the function inside. They count only if the function outside takes
    anything (`*args`), and passes it on: one parameter inside is often a request that the decorator makes from two arguments.
    """
    own = _signature(app, follow_wrapped=False)
    if own is not None and all(one.kind is not one.VAR_POSITIONAL for one in own):
        return own
    inside = _signature(app, follow_wrapped=True)
    return own if inside is not None and len(inside) == 1 else inside


def _signature(app: Callable[..., Any], *, follow_wrapped: bool) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(app, follow_wrapped=follow_wrapped).parameters.values())
    except (TypeError, ValueError):
        return None


async def _single_callable(
    app: Callable[..., Any],
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[Any], Awaitable[None]],
) -> None:
    """Serve an ASGI 2 app as ASGI 3."""
    await app(scope)(receive, send)


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _line(error: BaseException) -> str:
    text = f"SyntaxError: {error}" if isinstance(error, SyntaxError) else "".join(traceback.format_exception_only(error))
    return " ".join(text.split())[-500:]


def _strip(trace: TracebackType | None) -> TracebackType | None:
    """Return *trace* from the app's first frame on, without the frames of forkserve and of the import system before it."""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name != importlib.__file__ and not name.startswith((OURS, "<frozen importlib")):
            break
        trace = trace.tb_next
    return trace


def own_traceback(error: BaseException) -> str:
    """Return the app's own traceback of *error*; the whole traceback if forkserve raised it."""
    frames = list(traceback.walk_tb(error.__traceback__))
    fault = bool(frames) and all(frame.f_code.co_filename.startswith(OURS) for frame, _ in frames)
    return "".join(traceback.format_exception(type(error), error, error.__traceback__ if fault else _strip(error.__traceback__)))
