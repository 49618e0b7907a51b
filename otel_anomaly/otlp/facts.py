"""From attributes to facts: which tool, who, what was handed over, is it a call at all.

    attribute -> slot of the table -> roles: keep the value if it is the best so far, or set marks
    all read  -> documents -> marks in the span's name -> is it a call? -> derived facts -> flags

Two things wait for the end of a span, because its attributes come in any order: facts derived from
others, and an agent's name that turns out to be the model's. The first are noted as spares; for the
second the span is read once more, with that text banned.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, copy, inlined, kernel, load1
from otel_anomaly.otlp.attributes import ANY, NONE, STRING, hash_value, read_unusual_pair
from otel_anomaly.otlp.dialects import (
    ABSENT_BYTES_MAX,
    AGENT,
    ARGUMENTS,
    COUNT_MASK,
    DERIVED_ORDER,
    DOCUMENT_BITS,
    DOCUMENT_PREFIXES,
    DOCUMENT_SIZES,
    ERROR,
    EVENTS,
    FACTS,
    FIRST_SHIFT,
    HASHED,
    IN_NAME,
    LENGTHS,
    MARK,
    MODEL,
    NAMELESS_CALL,
    NAMESPACE,
    NEEDED,
    PREFIX_AT,
    PREFIX_MAX,
    PREFIX_SIZE,
    RESULT,
    ROLE,
    SERVICE,
    SOURCE,
    SPARE,
    SUFFIX_AT,
    SUFFIX_SIZE,
    TOOL,
    WEAK,
    WHO,
)
from otel_anomaly.otlp.hashing import hash_bytes, hash_two
from otel_anomaly.otlp.json_members import COMMA, OPENING, read_member
from otel_anomaly.otlp.no_names import is_no_service, without_space
from otel_anomaly.otlp.rows import (
    ABSENT,
    BAD_ID,
    IN_ATTRIBUTE,
    IS_BOUNDARY,
    IS_CALL,
    IS_ERROR,
    IS_HINT,
    IS_MCP,
    IS_PART,
    NAMES_PLUGIN,
    RESOURCE_LEVEL,
    SCRATCH_BYTES,
    SPAN_LEVEL,
)
from otel_anomaly.otlp.tool_names import SERVER_PREFIX, begins, cut_plugin, server_size
from otel_anomaly.otlp.values import MAP, any_member
from otel_anomaly.otlp.wire import BYTES, read_length, read_tag, skip

_QUOTE: Final = 34
_KEY_BYTES_MAX: Final = SCRATCH_BYTES - PREFIX_MAX
assert SCRATCH_BYTES >= ABSENT_BYTES_MAX


@inlined
def find_slot(hashed: Int, keys: Record) -> Int:
    """The slot of a key, -1 when it means nothing to us."""
    mask = keys["slot_mask"]
    place = hashed & mask
    while keys["slots"][place, 0] != hashed:
        if keys["slots"][place, 0] == 0:
            return np.int64(-1)
        place = (place + 1) & mask
    return place


@inlined
def find_key(data: Array, key: Int, key_end: Int, keys: Record) -> tuple[Int, Int]:
    """Returns (hash of the key, its slot)."""
    hashed = hash_bytes(data, key, key_end - key, keys["seed"])
    return hashed, find_slot(hashed, keys)


@inlined
def _bits_of(hashed: Int, value_hash: Int, keys: Record) -> Int:
    """The marks that a key with this value stands for."""
    pair = hash_two(hashed, value_hash, keys["seed"])
    place = pair & keys["value_mask"]
    while keys["values"][place, 0] != pair:
        if keys["values"][place, 0] == 0:
            return np.int64(0)
        place = (place + 1) & keys["value_mask"]
    return keys["values"][place, 1]


@inlined
def event_bits(data: Array, at: Int, length: Int, keys: Record) -> Int:
    """The marks of a log record that names its event in this text."""
    value_hash = hash_bytes(data, at, length, keys["seed"])
    return _bits_of(keys["event_key"], value_hash, keys)


@kernel
def _is_absent(data: Array, at: Int, length: Int, role: Int, keys: Record, notes: Record) -> bool:
    """Whether a text, in lower case, is one that says nothing in this role."""
    if length > ABSENT_BYTES_MAX:
        return False
    lowered = notes["scratch"]
    for i in range(length):
        byte = load1(data, at + i)
        lowered[i] = byte | 32 if 65 <= byte <= 90 else byte
    hashed = hash_bytes(lowered, 0, length, keys["seed"])
    for i in range(keys["absent_count"]):
        if keys["absent"][i, 1] == hashed and keys["absent"][i, 0] == role:
            return True
    return False


@inlined
def _says_nothing(
    data: Array, at: Int, length: Int, role: Int, keys: Record, notes: Record
) -> bool:
    """Whether a text is one that says nothing in this role."""
    if role == AGENT:
        at, length = without_space(data, at, length)
        if length == 0 or is_no_service(data, at, length):
            return True
    if (keys["absent_lengths"][role] >> min(length, LENGTHS)) & 1 == 0:
        return False
    return _is_absent(data, at, length, role, keys, notes)


@kernel
def _names_no_error(value_hash: Int, keys: Record) -> bool:
    """Whether a number or a boolean is one that tells of no error."""
    for i in range(keys["absent_count"]):
        if keys["absent"][i, 1] == value_hash and keys["absent"][i, 0] == ERROR:
            return True
    return False


@inlined
def _trimmed(data: Array, role: Int, at: Int, length: Int) -> Int:
    """How many bytes of a text to leave out in front, for the form that counts.

    An identity loses the quotes of JSON around it, the one behind as well; a tool's name its
    server, for on a span it stands without, on the log record of the same call with it.
    """
    if role < len(WHO):
        quoted = load1(data, at) == _QUOTE and load1(data, at + length - 1) == _QUOTE
        return np.int64(1) if quoted and length > 2 else np.int64(0)
    if role == TOOL and length > 7 and load1(data, at) == SERVER_PREFIX[0]:
        return server_size(data, at, length)
    return np.int64(0)


@inlined
def _take_fact(
    data: Array,
    role: Int,
    order: Int,
    kind: Int,
    at: Int,
    length: Int,
    value_hash: Int,
    keys: Record,
    row: Record,
    notes: Record,
) -> None:
    """Keep a value for a role, unless a better one is there or it says nothing.

    Of equal keys the last that says something wins. `value_hash` is 0 for what names nobody, and
    also for arguments and results, which may be long.
    """
    if order > row["order"][role]:
        return
    if role == ARGUMENTS or role == RESULT:
        if kind == NONE or (kind == STRING and length == 0):
            return
    elif value_hash == 0:
        return
    elif kind == STRING:
        cut = _trimmed(data, role, at, length)
        if cut != 0:
            at, length = at + cut, length - (2 if role < len(WHO) else cut)
            value_hash = hash_bytes(data, at, length, keys["seed"])
    if kind == STRING:
        if _says_nothing(data, at, length, role, keys, notes):
            return
    elif role == ERROR and _names_no_error(value_hash, keys):
        return
    if role == AGENT and value_hash == notes["banned"] and order < WEAK:
        return
    row["order"][role] = order
    row["kind"][role] = kind
    row["at"][role] = at
    row["length"][role] = length
    row["hash"][role] = value_hash


@kernel
def take(
    data: Array,
    hashed: Int,
    place: Int,
    kind: Int,
    at: Int,
    length: Int,
    level: Int,
    keys: Record,
    row: Record,
    notes: Record,
) -> tuple[Int, Int]:
    """Note what an attribute says, whose key has this slot. Returns (marks to clear, to set)."""
    clear, bits = np.int64(0), np.int64(0)
    packed = keys["slots"][place, 1]
    value_hash = np.int64(0)
    if packed & HASHED != 0:
        value_hash = hash_value(data, kind, at, length, keys["seed"])
    first = packed >> FIRST_SHIFT
    for i in range(first, first + (packed & COUNT_MASK)):
        role = keys["roles"][i, 0]
        if role < FACTS:
            # Only an identity is inherited: names and errors are the span's own.
            if role < len(WHO) or level == SPAN_LEVEL:
                order = keys["roles"][i, 2] + level
                said = np.int64(0) if role == ARGUMENTS or role == RESULT else value_hash
                _take_fact(data, role, order, kind, at, length, said, keys, row, notes)
        elif role == MARK:
            named, any_text = keys["roles"][i, 1], keys["roles"][i, 3]
            clear = named | any_text
            if value_hash != 0:
                bits = any_text
                if named != 0:
                    bits |= _bits_of(hashed, value_hash, keys)
        elif role == SPARE:
            if kind != NONE and length > 0:
                number = keys["roles"][i, 1]
                notes["told"] |= np.int64(1) << number
                notes["kind"][number] = kind
                notes["at"][number] = at
                notes["length"][number] = length
        elif level == RESOURCE_LEVEL:
            if value_hash != 0 and role == SERVICE:
                if kind != STRING or not is_no_service(data, at, length):
                    notes["service"] = value_hash
            elif value_hash != 0 and role == NAMESPACE:
                notes["namespace"] = value_hash
    return clear, bits


@kernel
def take_event(
    data: Array, at: Int, end: Int, name_field: Int, keys: Record, row: Record, notes: Record
) -> None:
    """Take the attributes of a checked Event, if it is one that we know by its name."""
    name, name_end = at, at
    inner = at
    while inner < end:
        tag, inner = read_tag(data, inner, end)
        if tag == name_field:
            name, name_end = read_length(data, inner, end)
        inner = skip(data, inner, end, tag, IN_ATTRIBUTE)
    seed = keys["seed"]
    event = hash_two(hash_bytes(data, name, name_end - name, seed), EVENTS, seed)
    if find_slot(event, keys) < 0:
        return
    while at < end:
        tag, at = read_tag(data, at, end)
        if tag == (3 << 3 | BYTES):
            start, stop = read_length(data, at, end)
            _, key, key_end, kind, value_at, length = read_unusual_pair(
                data, start, stop, IN_ATTRIBUTE + 1
            )
            hashed = hash_two(event, hash_bytes(data, key, key_end - key, seed), seed)
            place = find_slot(hashed, keys)
            if place >= 0:
                take(data, hashed, place, kind, value_at, length, SPAN_LEVEL, keys, row, notes)
        at = skip(data, at, end, tag, IN_ATTRIBUTE)


@kernel
def _take_member(
    data: Array,
    document: Int,
    key: Int,
    key_end: Int,
    kind: Int,
    at: Int,
    length: Int,
    keys: Record,
    row: Record,
    notes: Record,
) -> None:
    """Take one member of a document, as an attribute `<document>.<name>`."""
    if key_end - key > _KEY_BYTES_MAX:
        return
    scratch, prefix = notes["scratch"], DOCUMENT_SIZES[document]
    copy(scratch, 0, DOCUMENT_PREFIXES[document], 0, prefix)
    copy(scratch, prefix, data, key, key_end - key)
    hashed, place = find_key(scratch, 0, prefix + key_end - key, keys)
    if place >= 0:
        take(data, hashed, place, kind, at, length, SPAN_LEVEL, keys, row, notes)


@kernel
def _take_json(
    data: Array, document: Int, at: Int, end: Int, keys: Record, row: Record, notes: Record
) -> None:
    """Take the members of a JSON object."""
    separator = OPENING
    while True:
        key, key_end, kind, value_at, length, at = read_member(data, at, end, separator)
        if at < 0:
            return
        separator = COMMA
        _take_member(data, document, key, key_end, kind, value_at, length, keys, row, notes)


@kernel
def _take_map(
    data: Array, document: Int, at: Int, end: Int, keys: Record, row: Record, notes: Record
) -> None:
    """Take the members of a checked AnyValue that is a map, in the form that encoders write."""
    member, at, end = any_member(data, at, end)
    while member == MAP and at < end:
        tag, at = read_tag(data, at, end)
        if tag == (1 << 3 | BYTES):
            start, stop = read_length(data, at, end)
            _, key, key_end, kind, value_at, length = read_unusual_pair(
                data, start, stop, IN_ATTRIBUTE + 1
            )
            _take_member(data, document, key, key_end, kind, value_at, length, keys, row, notes)
        at = skip(data, at, end, tag, IN_ATTRIBUTE)


@kernel
def _take_documents(data: Array, keys: Record, row: Record, notes: Record) -> None:
    """Take the members of the documents noted."""
    for document in range(DOCUMENT_SIZES.size):
        if (notes["told"] >> document) & 1 != 0:
            at = notes["at"][document]
            end = at + notes["length"][document]
            if notes["kind"][document] == STRING:
                _take_json(data, document, at, end, keys, row, notes)
            elif notes["kind"][document] == ANY:
                _take_map(data, document, at, end, keys, row, notes)


@kernel
def _name_bits(data: Array, at: Int, length: Int, keys: Record) -> Int:
    """The marks that stand in a span's name."""
    bits = np.int64(0)
    for i in range(keys["name_count"]):
        size, whole = keys["names"][i, 1], keys["names"][i, 2]
        if (whole == 0 or size == length) and begins(
            data, at, length, keys, keys["names"][i, 0], size
        ):
            bits |= keys["names"][i, 3]
    return bits


