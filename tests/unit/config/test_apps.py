"""Loading an app from "module:attr"."""

import asyncio
import functools
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forkserve.base.errors import AppLoadError, ConfigError
from forkserve.config.apps import AppSpec, load_app, parse_app_spec, prepare_process, speaks
from forkserve.config.settings import Settings

SOURCE = """
calls = []
class Number: pass
number = 1
def application(environ, start_response): return []
def app(environ, start_response): return []
async def modern(scope, receive, send): pass
def make(kind="wsgi", debug=False):
    calls.append((kind, debug))
    return app
def make_nothing(): pass
def make_trouble(): raise KeyError("no such thing")
class box:
    app = staticmethod(app)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The unique name of a new module with apps."""
    name = "apps_" + tmp_path.name
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", AppSpec("a")),
        ("a.b:c.d", AppSpec("a.b", "c.d")),
        ("a:f()", AppSpec("a", "f", True)),
        ("a:f('x', debug=False)", AppSpec("a", "f", True, ("x",), {"debug": False})),
    ],
)
def test_an_app_spec_is_parsed(text: str, expected: AppSpec) -> None:
    assert expected == parse_app_spec(text)


def test_arguments_are_never_evaluated() -> None:
    with pytest.raises(ConfigError, match="must be literals"):
        parse_app_spec("a:f(__import__('os').getpid())")


def test_a_file_name_as_app_is_refused_with_the_module_name() -> None:
    with pytest.raises(ConfigError, match=r"as in src.site:app"):
        parse_app_spec("./src/site.py")


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("{}", "{}:application"),
        ("{}:app", "{}:app"),
        ("{}:box.app", "{}:box.app"),
        ("{}:make()", "{}:make"),
        ("{}:make('x', debug=True)", "{}:make"),
    ],
)
def test_an_app_is_loaded(module: str, spec: str, name: str) -> None:
    loaded = load_app(spec.format(module))

    assert ("wsgi", name.format(module)) == (loaded.interface, loaded.name)
    assert loaded.app({}, None) == []


def test_a_factory_gets_its_arguments(module: str) -> None:
    load_app(f"{module}:make('x', debug=True)")
    load_app(f"{module}:make", factory=True)

    assert sys.modules[module].calls == [("x", True), ("wsgi", False)]


def test_an_asgi_app_is_detected(module: str) -> None:
    assert load_app(f"{module}:modern").interface == "asgi"


def test_the_interface_can_be_forced(module: str) -> None:
    assert load_app(f"{module}:app", interface="wsgi").interface == "wsgi"
    with pytest.raises(AppLoadError, match="is a WSGI app: it takes two arguments"):
        load_app(f"{module}:app", interface="asgi")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module_at_all:app", "there is no module 'no_such_module_at_all' in /"),
        ("{}:ap", "module '{}' has no attribute 'ap' (did you mean 'app'?)"),
        ("{}:box.ap", "'box' has no attribute 'ap' (did you mean 'app'?)"),
        ("{}:number", "'{}:number' is not callable: it is of type int"),
        ("{}:make_nothing()", "the factory '{}:make_nothing' returned no app: None is not callable"),
        ("{}.sub:app", "there is no module '{}.sub' in /"),
    ],
)
def test_each_load_error_has_its_own_message(module: str, spec: str, message: str) -> None:
    with pytest.raises(AppLoadError) as caught:
        load_app(spec.format(module))

    assert str(caught.value).startswith(message.format(module))
    assert caught.value.exit_code == 4
    assert caught.value.traceback_text is None


