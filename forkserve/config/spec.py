"""The declaration of a setting: its properties besides the type, and the names derived from its name. Pure."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from forkserve.config.values import Kind, secret

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spec:
    """The properties of one setting besides its type; see `setting`."""

    group: str
    kind: Kind[Any]
    help: str
    short: str = ""
    aliases: tuple[str, ...] = ()
    variable: str = ""
    reloadable: bool = True
    name: str = ""
    default: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """The setting's name and its aliases, as written in files and keywords."""
        return (self.name, *self.aliases)

    @property
    def flags(self) -> tuple[str, ...]:
        """Its flags, the canonical one first: `--keep-alive`, `--timeout-keep-alive`."""
        short = (self.short,) if self.short else ()
        return (flag(self.name), *short, *map(flag, self.aliases))

    def show(self, value: object) -> str:
        """Write *value* as it could be given; None is the empty string."""
        return "" if value is None else self.kind.show(value)


def flag(name: str) -> str:
    """Return the flag of the setting or alias *name*; the app is the argument APP instead."""
    return "APP" if name == "app" else "--" + name.replace("_", "-")


def setting(
    default: T,
    group: str,
    kind: Kind[Any],
    help: str,
    *,
    short: str = "",
    aliases: str = "",
    variable: str = "",
    reloadable: bool = True,
) -> T:
    """Declare one setting.

    Args:
        default: The value if no source gives one.
        group: The heading in `--help`.
        kind: How a value is read and shown.
        help: What it does: an imperative, with the unit and the meaning of 0.
        short: The one-letter flag.
        aliases: Other names, separated by blanks.
        variable: A well-known environment variable besides FORKSERVE_<NAME>, which is stronger.
        reloadable: Whether a reload may change it while the master runs.
    """
    spec = Spec(group, kind, help, short, tuple(aliases.split()), variable, reloadable)
    return field(default=default, repr=kind is not secret, metadata={"spec": spec})


def fixed(default: T, group: str, kind: Kind[Any], help: str, *, short: str = "", aliases: str = "", variable: str = "") -> T:
    """Declare a setting that a reload cannot change while the master runs. The arguments are those of `setting`."""
    return setting(default, group, kind, help, short=short, aliases=aliases, variable=variable, reloadable=False)
