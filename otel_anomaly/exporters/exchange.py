"""From the exporters of one configuration to those of another, without losing what is held.

    same section          untouched: queue, connection, everything
    other limits          the queue goes by them from now on
    other destination     a new exporter opens beside the old one; then the queue sends through it
    new                   exporter and queue start, then get their share
    gone                  gets nothing more, delivers what it holds up to the drain timeout

All that can fail is done first and is undone when anything fails; what is left cannot fail and is
done between two requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_anomaly.config import SECOND_NS
from otel_anomaly.exporters.fanout import Fanout
from otel_anomaly.exporters.registry import Line, Makers, files_of, likeness, stored

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    from otel_anomaly.config import Config


class Exchange:
    """All exporters of the service, through all of its configurations."""

    def __init__(self, config: Config, makers: Makers) -> None:
        """Build those of the first one. Raises ValueError naming one that cannot be."""
        self._makers = makers
        self._lines = {name: makers.line(name, config) for name in config.exporters}
        self._left: dict[str, Line] = {}
        queues = [line.queue for line in self._lines.values()]
        self.fanout = Fanout(queues, config.ack, config.ack_timeout)

    async def prepare(self, config: Config, undo: AsyncExitStack) -> Callable[[], None]:
        """Start what is new; `undo` stops it again. Returns what goes over to it.

        Raises OSError or ValueError naming the exporter that cannot be.
        """
        self._left = {
            name: line for name, line in self._left.items() if self.fanout.is_leaving(name)
        }
        self._check_files(config)
        self._check_storage(config)
        lines: dict[str, Line] = {}
        swapped: list[Line] = []
        for name in config.exporters:
            line = self._lines.get(name)
            if line is None:
                await self.fanout.gone(name)
                line = self._makers.line(name, config)
                await line.queue.start()
                undo.push_async_callback(line.queue.stop, 0)
            elif line.likeness != (alike := likeness(name, config)):
                await self._open_next(name, line, config, undo)
                files = files_of(name, config)
                line = line._replace(likeness=alike, files=files)
                swapped.append(line)
            lines[name] = line
        return lambda: self._commit(lines, swapped, config)

    async def _open_next(self, name: str, line: Line, config: Config, undo: AsyncExitStack) -> None:
        exporter = self._makers.exporter(name, config)
        try:
            await line.exporter.try_next(exporter)
        except (OSError, ValueError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"exporters.{name}: {error}") from error
        undo.push_async_callback(line.exporter.forget)

    def _check_storage(self, config: Config) -> None:
        """What a queue holds cannot move from memory to disk, nor from one directory to another."""
        for name, line in self._lines.items():
            if name in config.exporters and stored(name, config) != line.stored:
                raise ValueError(
                    f"exporters.{name}.sending_queue: storage, directory and fsync cannot change"
                    " at run time: needs a restart"
                )

    def _check_files(self, config: Config) -> None:
        """Two exporters on one file would cut off what the other is writing."""
        for name in config.exporters:
            for other, line in (*self._left.items(), *self._lines.items()):
                if other != name and files_of(name, config) & line.files:
                    raise ValueError(
                        f"exporters.{name}: its file is written by exporters.{other} until now:"
                        " needs two reloads, or a restart"
                    )

    def _commit(self, lines: dict[str, Line], swapped: list[Line], config: Config) -> None:
        telemetry = self._makers.telemetry
        for line in swapped:
            line.exporter.adopt()
        for name, line in lines.items():
            if line.section != config.exporters[name]:
                line.queue.retune(config.exporters[name])
                lines[name] = line._replace(section=config.exporters[name])
        queues = [line.queue for line in lines.values()]
        self.fanout.arrange(queues, config.ack, config.ack_timeout)
        for name in lines.keys() - self._lines.keys():
            telemetry.exporter_joins(name)
        for name in self._lines.keys() - lines.keys():
            telemetry.exporter_leaves(name)
            timeout_s = config.service.drain_timeout / SECOND_NS
            self._left[name] = self._lines[name]
            self.fanout.retire(self._lines[name].queue, timeout_s)
        self._lines = lines
