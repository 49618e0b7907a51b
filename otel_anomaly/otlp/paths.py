"""The root of an absolute path: which part of a file system a call reaches into.

The root is the first two folders of a path, `.` and `..` resolved, slashes told once:

    /home/alice/notes/x.txt  /home/bob/../alice/y       /home/alice
    /etc/passwd  /etc/./shadow  file:///etc/hosts       /etc
    ~/Documents/x                                       ~/Documents
    C:\\Users\\Bob  c:/users/bob/x                        c:/users/bob
    \\\\server\\share\\x                                   //server/share, and the host

The last part of a path is taken for a file, so it is no folder; on Windows, where paths are told
in any case, only when it holds a dot. A relative path has no root, and is not seen.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, inlined, kernel, load1
from otel_anomaly.otlp.characters import ALNUM, DASH, DOT, LETTER, UNDERSCORE, kind_at, span_of
from otel_anomaly.otlp.found import PATH, add_destination, range_hash
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.otlp.host_names import escaped_byte

PATH_MAX: Final = 4096
"""A longer value is no path."""
_PART_MAX: Final = 255
_NAME: Final = ALNUM | DASH | DOT | UNDERSCORE
_UNIX, _WINDOWS, _SHARE = range(3)


@inlined
def _is_slash(byte: Int, style: Int) -> bool:
    """Whether a byte parts folders."""
    return byte == 47 or (byte == 92 and style != _UNIX)


@inlined
def has_drive(text: Array, at: Int, end: Int) -> bool:
    """Whether C:\\ or C:/ stands at `at`."""
    if end - at < 3 or load1(text, at + 1) != 58 or kind_at(text, at) & LETTER == 0:
        return False
    return load1(text, at + 2) == 47 or load1(text, at + 2) == 92


@inlined
def may_be_path(text: Array, at: Int, end: Int) -> bool:
    """Whether a value begins like an absolute path."""
    first = load1(text, at)
    return first == 47 or first == 126 or first == 92 or has_drive(text, at, end)


@kernel
def is_path(text: Array, at: Int, end: Int) -> bool:
    """Whether a value, white space cut off, is an absolute path: by its first bytes, one line."""
    if end - at > PATH_MAX or end == at:
        return False
    first = load1(text, at)
    if first == 47:
        starts = end - at == 1 or kind_at(text, at + 1) & _NAME != 0 or load1(text, at + 1) == 47
    elif first == 126:
        name = span_of(text, at + 1, end, _NAME)
        starts = name == end if end - at == 1 else name < end and load1(text, name) == 47
    elif first == 92:
        starts = end - at > 2 and load1(text, at + 1) == 92 and kind_at(text, at + 2) & _NAME != 0
    else:
        starts = has_drive(text, at, end)
    if not starts:
        return False
    for i in range(at, end):
        if load1(text, i) < 32:
            return False
    return True


@kernel
def add_path(text: Array, at: Int, end: Int, aside: Int, seed: Int, found: Record) -> None:
    """Add the root of the path at `at`, which ends at white space."""
    if at < end and load1(text, at) == 47 and has_drive(text, at + 1, end):
        at += 1  # As file URLs have it.
    root = np.empty(3 * (_PART_MAX + 1), np.uint8)
    style, size = _UNIX, 0
    if has_drive(text, at, end):
        style = _WINDOWS
        root[0], root[1] = load1(text, at) | 32, 58
        at, size = at + 2, 2
    elif end - at > 2 and load1(text, at) == 92:
        style = _SHARE
        root[0] = 47
        size = 1
    elif at < end and load1(text, at) == 126:
        stop = span_of(text, at + 1, end, _NAME)
        size = _write_part(text, at, stop, _UNIX, root, 0)
        at = stop
    elif at >= end or load1(text, at) != 47:
        return
    size = _write_folders(text, at, end, style, root, size)
    key = hash_two(np.int64(PATH), range_hash(root, np.int64(0), size, seed), seed)
    add_destination(found, key, PATH | aside)


@kernel
def _write_folders(text: Array, at: Int, end: Int, style: Int, root: Array, size: Int) -> Int:
    """Append the first two folders of the path; returns the new size."""
    depth, is_file = 0, False
    start0, stop0, start1, stop1 = at, at, at, at
    while at < end and load1(text, at) > 32:
        stop = at
        dots = True
        holds_dot = False
        while stop < end and load1(text, stop) > 32 and not _is_slash(load1(text, stop), style):
            is_dot = load1(text, stop) == 46
            dots = dots and is_dot
            holds_dot = holds_dot or is_dot
            stop += 1
        length = stop - at
        ended = stop == end or load1(text, stop) <= 32
        if dots and length <= 2:
            depth = max(depth - (1 if length == 2 else 0), 0)
            is_file = False
        else:
            if depth == 0:
                start0, stop0 = at, stop
            elif depth == 1:
                start1, stop1 = at, stop
            depth += 1
            is_file = ended and (style == _UNIX or holds_dot)
        at = end if ended else stop + 1
    if is_file and depth > 0:
        depth -= 1
    if depth == 0 and size == 0:
        root[0] = 47
        return 1
    if depth > 0:
        root[size] = 47
        size = _write_part(text, start0, stop0, style, root, size + 1)
    if depth > 1:
        root[size] = 47
        size = _write_part(text, start1, stop1, style, root, size + 1)
    return size


@kernel
def _write_part(text: Array, at: Int, end: Int, style: Int, root: Array, size: Int) -> Int:
    """Append one name, escapes decoded, in lower case unless it is of Unix; at most 255 bytes."""
    limit = min(size + _PART_MAX, root.size - 1)
    while at < end and size < limit:
        escaped = escaped_byte(text, at, end)
        byte = load1(text, at) if escaped < 0 else escaped
        if style != _UNIX and 65 <= byte <= 90:
            byte += 32
        root[size] = byte
        size += 1
        at += 1 if escaped < 0 else 3
    return size
