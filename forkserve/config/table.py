"""The settings by name, derived from the fields of `Settings`; and which of them a reload may change. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace

from forkserve.config.peers import gunicorn, uvicorn
from forkserve.config.settings import Settings
from forkserve.config.spec import Spec, flag


def _aliases(name: str, own: tuple[str, ...]) -> Iterator[str]:
    """Yield the other names of a setting: its own, and those of gunicorn and uvicorn in files and on the command line."""
    yield from own
    for table in (gunicorn.SETTINGS, uvicorn.OPTIONS):
        for other, rule in table.items():
            if rule.renames and rule.to == name:
                yield other
                yield from (one[2:].replace("-", "_") for one in rule.flags if one.startswith("--"))


def _named(name: str, default: object, spec: Spec) -> Spec:
    aliases = tuple(one for one in dict.fromkeys(_aliases(name, spec.aliases)) if one != name)
    return replace(spec, name=name, default=default, aliases=aliases)


# The `Spec` of each setting by name, in the order of declaration; and the setting's name by name and alias.
TABLE: Mapping[str, Spec] = {
    one.name: _named(one.name, one.default, one.metadata["spec"]) for one in fields(Settings) if "spec" in one.metadata
}
NAMES: Mapping[str, str] = {alias: name for name, spec in TABLE.items() for alias in spec.names}

# The options that gunicorn and uvicorn have and forkserve does not, each with its flags and the value of a flag without one.
FOREIGN_OPTIONS: Mapping[str, tuple[tuple[str, ...], object]] = {
    name: (flags, rule.switch)
    for table in (gunicorn.SETTINGS, uvicorn.OPTIONS)
    for name, rule in table.items()
    if name not in NAMES and rule.to != "hook"
    for own in [tuple(one for spec in TABLE.values() for one in spec.flags)]
    for flags in [tuple(one for one in dict.fromkeys((*rule.flags, flag(name))) if one not in own)]
}


def unchangeable(before: Settings, fresh: Settings) -> list[str]:
    """Return the names of settings that differ although a reload may not change them."""
    return [name for name, spec in TABLE.items() if not spec.reloadable and getattr(before, name) != getattr(fresh, name)]


def merge(before: Settings, fresh: Settings) -> Settings:
    """Return the settings after a reload: the fresh ones, except those that only a restart can change."""
    kept = {name: getattr(before, name) for name, spec in TABLE.items() if not spec.reloadable}
    return replace(fresh, **kept, shows_tracebacks=before.shows_tracebacks and fresh.shows_tracebacks)
