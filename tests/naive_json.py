"""The slow twin of `otel_anomaly.otlp.json`: Python's own JSON reader and the protobuf classes.

What both accept, and what comes out, is the same to the byte where one line or one serialised
message is the only right answer; the texts of refusals are not compared.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from json.encoder import encode_basestring as _quoted
from math import inf, isfinite, nan
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.handoff import Signal
from tests import naive
from tests.surrogates import without_halves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEPTH_MAX = 100
"""Messages inside one another, the request being the first. The protobuf library's limit."""

PATH_LENGTH_MAX = 256
"""Of the path in an error, which goes back to a client."""

REQUEST_OF: Final[dict[Signal, type[Message]]] = {
    Signal.TRACES: ExportTraceServiceRequest,
    Signal.METRICS: ExportMetricsServiceRequest,
    Signal.LOGS: ExportLogsServiceRequest,
}
assert set(REQUEST_OF) == set(Signal), "every signal has its request"


def encode(body: bytes, signal: Signal) -> bytes:
    """An encoded request as one line of OTLP/JSON, UTF-8, without a newline.

    Raises ValueError when `body` is not such a request.
    """
    kind = REQUEST_OF[signal]
    if not naive.accepts(body, kind):
        raise ValueError(
            f"not an {kind.__name__}: broken protobuf, invalid UTF-8 or nested too deep"
        )
    return _CODECS[kind.DESCRIPTOR.full_name].write(kind.FromString(body)).encode()


def decode(line: bytes, signal: Signal) -> bytes:
    """One OTLP/JSON request as protobuf bytes.

    Raises ValueError when `line` is not JSON in UTF-8 or a value does not fit its field.
    """
    try:
        value = json.loads(without_halves(line.decode()), object_pairs_hook=_Members)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.start}") from None
    except RecursionError:
        raise ValueError("$: nested too deep") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    message = REQUEST_OF[signal]()
    try:
        _CODECS[message.DESCRIPTOR.full_name].read(message, value, 1)
    except _MisfitError as misfit:
        path = "$" + "".join(reversed(misfit.path))
        raise ValueError(f"{path[:PATH_LENGTH_MAX]}: {misfit.what}") from None
    return message.SerializeToString()


class _Members(list[tuple[str, object]]):
    """An object as it was written, members that come twice included."""