@kernel
def _derive(
    data: Array,
    marks: Int,
    name_at: Int,
    name_length: Int,
    keys: Record,
    row: Record,
    notes: Record,
) -> None:
    """Take the facts that stand inside others, where the keys themselves said nothing."""
    for i in range(keys["derived_count"]):
        needed = keys["derived"][i, NEEDED]
        role = keys["derived"][i, ROLE]
        if marks & needed != needed or row["order"][role] <= DERIVED_ORDER:
            continue
        source = keys["derived"][i, SOURCE]
        if source == IN_NAME:
            kind, at, length = STRING, name_at, name_length
        elif (notes["told"] >> source) & 1 != 0:
            kind, at = notes["kind"][source], notes["at"][source]
            length = notes["length"][source]
        else:
            continue
        before, after = keys["derived"][i, PREFIX_SIZE], keys["derived"][i, SUFFIX_SIZE]
        if before + after > 0:
            if kind != STRING or length <= before + after:
                continue
            suffix = keys["derived"][i, SUFFIX_AT]
            if not begins(data, at, length, keys, keys["derived"][i, PREFIX_AT], before):
                continue
            if not begins(data, at + length - after, after, keys, suffix, after):
                continue
        at, length, said = at + before, length - before - after, np.int64(0)
        if role != ARGUMENTS and role != RESULT:
            said = hash_value(data, kind, at, length, keys["seed"])
        _take_fact(data, role, DERIVED_ORDER, kind, at, length, said, keys, row, notes)


