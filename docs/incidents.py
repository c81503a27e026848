"""The log lines from WARNING on that the code can write, the errors that end a start, and what `incidents.toml` explains of each.

The lines are found in the code: calls of a logger's methods, `EMITTERS`, which pass a text to one, and `ERRORS`. A placeholder is
`{}`. Texts that the caller of a function gives are looked up where the function is called.
"""  # noqa: INP001 - a script beside the pages

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ENTRIES: Final = Path(__file__).with_suffix(".toml")
LEVELS: Final = ("warning", "error", "exception", "critical")
EMITTERS: Final = ("said.warnings.append", "_state.complain")
"""Calls whose first argument is logged elsewhere, as a warning."""
PASSED_ON: Final = (
    "base/logs.py: line",  # the last line of a start, which is an error's
    "base/logs.py: text",
    "devreload/warm/process.py",  # workers are forked without a warm process then
    "devreload/watcher_process.py: text",
    "prefork/control/socketfile.py: '; '.join(reasons)",  # there is no control socket then
    "prefork/master/reloading.py: line",
    "prefork/system/daemon.py: message",
    "server.py: line",
)
"""Places where texts of other places are passed on, and errors that end no start."""
ERRORS: Final = {"BootError": 3, "AppLoadError": 4, "ListenError": 5}
"""Exceptions whose text is the last line of a start, by exit code. Those of usage (2) say themselves what to do."""
TOO_LOW: Final = ("INFO", "DEBUG", "TRACE")
FEW: Final = 2  # words: with fewer a text alone does not say what has happened
PERCENT: Final = re.compile(r"%(?:[-+ #0]*[\d.]*[a-zA-Z])")


@dataclass(frozen=True)
class Line:
    """A line of the code.

    Attributes:
        text: Its first line, with `{}` for what varies.
        place: The module, and what varies.
        number: The line in the module.
        level: warning, error or critical; "any level" if it varies; "exit code N" for the last line of a start.
    """

    text: str
    place: str
    number: int
    level: str

    @property
    def key(self) -> str:
        """What an entry names it by: its text, or its place if the text has no word of its own."""
        return self.text if re.search(r"[a-z]", self.text) else self.place


@dataclass(frozen=True)
class Entry:
    """An explanation.

    Attributes:
        part: The heading that it stands under.
        line: The line, with `{name}` for what varies.
        at: The place of a line that consists only of what varies.
        means: What has happened.
        do: What the operator does.
    """

    part: str
    line: str
    means: str
    do: str
    at: str = ""

    @property
    def key(self) -> str:
        """What it shares with its `Line`."""
        return self.at or re.sub(r"\{[^{}]*\}", "{}", self.line)


class Code:
    """The functions of a package, and the log lines in them."""

    def __init__(self, package: Path) -> None:
        self._calls: defaultdict[str, list[tuple[ast.Call, list[ast.AST]]]] = defaultdict(list)
        self._logged: list[tuple[Path, ast.Call, list[ast.AST]]] = []
        self._all: list[str] = []
        self._home: dict[ast.AST, str] = {}  # the package of a module
        for path in sorted(package.rglob("*.py")):
            tree = ast.parse(path.read_text())
            self._home[tree] = path.relative_to(package).parts[0]
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant | ast.JoinedStr):
                    self._all += self._texts(node, [], [], ())
            for call, outer in _calls(tree, [tree]):
                self._calls[_called(call.func).rpartition(".")[2]].append((call, outer))
                self._logged.append((path.relative_to(package), call, outer))

    def texts(self) -> str:
        """Return all texts of the code, with `{}` for what varies."""
        return "\n".join(self._all)

    def lines(self) -> list[Line]:
        """Return the lines, each once for each place."""
        found = []
        for path, call, outer in self._logged:
            for level, text in _message(call):
                given = [] if level.startswith("exit") else call.args[call.args.index(text) + 1 :]
                place = f"{path}: {_variables(text, given)}"
                if place in PASSED_ON or str(path) in PASSED_ON:
                    continue
                found += [Line(one, place, call.lineno, level) for one in sorted(self._shown(text, given, outer))]
        return found

    def _shown(self, text: ast.expr, given: list[ast.expr], outer: list[ast.AST]) -> set[str]:
        """Return the first lines that a call may write. Variables are looked up if the text says little without them."""
        found = self._texts(text, given, [], ())
        if any(len(re.findall(r"[a-z]{3,}", one)) < FEW for one in found):
            found = self._texts(text, given, outer, ())
        return {one.partition("\n")[0] for one in found}

    def _texts(self, node: ast.expr, given: list[ast.expr], outer: list[ast.AST], seen: tuple[str, ...]) -> set[str]:
        """Return what an expression may be: its texts, or `{}`."""
        match node:
            case ast.Constant(str(text)):
                return self._joined(PERCENT.split(text), [self._texts(one, [], outer, seen) for one in given])
            case ast.JoinedStr(values):
                inner = [one.value if isinstance(one, ast.FormattedValue) else one for one in values]
                return self._joined([""] * (len(inner) + 1), [self._texts(one, [], [], seen) for one in inner])
            case ast.IfExp(body=one, orelse=other):
                return self._texts(one, given, outer, seen) | self._texts(other, given, outer, seen)
            case ast.Call(func, [argument]) if _called(func) == "printable":
                return self._texts(argument, given, outer, seen)
            case ast.Name(name):
                return self._named(name, outer, seen) or {"{}"}
        return {"{}"}

    def _named(self, name: str, outer: list[ast.AST], seen: tuple[str, ...]) -> set[str]:
        """Return the texts that a variable or parameter is given."""
        function = next((one for one in reversed(outer) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)), None)
        known = f"{getattr(function, 'name', '')} {name}"
        if function is None or known in seen:
            return set()
        seen = (*seen, known)
        found: set[str] = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets):
                found |= self._texts(node.value, [], outer, seen)
        parameters = [one.arg for one in function.args.args if one.arg not in ("self", "cls")]
        if name in parameters:
            for call, around in self._calls[function.name]:
                if parameters.index(name) < len(call.args) and self._home[around[0]] == self._home[outer[0]]:
                    found |= self._texts(call.args[parameters.index(name)], [], around, seen)
        return {text for text in found if re.search(r"[a-z]{3}", text)}

    @staticmethod
    def _joined(pieces: list[str], values: list[set[str]]) -> set[str]:
        """Return a text's pieces with each combination of the values between them."""
        found = {pieces[0]}
        for number, piece in enumerate(pieces[1:]):
            between = values[number] if number < len(values) else {"{}"}
            found = {f"{text}{value}{piece}" for text in found for value in between}
        return found