class _MisfitError(Exception):
    """A JSON value does not fit its field. Collects its path, innermost first, on the way out."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.path: list[str] = []


_F = FieldDescriptor
_ID_FIELDS = frozenset({"trace_id", "span_id", "parent_span_id"})
_FLOATS = frozenset({_F.TYPE_DOUBLE, _F.TYPE_FLOAT})
_SIGNED_64 = frozenset({_F.TYPE_INT64, _F.TYPE_SINT64, _F.TYPE_SFIXED64})
_UNSIGNED_64 = frozenset({_F.TYPE_UINT64, _F.TYPE_FIXED64})
_UNSIGNED_32 = frozenset({_F.TYPE_UINT32, _F.TYPE_FIXED32})

_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")
_DECIMAL = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_BASE64_URL = str.maketrans("-_", "+/")
_SPECIAL_FLOATS = {"NaN": nan, "Infinity": inf, "-Infinity": -inf}


def _is_repeated(field: FieldDescriptor) -> bool:
    """`label` is gone from new protobuf versions, `is_repeated` is not in old ones."""
    known = getattr(field, "is_repeated", None)
    return getattr(field, "label", None) == _F.LABEL_REPEATED if known is None else bool(known)


def _write_float(value: float) -> str:
    if isfinite(value):
        return repr(value)
    return '"NaN"' if value != value else '"Infinity"' if value > 0 else '"-Infinity"'  # noqa: PLR0124


def _scalar_writer(field: FieldDescriptor) -> Callable[[Any], str]:
    if field.type == _F.TYPE_STRING:
        return _quoted
    if field.type == _F.TYPE_BYTES and field.name in _ID_FIELDS:
        return lambda value: f'"{value.hex()}"'
    if field.type == _F.TYPE_BYTES:
        return lambda value: f'"{b64encode(value).decode()}"'
    if field.type == _F.TYPE_BOOL:
        return lambda value: "true" if value else "false"
    if field.type in _FLOATS:
        return _write_float
    if field.type in _SIGNED_64 | _UNSIGNED_64:
        return lambda value: f'"{value}"'
    return str


def _read_string(value: object) -> str:
    if not isinstance(value, str):
        raise _MisfitError("must be a string")
    return value


def _read_id(value: object) -> bytes:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise _MisfitError("must be a string of hex digits, an even number of them")
    return bytes.fromhex(value)


def _read_base64(value: object) -> bytes:
    if not isinstance(value, str):
        raise _MisfitError("must be a string in base64")
    digits = value.translate(_BASE64_URL).rstrip("=")
    try:
        return b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        raise _MisfitError("must be a string in base64") from None


def _read_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise _MisfitError("must be true or false")
    return value


def _read_float(value: object) -> float:
    if isinstance(value, str):
        if value in _SPECIAL_FLOATS:
            return _SPECIAL_FLOATS[value]
        value = float(value) if _NUMBER.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _MisfitError("must be a number, or NaN, Infinity or -Infinity as a string")
    try:
        return float(value)
    except OverflowError:
        raise _MisfitError("out of range for a double") from None


def _integer_reader(low: int, high: int, names: dict[str, int]) -> Callable[[object], int]:
    """Reads whole numbers from `low` to `high`, also in decimal strings, also by name."""

    def read(value: object) -> int:
        if isinstance(value, str):
            found = int(value) if _DECIMAL.fullmatch(value) else names.get(value)
        elif isinstance(value, float):
            found = int(value) if value.is_integer() else None
        else:
            found = value if isinstance(value, int) and not isinstance(value, bool) else None
        if found is None:
            raise _MisfitError("must be a whole number, or one in a string")
        if not low <= found <= high:
            raise _MisfitError(f"must be a whole number from {low} to {high}")
        return found

    return read


def _scalar_reader(field: FieldDescriptor) -> Callable[[object], Any]:
    if field.type == _F.TYPE_STRING:
        return _read_string
    if field.type == _F.TYPE_BYTES:
        return _read_id if field.name in _ID_FIELDS else _read_base64
    if field.type == _F.TYPE_BOOL:
        return _read_bool
    if field.type in _FLOATS:
        return _read_float
    if field.type in _SIGNED_64:
        return _integer_reader(-(1 << 63), (1 << 63) - 1, {})
    if field.type in _UNSIGNED_64:
        return _integer_reader(0, (1 << 64) - 1, {})
    if field.type in _UNSIGNED_32:
        return _integer_reader(0, (1 << 32) - 1, {})
    names = (
        {value.name: value.number for value in field.enum_type.values} if field.enum_type else {}
    )
    return _integer_reader(-(1 << 31), (1 << 31) - 1, names)


_Store: TypeAlias = "Callable[[Message, object, int], None]"
"""Puts a JSON value into a message's field, at that message's depth."""


def _each(value: object) -> Iterator[tuple[int, object]]:
    if not isinstance(value, list) or isinstance(value, _Members):
        raise _MisfitError("must be a list")
    return enumerate(value)


def _scalar_store(field: FieldDescriptor) -> _Store:
    name, read = field.name, _scalar_reader(field)

    def store(message: Message, value: object, _depth: int) -> None:
        setattr(message, name, read(value))

    def store_each(message: Message, value: object, _depth: int) -> None:
        container = getattr(message, name)
        for index, item in _each(value):
            try:
                container.append(read(item))
            except _MisfitError as misfit:
                misfit.path.append(f"[{index}]")
                raise

    return store_each if _is_repeated(field) else store


def _child_store(field: FieldDescriptor, codec: _Codec) -> _Store:
    name = field.name

    def store(message: Message, value: object, depth: int) -> None:
        child = getattr(message, name)
        child.SetInParent()  # An empty object is there, too.
        codec.read(child, value, depth + 1)

    def store_each(message: Message, value: object, depth: int) -> None:
        container = getattr(message, name)
        for index, item in _each(value):
            try:
                codec.read(container.add(), _Members() if item is None else item, depth + 1)
            except _MisfitError as misfit:
                misfit.path.append(f"[{index}]")
                raise

    return store_each if _is_repeated(field) else store


class _Codec:
    """How messages of one type are written and read."""

    def __init__(self) -> None:
        self._writers: dict[FieldDescriptor, tuple[str, Callable[[Any], str]]] = {}
        self._stores: dict[str, _Store] = {}
        self._names: dict[str, str] = {}

    def add_field(self, field: FieldDescriptor, child: _Codec | None) -> None:
        """Learn one field; `child` is the codec of its message type."""
        write = child.write if child else _scalar_writer(field)
        if _is_repeated(field):
            write = _list_writer(write)
        self._writers[field] = (f'"{field.json_name}":', write)
        store = _child_store(field, child) if child else _scalar_store(field)
        self._stores[field.name] = self._stores[field.json_name] = store
        self._names[field.name] = self._names[field.json_name] = field.name

    def write(self, message: Message) -> str:
        """The message as a JSON object: what is set, in the order of field numbers."""
        writers = self._writers
        parts = []
        for field, value in message.ListFields():
            name, write = writers[field]
            parts.append(name + write(value))
        return "{" + ",".join(parts) + "}"

    def read(self, message: Message, value: object, depth: int) -> None:
        """Fill the message from a JSON value."""
        if depth > DEPTH_MAX:
            raise _MisfitError(f"nested more than {DEPTH_MAX} messages deep")
        if not isinstance(value, _Members):
            raise _MisfitError("must be an object")
        stores = self._stores
        for key, part in value:
            store = stores.get(key)
            if store is None or part is None:
                continue
            name = self._names[key]
            try:
                message.ClearField(name)  # The last counts alone: nothing is merged.
                store(message, part, depth)
            except _MisfitError as misfit:
                misfit.path.append("." + key)
                raise


def _list_writer(write: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda values: "[" + ",".join([write(value) for value in values]) + "]"


def _compile(descriptor: Descriptor, codecs: dict[str, _Codec]) -> _Codec:
    """The codec of a message type, those of the types inside it made on the way."""
    if descriptor.full_name in codecs:
        return codecs[descriptor.full_name]
    codec = _Codec()
    codecs[descriptor.full_name] = codec
    for field in descriptor.fields:
        codec.add_field(field, _compile(field.message_type, codecs) if field.message_type else None)
    return codec


def _compile_all() -> dict[str, _Codec]:
    codecs: dict[str, _Codec] = {}
    for kind in REQUEST_OF.values():
        _compile(kind.DESCRIPTOR, codecs)  # type: ignore[arg-type]  # Stubs give it two types.
    return codecs


_CODECS: Final = _compile_all()
