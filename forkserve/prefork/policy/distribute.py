"""Distribute: calls a command once for each of many items, each time in the first idle worker. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from forkserve.base.errors import CommandError
from forkserve.prefork.ipc.pending import JSON, Pending, Reply


def distribute(ask: Callable[[JSON], Pending], items: Sequence[JSON], width: int, retries: int) -> Pending:
    """Call the command for every item, `width` of them at a time. The value is the list of replies, in the order of the items.

    An item whose worker dies is tried again, at most `retries` times. An error of one item, raised or not, ends all.
    """
    whole = Pending()
    todo = deque((index, item, retries) for index, item in enumerate(items))
    replies: list[Reply | None] = [None] * len(items)
    missing = len(items)

    def go_on() -> None:
        if not todo or whole.done:
            return
        index, item, left = todo.popleft()

        def ended(call: Pending) -> None:
            nonlocal missing
            if call.error is not None:
                whole.fail(call.error)
                return
            (reply,) = call.value
            if reply.status == "died" and left:
                todo.appendleft((index, item, left - 1))
            else:
                replies[index] = reply
                missing -= 1
            if missing:
                go_on()
            else:
                whole.resolve(replies)

        try:
            ask(item).finally_(ended)
        except CommandError as error:
            whole.fail(error)

    for _ in range(min(width, len(items))):
        go_on()
    if not items:
        whole.resolve([])
    return whole
