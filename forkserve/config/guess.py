"""The app of a directory when APP is missing: FLASK_APP names it, or a manage.py shows which one may be meant."""

import os
import re
from collections.abc import Mapping
from typing import Final

from forkserve.config.envfile import read_development_files

VARIABLE: Final = "FLASK_APP"
_SETTINGS_OF_DJANGO: Final = re.compile(r"""DJANGO_SETTINGS_MODULE["']\s*,\s*["']([\w.]+)""")


def flask_app(folder: str, environ: Mapping[str, str], *, development: bool) -> tuple[str, str] | None:
    """Return the APP that FLASK_APP names, and the directory to import it from. None if it is not set.

    Args:
        folder: The directory of the app.
        environ: The environment.
        development: Look for the variable in `.env` and `.flaskenv` too.

    Raises:
        ValueError: It names neither a module nor a Python file that exists.
    """
    value = environ.get(VARIABLE)
    if value is None and development:
        value = read_development_files(folder, environ).get(VARIABLE)
    if not value or not value.strip():
        return None
    place, colon, attr = (part.strip() for part in value.partition(":"))
    path = os.path.realpath(os.path.join(folder, place))
    if not _is_package(path) and os.path.isfile(f"{path}.py"):
        path += ".py"
    if not os.path.exists(path):
        if place.endswith(".py") or "/" in place:
            raise ValueError(f"there is no file {place}")
        return place + colon + attr, folder  # a dotted name, or an installed module
    if not _is_package(path) and not path.endswith(".py"):
        raise ValueError(f"{value!r} is neither a Python file nor a package (a directory with an __init__.py)")
    parent, name = os.path.split(path.removesuffix(".py").removesuffix("/__init__"))
    names = [name]
    while _is_package(parent) and parent != os.path.dirname(parent):
        parent, name = os.path.split(parent)
        names.insert(0, name)
    return ".".join(names) + colon + attr, parent


def _is_package(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "__init__.py"))


def django_hint(folder: str) -> str:
    """Return how to serve the Django project of a directory, to follow an error; empty if there is none."""
    try:
        with open(os.path.join(folder, "manage.py"), encoding="utf-8", errors="replace") as file:
            match = _SETTINGS_OF_DJANGO.search(file.read())
    except OSError:
        return ""
    if match is None or "." not in match[1]:
        return ""
    project = match[1].partition(".")[0]  # `site` of `site.settings.local`
    found = [f"{project}.{name}" for name in ("wsgi", "asgi") if os.path.isfile(os.path.join(folder, project, f"{name}.py"))]
    return f"; here is a Django project: forkserve {' or forkserve '.join(found)}" if found else ""
