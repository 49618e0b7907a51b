"""Where what blocks on a disk is done: in a thread, one call after the other.

A disk may hang for ever, and the call with it. The thread is a daemon, so the process can end
without it: a pool of the standard library would be joined at the exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Worker(Protocol):
    """Runs what blocks, one call after the other."""

    async def run(self, action: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        """What `action` returns or raises. Who does not wait any longer leaves it to its fate."""

    def close(self, last: Callable[[], None] | None = None) -> None:
        """No more calls but `last`, for which nobody waits."""


class _Call(NamedTuple):
    """Something to be done, and who waits for it."""

    action: Callable[..., Any]
    arguments: tuple[object, ...]
    loop: asyncio.AbstractEventLoop
    outcome: asyncio.Future[Any]

    def answer(self) -> None:
        """Do it, in the thread, and tell the loop."""
        try:
            result, error = self.action(*self.arguments), None
        except Exception as failure:  # noqa: BLE001 - it is raised where it is waited for.
            result, error = None, failure
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits.
            self.loop.call_soon_threadsafe(self.tell, result, error)

    def tell(self, result: object, error: Exception | None) -> None:
        """In the loop."""
        if self.outcome.done():
            return
        if error is None:
            self.outcome.set_result(result)
        else:
            self.outcome.set_exception(error)


class ThreadWorker:
    """A thread of its own."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._last: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._serve, name=f"queue {name}", daemon=True)

    async def run(self, action: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        """What `action` returns or raises."""
        if self._thread.ident is None:
            self._thread.start()
        loop = asyncio.get_running_loop()
        call = _Call(action, arguments, loop, loop.create_future())
        self._calls.put(call)
        return await call.outcome

    def close(self, last: Callable[[], None] | None = None) -> None:
        """End the thread when it has done what it was given, and `last`."""
        self._last = last
        self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call.answer()
            del call  # It holds what was written.
        if self._last is not None:
            self._last()
