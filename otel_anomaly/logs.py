"""The log of the service: what happened and where in the code, never what was in the data.

The words of an exception may quote what it stumbled over: a key that is missing, a text that cannot
be read. Of a bug that nobody foresaw nobody knows. So a traceback is printed without them: files,
lines and the types of the exceptions.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import TracebackType

_LOG: Final = logging.getLogger("otel_anomaly")
_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"
_CHAIN_MAX: Final = 8


class DiscreetFormatter(logging.Formatter):
    """Prints tracebacks without the words of exceptions."""

    def __init__(self) -> None:
        super().__init__(_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        """As logging does it, but for a traceback that another handler has printed and kept."""
        kept, record.exc_text = record.exc_text, None
        try:
            return super().format(record)
        finally:
            record.exc_text = kept

    def formatException(self, ei: Any) -> str:  # noqa: N802, ANN401 - logging names and types it.
        """Where it happened, and the types of what was raised, the first one first."""
        return "\n".join(told(ei[1])) if ei[1] is not None else ""


def told(error: BaseException) -> list[str]:
    """An exception and those it came from, as lines without their words."""
    chain: list[BaseException] = []
    while error not in chain and len(chain) < _CHAIN_MAX:
        chain.append(error)
        error = error.__cause__ or error.__context__ or error
    lines = []
    for each in reversed(chain):
        lines += [*_frames(each.__traceback__), type(each).__qualname__]
    return lines


def _frames(trace: TracebackType | None) -> list[str]:
    """Where the code was; the source line is ours to show, what it worked on is not."""
    return [
        f"  {at.filename}:{at.lineno} {at.name}: {at.line}" for at in traceback.extract_tb(trace)
    ]


def on_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What an event loop calls with an exception that nobody takes.

    asyncio's own handler prints the task with its exception, and that with its words.
    """
    _LOG.error(
        "an event loop met an exception that nobody takes: %s",
        type(context.get("exception")).__name__,
        exc_info=context.get("exception"),
    )


def log_to(stream: Any, level: int = logging.INFO) -> None:  # noqa: ANN401 - as logging has it.
    """Send all logs of the process there."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(DiscreetFormatter())
    logging.basicConfig(level=level, handlers=[handler])
