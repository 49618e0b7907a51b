"""OTLP bytes <-> OTLP/JSON, the form people read and the file exporter writes.

OTLP/JSON is not protobuf's own JSON mapping, so `google.protobuf.json_format` cannot be used: it
reads a trace id of 32 hex digits as base64, silently. The rules (OTLP specification, "JSON
Protobuf Encoding") and what we do beyond them when reading:

    field                 written                     read
    trace and span ids    lower-case hex              hex in any case
    other bytes           base64                      also URL-safe, also without padding
    enums                 integer                     also their names
    64-bit integers       decimal string              also numbers
    32-bit integers       number                      also decimal strings
    NaN, infinities       "NaN" "Infinity" "-Infinity"   also bare, as Python writes them
    names                 lowerCamelCase              also snake_case; unknown ones are ignored
    null                  never                       as if absent; in a list, an empty message

Of a member that comes twice, in either spelling, and of the members of a oneof the last counts; all
have to fit. A field that the installed opentelemetry-proto does not know has no name in JSON: it
is lost, and so are the sign and payload bits of a NaN. Where every byte must survive, use the
protobuf form.

Messages nest at most `DEPTH_MAX` deep, as the protobuf library has it. An error names what is wrong
and where, never the data. Both directions are kernels, which let go of the interpreter's lock:

    json_tables      names and fields as numbers      json_checking   is it a request?
    json_reading     text -> bytes                    json_writing    bytes -> text
    json_scalars, json_decimals                       json_printing
    json_lengths, json_skipping

The time is linear in the size. What is read takes at most four bytes for each of text (a list of
numbers), what is written at most some fifteen (fields that are small and have long names).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from otel_anomaly.handoff import Signal
from otel_anomaly.otlp import json_lengths as lengths
from otel_anomaly.otlp import json_scalars as scalars
from otel_anomaly.otlp import json_writing as writing
from otel_anomaly.otlp.json_checking import room_for_json
from otel_anomaly.otlp.json_decimals import BEGUN_AT, NUMBER_SIZE
from otel_anomaly.otlp.json_lengths import LINE_BYTES_MAX
from otel_anomaly.otlp.json_reading import DEPTH_MAX, read_request
from otel_anomaly.otlp.json_skipping import BROKEN, MORE_BEHIND, NESTING_MAX, TOO_DEEP, check_json
from otel_anomaly.otlp.json_tables import (
    KIND,
    MEMBER_NAMES,
    RANGE_OF_KIND,
    RANGES,
    REQUESTS,
    SLOTS_MAX,
    TARGET,
)
from otel_anomaly.otlp.wire import DEPTH_MAX as WIRE_DEPTH_MAX

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["DEPTH_MAX", "REQUEST_OF", "decode", "encode"]

REQUEST_OF: Final[dict[Signal, type[Message]]] = dict(
    zip((Signal.TRACES, Signal.METRICS, Signal.LOGS), REQUESTS, strict=True)
)
assert set(REQUEST_OF) == set(Signal), "every signal has its request"
_MESSAGE_OF: Final = {signal: np.int64(number) for number, signal in enumerate(REQUEST_OF)}

PATH_LENGTH_MAX: Final = 256
"""Of the path in an error, which goes back to a client."""

_WHY: Final = {
    scalars.NOT_AN_OBJECT: "must be an object",
    scalars.NOT_A_LIST: "must be a list",
    scalars.NOT_A_STRING: "must be a string",
    scalars.NOT_HEX: "must be a string of hex digits, an even number of them",
    scalars.NOT_BASE64: "must be a string in base64",
    scalars.NOT_A_BOOL: "must be true or false",
    scalars.NOT_A_DOUBLE: "must be a number, or NaN, Infinity or -Infinity as a string",
    scalars.BEYOND_DOUBLES: "out of range for a double",
    scalars.NOT_WHOLE: "must be a whole number, or one in a string",
    scalars.TOO_NESTED: f"nested more than {DEPTH_MAX} messages deep",
}


def _bytes_of(body: bytes) -> np.ndarray:
    return np.frombuffer(body, np.uint8) if body else _EMPTY_READ_ONLY


_EMPTY_READ_ONLY: Final = np.zeros(0, np.uint8)
_EMPTY_READ_ONLY.setflags(write=False)


def encode(body: bytes, signal: Signal) -> bytes:
    """An encoded request as one line of OTLP/JSON, UTF-8, without a newline.

    Raises ValueError when `body` is not such a request.
    """
    data, message = _bytes_of(body), _MESSAGE_OF[signal]
    room = room_for_json(data, message) if len(body) <= writing.BODY_BYTES_MAX else -1
    if room < 0:
        name = REQUEST_OF[signal].__name__
        raise ValueError(f"not an {name}: broken protobuf, invalid UTF-8 or nested too deep")
    out = np.empty(room, np.uint8)
    pieces = np.empty((writing.pieces_of(len(body)), 2), np.int32)
    frames = np.empty((WIRE_DEPTH_MAX + 1, writing.FRAME_SIZE), np.int64)
    size = writing.write_json(data, message, pieces, frames, out)
    assert size <= room
    return out[:size].tobytes()


def decode(line: bytes, signal: Signal) -> bytes:
    """One OTLP/JSON request as protobuf bytes.

    Raises ValueError when `line` is not JSON in UTF-8 or a value does not fit its field.
    """
    if len(line) > LINE_BYTES_MAX:
        raise ValueError(f"not JSON: longer than {LINE_BYTES_MAX} bytes")
    text = _bytes_of(line)
    capacity, mark_count, hole_count = lengths.capacity_of(len(line))
    raw = np.empty(capacity, np.uint8)
    marks = np.empty((mark_count, 2), np.int32)
    holes = np.empty((hole_count, 2), np.int32)
    frames = np.empty((DEPTH_MAX, lengths.FRAME_SIZE), np.int64)
    spots = np.empty((DEPTH_MAX, SLOTS_MAX, lengths.SPOT_SIZE), np.int64)
    number, desk = np.zeros(NUMBER_SIZE, np.int64), np.zeros(lengths.DESK_SIZE, np.int64)
    scratch = np.empty(len(line), np.uint8)
    end = read_request(
        text, _MESSAGE_OF[signal], scratch, raw, marks, holes, frames, spots, number, desk
    )
    if end < 0:
        raise ValueError(_refusal(line, end, frames[: desk[lengths.DEPTH] + 1], number))
    assert end <= capacity
    hole_count = int(desk[lengths.HOLES])
    holes = holes[:hole_count]
    if hole_count:
        holes = holes[np.argsort(holes[:, 0])]
    out = np.empty(end - 1 + desk[lengths.EXTRA_ALL], np.uint8)
    size = lengths.compact(raw, end, marks, int(desk[lengths.MARKS]), holes, hole_count, out)
    assert size == out.size
    return out.tobytes()


def _refusal(line: bytes, why: int, frames: np.ndarray, number: np.ndarray) -> str:
    """What is wrong with a line: first whether it is JSON at all, then what does not fit."""
    if why == scalars.NOT_UTF8:
        return f"not UTF-8: byte {_first_not_utf8(line)}"
    if why not in {BROKEN, TOO_DEEP, MORE_BEHIND}:
        checked = check_json(_bytes_of(line), number)
        if checked >= 0:
            return f"{_path(frames)[:PATH_LENGTH_MAX]}: {_what(why, frames)}"
        why = checked
    if why == TOO_DEEP:
        return f"$: nested too deep: more than {NESTING_MAX} brackets"
    if why == MORE_BEHIND:
        return f"not JSON: something comes behind byte {number[BEGUN_AT]}, where it ends"
    return f"not JSON: broken at byte {number[BEGUN_AT]} or soon behind it"


def _first_not_utf8(line: bytes) -> int:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return error.start
    raise AssertionError("the kernel and Python agree about UTF-8")


def _path(frames: np.ndarray) -> str:
    """The members, from the request on, that lead to what was being read."""
    path = "$"
    for frame in frames:
        if frame[lengths.MEMBER] >= 0:
            path += "." + MEMBER_NAMES[frame[lengths.MEMBER]]
            path += f"[{frame[lengths.INDEX]}]" if frame[lengths.INDEX] >= 0 else ""
    return path


def _what(why: int, frames: np.ndarray) -> str:
    if why != scalars.OUT_OF_RANGE:
        return _WHY[np.int64(why)]
    kind = KIND[TARGET[frames[-1][lengths.MEMBER]]]
    low, high = RANGES[RANGE_OF_KIND[kind]]
    return f"must be a whole number from {low} to {high}"
