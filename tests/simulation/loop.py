"""Virtual time for code that also hands work to threads: the work is done in turn, a little later.

A thread would run at a pace of its own, so no two plays of a seed would be the same. Here it is a
step like any other: it begins after a delay that the seed draws, and nothing else moves meanwhile.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from tests.virtual_time import VirtualLoop

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine

Result = TypeVar("Result")

DELAYS_S = (0.0, 0.0, 0.002, 0.05, 0.7)


class SimulatedLoop(VirtualLoop):
    """Virtual time, one thread, all chance from one seed."""

    def __init__(self, rng: random.Random, now_s: float) -> None:
        super().__init__()
        self._rng, self._now_s = rng, now_s

    def run_in_executor(  # type: ignore[override]  # Any will do: nothing here is typed by it.
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """The function, after a moment; `asyncio.to_thread` comes through here."""
        done: asyncio.Future[Any] = self.create_future()

        def step() -> None:
            try:
                result = func(*args)
            except BaseException as error:  # noqa: BLE001 - as an executor hands it over.
                if not done.cancelled():
                    done.set_exception(error)
            else:
                if not done.cancelled():
                    done.set_result(result)

        self.call_later(self._rng.choice(DELAYS_S), step)
        return done


def play(main: Coroutine[Any, Any, Result], rng: random.Random, now_s: float) -> Result:
    """`asyncio.run` in simulated time, from `now_s` on. What still runs at the end is cancelled."""
    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(rng, now_s)) as runner:
        return runner.run(main)
