"""grpc.health.v1 at the gRPC door, which anybody may ask: nobody needs a credential to do so.

The stock servicer gets a message when it is whole. Until then grpcio would let every stream fill up
to the limit of a request, beside all bounds of `grpc_bodies`, and a watcher's message would be kept
as long as it watches. So messages are read here as those of an Export are, one that is no name is
refused, and only so many may watch at once. A check is answered when it is read, so it needs no
room beside the watches: when strangers have all of them, probes still hear how the service is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from otel_anomaly.receivers.status import GRPC_STATUS
from otel_anomaly.receivers.unfinished import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_anomaly.receivers.grpc_bodies import GrpcBodies

SERVICE: Final = "grpc.health.v1.Health"
MESSAGE_BYTES_MAX: Final = 1024
"""For the name of a service; ours have 60."""
WATCHES_MAX: Final = 4096
WATCHES_OF_CLIENT_MAX: Final = 256
"""At once, of all and of one client: each holds a stream and a task, and none ends by itself."""
WATCHERS_TOLD_S: Final = 0.05
"""For the last NOT_SERVING to go out to those who watch; a watch never ends by itself."""

_STATUS: Final = health_pb2.HealthCheckResponse


class Health:
    """What health checks are told: the same for the whole server and for each of its services."""

    def __init__(self, names: Iterable[str], bodies: GrpcBodies) -> None:
        """`names` are the services there are; others are unknown."""
        self._names = frozenset(names)
        self._bodies = bodies
        self._is_serving = False
        self._news = asyncio.Event()
        self._watching: Counter[str] = Counter()
        self._watchers: set[asyncio.Task[None]] = set()

    def handler(self) -> Any:  # noqa: ANN401 - grpcio has no types.
        """For a server. On the wire a stream of requests with one in it is a single request."""
        methods = {
            "Check": grpc.stream_unary_rpc_method_handler(self._check),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def set_serving(self, *, serving: bool) -> None:
        """Tell it from now on, and those who watch at once."""
        self._is_serving = serving
        self._news.set()
        self._news = asyncio.Event()

    async def close(self) -> None:
        """End the watches, after they have been told that the service is going.

        A watch lasts as long as its client likes, so one load balancer that watches would hold
        every stop for the whole grace time.
        """
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=WATCHERS_TOLD_S)
        for watcher in self._watchers:
            watcher.cancel()

    async def _check(self, _stream: object, context: Any) -> bytes:  # noqa: ANN401 - no types.
        name = await self._name(context)
        if name is None:
            return b""
        if name not in self._names:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return b""
        return self._answer(name)

    async def _watch(self, _stream: object, context: Any) -> None:  # noqa: ANN401 - no types.
        client = self._enter(context)
        if client is None:
            return
        try:
            name = await self._name(context)
            if name is not None:
                await self._tell(name, context)
        finally:
            self._leave(client)

    async def _tell(self, name: str, context: Any) -> None:  # noqa: ANN401 - no types.
        """In a task of its own, which `close` can end as if the watch were over."""
        watcher = asyncio.create_task(self._tell_forever(name, context))
        self._watchers.add(watcher)
        try:
            await asyncio.wait({watcher})
            if not watcher.cancelled():
                watcher.result()
        finally:
            watcher.cancel()
            self._watchers.discard(watcher)

    async def _tell_forever(self, name: str, context: Any) -> None:  # noqa: ANN401 - no types.
        told = b""
        while True:
            news, answer = self._news, self._answer(name)
            if answer != told:
                await context.write(answer)
                told = answer
            await news.wait()

    def _answer(self, name: str) -> bytes:
        status = _STATUS.SERVING if self._is_serving else _STATUS.NOT_SERVING
        known = status if name in self._names else _STATUS.SERVICE_UNKNOWN
        answer: bytes = _STATUS(status=known).SerializeToString()
        return answer

    def _enter(self, context: Any) -> str | None:  # noqa: ANN401 - grpcio has no types.
        """Who watches; None when too many do already, and then it has been told so."""
        client: str = self._bodies.peer(context.peer()).client
        watching = self._watching
        if watching[client] >= WATCHES_OF_CLIENT_MAX or watching.total() >= WATCHES_MAX:
            context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
            context.set_details("too many watches at once")
            return None
        watching[client] += 1
        return client

    def _leave(self, client: str) -> None:
        self._watching[client] -= 1
        if not self._watching[client]:
            del self._watching[client]

    async def _name(self, context: Any) -> str | None:  # noqa: ANN401 - grpcio has no types.
        """The service that is asked for; None when it is no name, and then it has been told so."""
        try:
            message = await self._bodies.read(context, self._bodies.peer(context.peer()))
        except Refused as refusal:
            context.set_code(GRPC_STATUS[refusal.reply.outcome])
            context.set_details(refusal.reply.message)
            return None
        name = _named_in(message)
        if name is None:
            context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
            context.set_details("not a HealthCheckRequest")
        return name


def _named_in(message: bytes) -> str | None:
    """The service a message asks for; None for what is no HealthCheckRequest, or far too long."""
    if len(message) > MESSAGE_BYTES_MAX:
        return None
    try:
        return str(health_pb2.HealthCheckRequest.FromString(message).service)
    except DecodeError:
        return None  # Its client is told, and nobody else has to know.