def test_a_module_without_an_app_is_refused_with_the_tried_names(tmp_path: Path, module: str) -> None:
    (tmp_path / "empty_of_apps.py").touch()

    with pytest.raises(AppLoadError, match="has neither 'application' nor 'app'"):
        load_app("empty_of_apps")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('bye')", "SystemExit: bye"),
        ("def f(:", "SyntaxError: invalid syntax"),
    ],
)
def test_an_error_in_the_app_has_the_app_s_traceback(
    tmp_path: Path,
    module: str,
    source: str,
    message: str,
) -> None:
    (tmp_path / "faulty.py").write_text(source)
    sys.modules.pop("faulty", None)
    sys.path_importer_cache.clear()

    with pytest.raises(AppLoadError) as caught:
        load_app("faulty:app")

    assert str(caught.value).startswith("'faulty' failed at import: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "faulty.py" in (caught.value.traceback_text or "")
    assert "config/apps.py" not in (caught.value.traceback_text or "")
    assert "importlib" not in (caught.value.traceback_text or "")


def test_a_factory_that_raises_is_a_load_error_with_its_traceback(module: str) -> None:
    with pytest.raises(AppLoadError, match=r"make_trouble' failed: KeyError: 'no such thing'") as caught:
        load_app(f"{module}:make_trouble()")

    assert "in make_trouble" in (caught.value.traceback_text or "")


class _Wsgi:
    def __init__(self, environ: Any, start_response: Any) -> None: ...


class _WsgiObject:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...


class _AsgiObject:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class _Asgi2:
    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await send((self.scope, await receive()))


def _decorated(scope: Any, receive: Any, send: Any) -> Any: ...
def _open(*args: Any) -> Any: ...
async def _modern(extra: Any, scope: Any, receive: Any, send: Any) -> None: ...


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        (_Wsgi, "wsgi"),
        (_WsgiObject(), "wsgi"),
        (_open, "wsgi"),
        (_AsgiObject(), "asgi"),
        (_Asgi2, "asgi"),
        (_decorated, "asgi"),
        (functools.partial(_modern, 1), "asgi"),
    ],
    ids=["class", "object", "open", "async object", "asgi 2", "decorated", "partial"],
)
def test_the_interface_of_an_app_is_detected(app: Any, expected: str) -> None:
    assert expected == speaks(app)


def test_an_asgi_2_app_is_served_as_asgi_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "older", type(sys)("older"))
    sys.modules["older"].app = _Asgi2  # type: ignore[attr-defined]
    sent: list[object] = []

    async def receive() -> str:
        return "event"

    async def send(message: object) -> None:
        sent.append(message)

    asyncio.run(load_app("older:app").app({"type": "http"}, receive, send))

    assert sent == [({"type": "http"}, "event")]


def test_a_process_is_prepared_for_its_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("SET", "before")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    (tmp_path / "env").write_text("SET=file\nNEW=file\nBOTH=file\n")

    prepare_process(Settings(chdir=str(tmp_path), pythonpath=("/a",), env=(("BOTH", "option"),), env_file=str(tmp_path / "env")))

    assert tuple(os.environ[name] for name in ("SET", "NEW", "BOTH")) == ("before", "file", "option")
    assert str(tmp_path) == os.getcwd()
    assert ["/a", str(tmp_path)] == sys.path[:2]


