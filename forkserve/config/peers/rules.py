"""The form of a rule: what becomes of one setting of another server. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of one setting of another server. It has a meaning here (`to`), or none (`ignored`).

    Attributes:
        to: The settings or hook here, separated by blanks. A rule without `read` makes its name an alias of this setting.
        flags: The options of that server's command line that `forkserve.config.spec.flag` does not give for its name.
        ignored: Why the setting has no effect.
        note: What differs, for the pages.
        usual: Values that do nothing there, the default first, so that nothing has to be said of them. None and what is false
            are among them.
        read: Returns the value for `to`, or raises ValueError, with what to write instead.
        switch: The value of its flags, if these take none.
        warns: To ignore it may matter to users: it is said in a warning.
    """

    to: str = ""
    flags: tuple[str, ...] = ()
    ignored: str = ""
    note: str = ""
    usual: tuple[object, ...] = ()
    read: Callable[[object], object] | None = None
    switch: object = None
    warns: bool = False

    @property
    def renames(self) -> bool:
        """Whether the setting is one of ours under another name, or under the same."""
        return bool(self.to) and self.read is None

    @property
    def default(self) -> object:
        """The default of the other server, for a setting without an equal here."""
        return self.usual[0] if self.usual else None if self.switch is None else False


Table = Mapping[str, Rule]


def refusal(why: str, *usual: object) -> Callable[[object], object]:
    """Return a `Rule.read` that refuses every value but None, those that are false, and *usual*."""

    def read(value: object) -> object:
        if value and value not in usual:
            raise ValueError(why)
        return None

    return read