def _variables(text: ast.expr, given: list[ast.expr]) -> str:
    """Return the expressions of what varies."""
    inside = (
        [one.value for one in text.values if isinstance(one, ast.FormattedValue)] if isinstance(text, ast.JoinedStr) else [text]
    )
    return ", ".join(map(ast.unparse, given or inside))


def _calls(node: ast.AST, outer: list[ast.AST]) -> Iterator[tuple[ast.Call, list[ast.AST]]]:
    """Yield each call, with what it stands in."""
    for child in ast.iter_child_nodes(node):
        inner = [*outer, child]
        if isinstance(child, ast.Call):
            yield child, inner
        yield from _calls(child, inner)


def _called(function: ast.expr) -> str:
    """Return the dotted name of what is called."""
    return ast.unparse(function) if isinstance(function, ast.Name | ast.Attribute) else ""


def _message(call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """Yield the level and the text of a call that logs, if that may be from WARNING on."""
    name = _called(call.func)
    if not call.args:
        return
    if name.endswith(EMITTERS):
        yield "warning", call.args[0]
    if name in ERRORS:
        yield f"exit code {ERRORS[name]}", call.args[0]
    owner, _, method = name.rpartition(".")
    if method in LEVELS and re.search(r"(^|\.|_)log(ger)?$|getLogger\(.*\)$", owner):
        yield {"exception": "error"}.get(method, method), call.args[0]
    elif ((method == "log" and owner.endswith(("log", "logger"))) or name in ("Log", "messages.Log")) and len(call.args) > 1:
        named = re.findall(r"\b[A-Z]{4,}\b", ast.unparse(call.args[0]))
        levels = [one.lower() for one in named if one not in TOO_LOW]
        if levels or not named:
            yield " or ".join(levels) or "any level", call.args[1]


def entries() -> list[Entry]:
    """Return the explanations."""
    parts = tomllib.loads(ENTRIES.read_text())
    return [Entry(part, **fields) for part, found in parts.items() for fields in found]


def unexplained(lines: list[Line], known: list[Entry]) -> str:
    """Return what to write into `incidents.toml` for the lines that it does not explain."""
    keys, missing = {one.key for one in known}, {}
    for line in lines:
        if line.key not in keys:
            missing[line.key] = line
    return "\n".join(_blank(line) for line in missing.values())


def _blank(line: Line) -> str:
    at = f"\nat = {json.dumps(line.place)}" if line.key == line.place else ""
    where = f"# {line.place.partition(':')[0]}, line {line.number}: {line.level}"
    return f'{where}\n[["PART"]]\nline = {json.dumps(line.text)}{at}\nmeans = ""\ndo = ""\n'


def superfluous(code: Code, known: list[Entry]) -> list[str]:
    """Return the explained lines that the code does not write any more."""
    keys, texts = {line.key for line in code.lines()}, code.texts()
    return [one.line for one in known if not (_quoted(one, texts) if one.at else one.key in keys)]


def _quoted(entry: Entry, texts: str) -> bool:
    """Whether the words of a line that is put together elsewhere stand in the code."""
    return all(words.strip(" :") in texts for words in re.split(r"\{[^{}]*\}", entry.line))


def page(package: Path) -> str:
    """Return the explanations in Markdown, under a heading for each part, in the order of their words."""
    levels: defaultdict[str, set[str]] = defaultdict(set)
    for line in Code(package).lines():
        levels[line.key].add(line.level)
    parts: dict[str, list[Entry]] = {}
    for one in entries():
        parts.setdefault(one.part, []).append(one)
    return "\n\n".join(
        f"## {part}\n\n" + "\n\n".join(_section(one, levels[one.key]) for one in sorted(found, key=_order))
        for part, found in parts.items()
    )


def _order(entry: Entry) -> str:
    return re.sub(r"\{[^{}]*\}|[^a-z ]", "", entry.line.lower()).strip() or "~"


def _section(entry: Entry, levels: set[str]) -> str:
    shown, quote = re.sub(r"\{([^{}]*)\}", r"<\1>", entry.line), "``" if "`" in entry.line else "`"
    said = " or ".join(level.upper() for level in LEVELS if level in levels)
    said = said or ("WARNING" if "any level" in levels else "ERROR")  # the latter is put together from texts of other modules
    start = "" if any(level.startswith("exit") for level in levels) else f"{said}. "
    return f"### {quote}{shown}{quote}\n\n{start}{entry.means}\n\n**What to do:** {entry.do}"
