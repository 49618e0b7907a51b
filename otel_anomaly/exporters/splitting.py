"""Cuts a request that is larger than the next hop takes, and sends the pieces.

The three signals have the same frame, so one cut serves all; "span" means a log record or a metric
as well:

    request -- 1: ResourceSpans -- 2: ScopeSpans -- 2: Span
                 |  the rest         |  the rest      copied byte for byte, never looked into
                 '- repeated in every piece that holds one of its spans

A piece is filled span by span while it stays under the limit. What cannot travel is told, never
sent: a span that does not fit a piece alone, and those below a resource or scope that takes more
than half of a piece. The latter would let a client have its one large resource sent along with
each of many small spans; so all pieces together are at most four times the request.

Retry: what was delivered of a request is remembered by its digest, so the next attempt begins
behind it. Whoever sends nothing (cut short by a crash, given up) leaves an entry that the next
ones push out; a duplicate is the worst that can follow, and OTLP allows it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_anomaly.config import OtlpGrpcExporterConfig, OtlpHttpExporterConfig
from otel_anomaly.exporters.contract import Kind, SendResult, too_large
from otel_anomaly.handoff import Signal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_anomaly.config import ExporterConfig
    from otel_anomaly.exporters.contract import Exporter

JSON_GROWTH: Final = 4
"""How much longer JSON may be than protobuf, for where to cut: twice is usual. What grows more is
measured when it is written, and dropped as too large."""
NEVER: Final = 1 << 62
CHILDREN_OF_REQUEST: Final = 1
CHILDREN: Final = 2
"""Field of the scopes in a resource's block, and of the spans in a scope's."""
HEAD_BYTES_MAX: Final = 6
"""Tag and length before a block; a length is under 2 GiB."""
REMEMBERED_MAX: Final = 128
"""Requests under way that were sent in part: twice the most consumers an exporter can have."""
INLINE_BYTES_MAX: Final = 256 << 10
"""Cut in the loop up to here, in some milliseconds; beyond, in a thread."""
GROUPS_MAX: Final = 100
"""Nested groups; the scan refuses deeper ones."""
MORE, VARINT_BITS_MAX = 128, 70
"""The bit of a byte that says that the number goes on, and the most bits of ten bytes."""
VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)


def cut_over(section: ExporterConfig) -> int:
    """Bytes of protobuf over which an exporter cuts a request."""
    match section:
        case OtlpGrpcExporterConfig():
            return section.max_request_size
        case OtlpHttpExporterConfig():
            share = JSON_GROWTH if section.encoding == "json" else 1
            return section.max_request_size // share
        case _:
            return NEVER


class UncuttableError(ValueError):
    """The bytes are not framed as a request."""


class Cut(NamedTuple):
    """A request in pieces."""

    pieces: list[tuple[bytes, int]]
    """Each with the spans in it."""
    lost: int
    """Spans that fit no piece."""


def cut(body: bytes, limit: int) -> Cut:
    """Pieces of at most `limit` bytes, in the order of the request.

    Raises
    ------
    UncuttableError
        It is no request.
    """
    pieces, lost = _Pieces(limit), 0
    for block in _blocks(body):
        resource, scopes = _apart(block)
        for scope_block in scopes:
            scope, spans = _apart(scope_block)
            shared = len(resource) + len(scope) + 2 * HEAD_BYTES_MAX
            for span in spans:
                if 2 * shared > limit or shared + len(span) + HEAD_BYTES_MAX > limit:
                    lost += 1
                else:
                    pieces.add(resource, scope, span)
    return Cut(pieces.all(), lost)


class _Pieces:
    """Fills one piece after the other. `resource` and `scope` are told apart by identity."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._done: list[tuple[bytes, int]] = []
        self._blocks: list[tuple[bytes, list[tuple[bytes, list[bytes]]]]] = []
        self._size = self._count = 0

    def add(self, resource: bytes, scope: bytes, span: bytes) -> None:
        """Put a span into the open piece, or into a new one."""
        if self._size + self._cost(resource, scope, span) > self._limit:
            self._close()
        self._size += self._cost(resource, scope, span)
        self._count += 1
        if not self._blocks or self._blocks[-1][0] is not resource:
            self._blocks.append((resource, []))
        scopes = self._blocks[-1][1]
        if not scopes or scopes[-1][0] is not scope:
            scopes.append((scope, []))
        scopes[-1][1].append(span)

    def all(self) -> list[tuple[bytes, int]]:
        """Every piece, the open one closed."""
        self._close()
        return self._done

    def _cost(self, resource: bytes, scope: bytes, span: bytes) -> int:
        """Bytes by which the open piece grows at most."""
        size = len(span) + HEAD_BYTES_MAX
        if not self._blocks or self._blocks[-1][0] is not resource:
            return size + len(resource) + len(scope) + 2 * HEAD_BYTES_MAX
        if self._blocks[-1][1][-1][0] is not scope:
            return size + len(scope) + HEAD_BYTES_MAX
        return size

    def _close(self) -> None:
        if not self._count:
            return
        body = b"".join(
            _block(CHILDREN_OF_REQUEST, resource, *(_scope(*each) for each in scopes))
            for resource, scopes in self._blocks
        )
        self._done.append((body, self._count))
        self._blocks, self._size, self._count = [], 0, 0


def _scope(scope: bytes, spans: list[bytes]) -> bytes:
    return _block(CHILDREN, scope, *(_block(CHILDREN, span) for span in spans))


def _block(field: int, *parts: bytes) -> bytes:
    """One length-delimited field."""
    size = sum(map(len, parts))
    head = bytearray((field << 3 | BYTES,))
    while size >= MORE:
        head.append(size % MORE | MORE)
        size >>= 7
    head.append(size)
    return b"".join((head, *parts))