FACTORIES = """
import functools
from unittest.mock import Mock
import flask, quart
from starlette.applications import Starlette

def application(environ, start_response): return []
def create_app(): return application
def with_settings(test_config=None): return flask.Flask("x")
def with_more(config=None, **more): return Starlette()
by_part = functools.partial(lambda kind, debug=False: quart.Quart("x"), "production")
made_by_lambda = lambda: application
class Site:
    def __call__(self, environ, start_response): return []
class Maker:
    def __call__(self): return application
maker = Maker()
class ManyOptions:
    def __init__(self, prefix="", debug=False): pass
    async def __call__(self, scope, receive, send): pass

def around(inside):
    @functools.wraps(inside)
    def outside(environ, start_response): return [inside().encode()]
    return outside
@around
def decorated(): return "hello"
def of_request(inside):
    @functools.wraps(inside)
    def outside(*args): return inside(args[0])
    return outside
@of_request
def view(request): return []
def returns_itself(): return returns_itself

def optional(environ=None, start_response=None): return []
def with_two(config=None, debug=False): return application
def with_three(config=None, debug=False, testing=False): return Starlette()
def anything(*args): return []
def words(environ, start_response, **words): return []
class Old:
    def __init__(self, environ, start_response): pass
    def __iter__(self): return iter(())
mock = Mock(return_value=[])
method = Site().__call__
native = print
part = functools.partial(lambda own, environ, start_response: [], 1)
flask_app = flask.Flask("x")
quart_app = quart.Quart("x")
starlette_app = Starlette()
async def make_none(): return application
async def make_later(kind="asgi"): return application
async def endpoint(request): return None
async def pair(environ, start_response): return []
class Handler:
    async def __call__(self, request, response): return None
handler = Handler()

def nothing(): return None
def trouble(): raise KeyError("no such thing")
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The unique name of a new module with factories and apps."""
    name = "factories_" + tmp_path.name
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the server logs."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("forkserve"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("name", "interface"),
    [
        ("create_app", "wsgi"),
        ("with_settings", "wsgi"),
        ("with_more", "asgi"),
        ("with_two", "wsgi"),
        ("with_three", "asgi"),
        ("by_part", "asgi"),
        ("made_by_lambda", "wsgi"),
        ("Site", "wsgi"),
        ("maker", "wsgi"),
        ("ManyOptions", "asgi"),
    ],
)
def test_what_takes_no_argument_and_returns_an_app_is_a_factory(
    factories: str, name: str, interface: str, said: list[str]
) -> None:
    found = load_app(f"{factories}:{name}")
    assert found.interface == interface
    assert found.app is not getattr(sys.modules[factories], name)
    assert said == [f"'{factories}:{name}' takes no argument, so it is called as a factory (--factory says so)"]


@pytest.mark.parametrize(
    ("name", "interface"),
    [
        *((name, "wsgi") for name in ("application", "optional", "words", "Old", "method", "part", "flask_app", "decorated")),
        *((name, "asgi") for name in ("quart_app", "starlette_app")),
    ],
)
def test_an_app_is_no_factory(factories: str, name: str, interface: str, said: list[str]) -> None:
    found = load_app(f"{factories}:{name}")
    assert (found.app, found.interface) == (getattr(sys.modules[factories], name), interface)
    assert said == []


@pytest.mark.parametrize("name", ["anything", "mock", "native", "view"])
def test_a_signature_that_does_not_tell_the_interface_is_logged(factories: str, name: str, said: list[str]) -> None:
    assert load_app(f"{factories}:{name}").interface == "wsgi"
    assert said == [
        f"'{factories}:{name}' is taken for WSGI, as its signature does not tell: --interface asgi or --interface wsgi does"
    ]
    said.clear()
    assert load_app(f"{factories}:{name}", interface="asgi").interface == "asgi"
    assert said == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "called as a factory since it takes no argument, returned no app: None is not callable"),
        ("trouble", "called as a factory since it takes no argument, failed: KeyError: 'no such thing'"),
        (
            "returns_itself",
            "called as a factory since it takes no argument, returned no app: what it returned takes no argument either",
        ),
    ],
)
def test_a_detected_factory_that_makes_no_app_is_a_load_error(factories: str, name: str, message: str) -> None:
    with pytest.raises(AppLoadError) as caught:
        load_app(f"{factories}:{name}")
    assert str(caught.value) == f"'{factories}:{name}', {message}"


SYNCHRONOUS = "a factory is called before the loop runs: write it as `def`, and await in the app's lifespan"
COUNTED = "is async, but an ASGI app takes three arguments (scope, receive, send), not"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}:make_later", f"'{{}}:make_later' {COUNTED} 1"),
        ("{}:make_none", f"'{{}}:make_none' is an async function without arguments, so no app; {SYNCHRONOUS}"),
        ("{}:make_later()", f"the factory '{{}}:make_later' is `async def`: {SYNCHRONOUS}"),
        ("{}:endpoint", f"'{{}}:endpoint' {COUNTED} 1"),
        ("{}:pair", f"'{{}}:pair' {COUNTED} 2"),
        ("{}:handler", f"'{{}}:handler' {COUNTED} 2"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_an_async_callable_that_is_no_asgi_app_is_a_load_error(factories: str, spec: str, message: str) -> None:
    with pytest.raises(AppLoadError) as caught:
        load_app(spec.format(factories))
    assert str(caught.value) == message.format(factories)