@inlined
def _is_call(marks: Int, keys: Record) -> bool:
    """Whether the marks are those of a call in some dialect."""
    if marks & keys["no_call"] != 0:
        return False
    for i in range(keys["rule_count"]):
        needed = keys["rules"][i, 0]
        if marks & needed == needed and marks & keys["rules"][i, 1] == 0:
            return True
    return False


@inlined
def settle(
    data: Array,
    marks: Int,
    name_at: Int,
    name_length: Int,
    keys: Record,
    row: Record,
    notes: Record,
) -> None:
    """Finish the facts and flags of a row whose attributes are all read."""
    if notes["told"] & DOCUMENT_BITS != 0:
        _take_documents(data, keys, row, notes)
    speaks = name_length > 0 and keys["name_starts"][load1(data, name_at)] != 0
    if speaks:
        marks |= _name_bits(data, name_at, name_length, keys)
    flags = row["flags"]
    if _is_call(marks, keys):
        flags |= IS_CALL
        if row["order"][TOOL] == ABSENT:
            marks |= NAMELESS_CALL
    elif marks & keys["part"] != 0:
        flags |= IS_PART
    elif marks & keys["boundary"] != 0:
        flags |= IS_BOUNDARY
    if speaks or marks & keys["derives"] != 0:
        _derive(data, marks, name_at, name_length, keys, row, notes)
    if flags & NAMES_PLUGIN != 0 and flags & IS_CALL != 0:
        cut_plugin(data, keys["seed"], row)
    if marks & keys["mcp"] != 0:
        flags |= IS_MCP
    if marks & keys["failed"] != 0 or row["order"][ERROR] != ABSENT:
        flags |= IS_ERROR
    for who in range(len(WHO)):
        # Without sound ids there is no trace to speak for.
        if row["order"][who] < RESOURCE_LEVEL and flags & BAD_ID == 0:
            flags |= IS_HINT
    row["flags"] = flags


@inlined
def names_its_model(row: Record) -> bool:
    """Whether the agent's name, as the span itself tells it, is the model's."""
    return (
        row["order"][AGENT] < RESOURCE_LEVEL
        and row["order"][MODEL] != ABSENT
        and row["hash"][AGENT] == row["hash"][MODEL]
    )
