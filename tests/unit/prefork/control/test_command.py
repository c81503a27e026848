"""The commands of a class: what is declared on its methods, and how they are run by name."""

from __future__ import annotations

from typing import Any

import pytest

from forkserve.base.errors import CommandError
from forkserve.prefork.control.command import Command, command, commands_of, execute, for_signals, run_refusal_hook, signals_of
from forkserve.prefork.ipc.pending import CALL_TIMEOUT, Pending

HUP, INT, TERM = 1, 2, 15


class Base:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    @for_signals(TERM, INT)
    @command("Stop the server.")
    def stop_all(self) -> str:
        self.calls.append(("stop_all",))
        return "stopped"

    @command("Replace one worker.", usage="WORKER [WHY]", timeout=None, repeatable=True)
    def replace(self, worker: str, why: str = "") -> Pending:
        self.calls.append(("replace", worker, why))
        return Pending()

    def no_command(self) -> None:
        raise AssertionError


class Shop(Base):
    @for_signals(HUP)
    def reopen(self) -> None:
        self.calls.append(("reopen",))

    @command("Run a command of the workers.", usage="NAME", timeout=2.0, targets=True)
    def call(self, name: str, *, to: str | int = "all", timeout: float | None = None, keywords: Any = None) -> str:
        self.calls.append(("call", name, to, timeout))
        return name

    def on_call(self, *args: object, **options: object) -> None:
        raise AssertionError

    def on_stop_all(self) -> None:
        self.calls.append(("on_stop_all",))

    def on_replace(self, worker: str, why: str = "") -> None:
        if worker == "1":
            raise ValueError("the first one stays")
        if worker == "2":
            raise KeyError


def refusal(shop: Shop, name: str, *args: str) -> CommandError:
    with pytest.raises(CommandError) as found:
        execute(shop, name, args)
    return found.value


def test_what_a_class_declares_in_the_order_of_definition() -> None:
    assert list(commands_of(Shop).items()) == [
        ("stop-all", Command("stop-all", "Stop the server.")),
        ("replace", Command("replace", "Replace one worker.", "WORKER [WHY]", None, repeatable=True)),
        ("call", Command("call", "Run a command of the workers.", "NAME", 2.0, targets=True)),
    ]
    assert signals_of(Shop) == {TERM: "stop_all", INT: "stop_all", HUP: "reopen"}
    assert "call" not in commands_of(Base)


def test_what_a_client_needs_to_offer_a_command() -> None:
    assert commands_of(Shop)["stop-all"].describe() == {
        "name": "stop-all",
        "usage": "",
        "help": "Stop the server.",
        "timeout": CALL_TIMEOUT,
        "targets": False,
        "destructive": False,
    }


def test_a_value_is_a_command_that_is_done_and_another_may_be_under_way() -> None:
    shop = Shop()
    stopped = execute(shop, "stop-all", [])
    assert (stopped.done, stopped.value) == (True, "stopped")
    assert not execute(shop, "replace", ["3", "slow"]).done

    assert shop.calls == [("on_stop_all",), ("stop_all",), ("replace", "3", "slow")]


def test_only_a_command_with_targets_gets_them_and_no_hook_refuses_it() -> None:
    shop = Shop()
    execute(shop, "call", ["ping"], to=2, timeout=1.5)
    execute(shop, "stop-all", [], to=2, timeout=1.5)

    assert shop.calls == [("call", "ping", 2, 1.5), ("on_stop_all",), ("stop_all",)]


@pytest.mark.parametrize(
    ("name", "args", "code", "message"),
    [
        ("stop-al", [], "unknown", "there is no command 'stop-al' (did you mean 'stop-all'?)"),
        ("no-command", [], "unknown", "there is no command 'no-command'"),
        ("reopen", [], "unknown", "there is no command 'reopen'"),
        ("stop_all", [], "unknown", "there is no command 'stop_all' (did you mean 'stop-all'?)"),
        ("replace", [], "usage", "usage: replace WORKER [WHY]"),
        ("replace", ["3", "slow", "x"], "usage", "usage: replace WORKER [WHY]"),
        ("stop-all", ["x"], "usage", "usage: stop-all"),
        ("replace", ["1"], "refused", "replace was refused: the first one stays"),
        ("replace", ["2"], "refused", "replace was refused: KeyError"),
    ],
)
def test_what_is_refused_is_not_run(name: str, args: list[str], code: str, message: str) -> None:
    shop = Shop()
    error = refusal(shop, name, *args)

    assert (error.code, str(error)) == (code, message)
    assert shop.calls == []


def test_a_method_that_is_called_by_the_program_may_be_refused_too() -> None:
    shop = Shop()
    with pytest.raises(CommandError, match="the first one stays") as found:
        shop.replace("1")
    assert isinstance(found.value.__cause__, ValueError)
    run_refusal_hook(shop, "ping", ("any",), {})  # nothing may refuse it
