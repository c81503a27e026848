"""How a setting is declared: what is known of one besides its type, and the names that follow from it. Pure."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from forkserve.config.values import Kind

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of one setting besides its type; see `setting`."""

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
        """The setting's name and its aliases, as keys in files and keywords are written."""
        return (self.name, *self.aliases)

    @property
    def flags(self) -> tuple[str, ...]:
        """Its flags, the canonical one first: `--keep-alive`, `--timeout-keep-alive`."""
        short = (self.short,) if self.short else ()
        return (flag(self.name), *short, *map(flag, self.aliases))

    def show(self, value: object) -> str:
        """Write *value* as it could be given; an unset one is the empty string."""
        return "" if value is None else self.kind.show(value)


def flag(name: str) -> str:
    """Return the flag of the setting or alias *name*; the app has none, it is the argument APP."""
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

    *group* is its heading in `--help`, *short* its one-letter flag, *aliases* other names separated
    by blanks, *variable* a well-known environment variable besides FORKSERVE_<NAME> and weaker than
    that, *reloadable* whether a reload may change it while the master runs.
    """
    spec = Spec(group, kind, help, short, tuple(aliases.split()), variable, reloadable)
    return field(default=default, metadata={"spec": spec})
