"""The settings by name, derived from the fields of `Settings`; and which of them a reload may change. Pure."""

from collections.abc import Mapping
from dataclasses import fields, replace

from forkserve.config.settings import Settings
from forkserve.config.spec import Spec

# The `Spec` of each setting by name, in the order of declaration; and the setting's name by name and alias.
TABLE: Mapping[str, Spec] = {
    one.name: replace(one.metadata["spec"], name=one.name, default=one.default) for one in fields(Settings)
}
NAMES: Mapping[str, str] = {alias: name for name, spec in TABLE.items() for alias in spec.names}


def unchangeable(before: Settings, fresh: Settings) -> list[str]:
    """Return the names of settings that differ although a reload may not change them."""
    return [name for name, spec in TABLE.items() if not spec.reloadable and getattr(before, name) != getattr(fresh, name)]


def merge(before: Settings, fresh: Settings) -> Settings:
    """Return the settings after a reload: the fresh ones, except those that only a restart can change."""
    return replace(fresh, **{name: getattr(before, name) for name, spec in TABLE.items() if not spec.reloadable})
