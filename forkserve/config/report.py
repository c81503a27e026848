"""The settings as text: `forkserve config`, and the reference table in Markdown."""

import json

from forkserve.base.logs import printable
from forkserve.config import values
from forkserve.config.load import HOOKS, Config
from forkserve.config.spec import Spec
from forkserve.config.table import TABLE


def setting_lines(config: Config, *, changed: bool = False) -> str:
    """Return a line for each setting and hook: its name, its value and the origin of the value.

    With *changed*, only for settings whose value is not the default.
    """
    values_of = {name: getattr(config.settings, name) for name in TABLE}
    rows = [
        (name, _shown(spec, values_of[name]), config.origins[name])
        for name, spec in TABLE.items()
        if not changed or (values_of[name] != spec.default and config.origins[name] != "default")
    ]
    rows += [(name, f"{name}({', '.join(HOOKS[name])})", "hook") for name in config.hooks]
    wide = max((len(name) for name, _, _ in rows), default=0)
    long = min(40, max((len(value) for _, value, _ in rows), default=0))
    return "".join(f"{name:<{wide}}  {value:<{long}}  ({origin})\n" for name, value, origin in rows)


def _shown(spec: Spec, value: object) -> str:
    if spec.kind is values.secret and value is not None:
        return "(not shown)"
    return printable(spec.show(value)) or "(none)"


def toml(config: Config) -> str:
    """Return the settings that a source gives as a forkserve.toml that gives the same."""
    settings = config.settings
    folded = {"config", "port", "uds", "fd"} | ({"host"} if settings.base_port is None else set())
    if settings.access_logfile is not None:
        folded.add("access_log")
    lines = ["# forkserve.toml"]
    for name, spec in TABLE.items():
        value = getattr(settings, name)
        if name not in folded and value is not None and config.origins[name] not in ("default", "--reload", "--debug"):
            lines.append(f"{name} = {_toml_value(spec, value)}" if spec.kind is not values.secret else f"# {name} is not shown")
    if config.hooks:
        lines.append(f"# These hooks stay in a Python file: {', '.join(config.hooks)}")
    return "\n".join(lines) + "\n"


def _toml_value(spec: Spec, value: object) -> str:
    shown = spec.show(value)
    if isinstance(value, bool):
        return shown
    if isinstance(value, int | float) and shown.replace(".", "", 1).isdigit() and not shown.startswith("0"):
        return shown
    if spec.kind.many:
        separator = "\n" if spec.kind in (values.variables, values.headers) else ","
        return json.dumps(shown.split(separator) if shown else [], ensure_ascii=False)
    return json.dumps(shown, ensure_ascii=False)


def markdown_table() -> str:
    """Return the reference table of all settings, in Markdown."""
    lines = [
        "| option | default | meaning | reload |",
        "|---|---|---|---|",
        *(
            f"| {_names(spec)} | {_default(spec)} | {_cell(spec.help)}{_variable(spec.variable)}"
            f" | {'yes' if spec.reloadable else 'no'} |"
            for spec in TABLE.values()
        ),
    ]
    return "\n".join(lines) + "\n"


def _names(spec: Spec) -> str:
    value = "" if spec.kind.switch or spec.name == "app" else f" {spec.kind.metavar}"
    first, *others = spec.flags
    return ", ".join(f"`{_cell(one)}`" for one in (first + value, *others))


def _default(spec: Spec) -> str:
    shown = spec.show(spec.default)
    return f"`{_cell(shown)}`" if shown else ""


def _variable(name: str) -> str:
    return f" Also `{name}`." if name else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