def _blocks(body: bytes) -> Iterator[bytes]:
    """The blocks of a request. What else stands beside them is known to nobody: left out."""
    for field, wire, _, at, end in _fields(body):
        if field == CHILDREN_OF_REQUEST and wire == BYTES:
            yield body[at:end]


def _apart(block: bytes) -> tuple[bytes, list[bytes]]:
    """A block without its children, as it stands on the wire, and the children."""
    rest, children = list[bytes](), list[bytes]()
    for field, wire, first, at, end in _fields(block):
        if field == CHILDREN and wire == BYTES:
            children.append(block[at:end])
        else:
            rest.append(block[first:end])
    return b"".join(rest), children


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """(number, wire type, first byte, first byte of the value, end) of every field."""
    at = 0
    while at < len(data):
        first = at
        tag, at = _varint(data, at)
        end = _end(data, at, tag)
        yield tag >> 3, tag & 7, first, _value_at(data, at, tag), end
        at = end


def _value_at(data: bytes, at: int, tag: int) -> int:
    return _varint(data, at)[1] if tag & 7 == BYTES else at


def _end(data: bytes, at: int, tag: int) -> int:
    """Where the value behind a tag ends."""
    wire = tag & 7
    if wire == GROUP:
        return _group_end(data, at)
    if wire == VARINT:
        at = _varint(data, at)[1]
    elif wire == BYTES:
        length, at = _varint(data, at)
        at += length
    elif wire in {FIXED64, FIXED32}:
        at += 8 if wire == FIXED64 else 4
    else:
        raise UncuttableError("a field of no known wire type")
    if at > len(data):
        raise UncuttableError("a field is cut short")
    return at


def _group_end(data: bytes, at: int) -> int:
    """The same for a group, which may hold groups."""
    open_groups = 1
    while open_groups:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == GROUP:
            open_groups += 1
        elif wire == GROUP_END:
            open_groups -= 1
        else:
            at = _end(data, at, tag)
        if open_groups > GROUPS_MAX:
            raise UncuttableError("groups nested too deep")
    return at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, next)."""
    value = shift = 0
    while at < len(data) and shift < VARINT_BITS_MAX:
        byte = data[at]
        at += 1
        value |= byte % MORE << shift
        if byte < MORE:
            return value, at
        shift += 7
    raise UncuttableError("a number is cut short")


class _Progress(NamedTuple):
    """What became of the pieces of a request so far."""

    pieces: int
    """Done with: delivered or given up."""
    rejected: int
    losses: dict[str, int]


class Splitting:
    """An exporter that cuts what is too large for its next hop; all else goes straight through."""

    def __init__(self, exporter: Exporter, limit: int) -> None:
        self.serial = exporter.serial
        self._exporter = exporter
        self._limit = limit
        self._progress: OrderedDict[bytes, _Progress] = OrderedDict()

    async def start(self) -> None:
        """Open the exporter."""
        await self._exporter.start()

    async def close(self) -> None:
        """Close the exporter."""
        await self._exporter.close()

    async def send(self, body: bytes, signal: Signal, items: int) -> SendResult:
        """One attempt: the request, or each of its pieces that was not delivered before."""
        if len(body) <= self._limit:
            return await self._exporter.send(body, signal, items)
        try:
            key, parts = await self._prepare(body)
        except UncuttableError as error:
            return too_large(f"over {self._limit} bytes, and cannot be cut: {error}")
        if not parts.pieces:
            return too_large(f"nothing in it fits {self._limit} bytes")
        start = _Progress(0, 0, {Kind.TOO_LARGE.value: parts.lost} if parts.lost else {})
        progress = self._progress.pop(key, start)
        return await self._send_rest(key, parts, progress, signal)

    async def _prepare(self, body: bytes) -> tuple[bytes, Cut]:
        if len(body) <= INLINE_BYTES_MAX:
            return _prepared(body, self._limit)
        return await asyncio.to_thread(_prepared, body, self._limit)

    async def _send_rest(
        self, key: bytes, parts: Cut, progress: _Progress, signal: Signal
    ) -> SendResult:
        done, rejected, losses = progress.pieces, progress.rejected, dict(progress.losses)
        message = ""
        for piece, count in parts.pieces[done:]:
            items = count if signal is Signal.TRACES else 1
            result = await self._exporter.send(piece, signal, items)
            message = result.message or message
            if result.kind is Kind.RETRY:
                self._remember(key, _Progress(done, rejected, losses))
                return result
            if result.kind is Kind.SENT:
                # From outside: no piece loses less than nothing, nor more than is in it. A metric
                # is many data points; how many is not counted here.
                most = result.rejected if signal is Signal.METRICS else count
                rejected += max(min(result.rejected, most), 0)
            else:
                losses[result.kind.value] = losses.get(result.kind.value, 0) + count
            done += 1
        return _outcome(parts, rejected, losses, message)

    def _remember(self, key: bytes, progress: _Progress) -> None:
        self._progress[key] = progress
        while len(self._progress) > REMEMBERED_MAX:
            self._progress.popitem(last=False)


def _prepared(body: bytes, limit: int) -> tuple[bytes, Cut]:
    return hashlib.blake2b(body, digest_size=16).digest(), cut(body, limit)


def _outcome(parts: Cut, rejected: int, losses: dict[str, int], message: str) -> SendResult:
    """One result for all pieces: sent, when any was."""
    total = parts.lost + sum(count for _, count in parts.pieces)
    if sum(losses.values()) < total:
        return SendResult(Kind.SENT, message, rejected=rejected, losses=tuple(losses.items()))
    worst = Kind.REJECTED if Kind.REJECTED.value in losses else Kind.TOO_LARGE
    return SendResult(worst, message)
