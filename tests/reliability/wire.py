"""Just enough HTTP/1.1 for a load generator and a next hop: heads, lengths, chunks, no more.

Own code because both ends must be cheaper than what they measure, and because the next hop must be
able to answer what no library would let it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST, RESPONSE = "request", "response"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


class Parser:
    """Bytes of one connection in, (head, body) of each whole message out."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._held = bytearray()
        self._head: bytes | None = None

    @property
    def is_between(self) -> bool:
        """Whether no message is half read."""
        return not self._held and self._head is None

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The messages that these bytes complete.

        Raises
        ------
        ValueError
            The other side does not speak HTTP/1.1.
        """
        self._held += data
        while True:
            if self._head is None and not self._read_head():
                return
            assert self._head is not None
            body = self._chunks() if _CHUNKED.search(self._head) else self._plain()
            if body is None:
                return
            head, self._head = self._head, None
            yield head, body

    def _read_head(self) -> bool:
        end = self._held.find(b"\r\n\r\n")
        if self._kind is RESPONSE and self._held and not b"HTTP/1.".startswith(self._held[:7]):
            raise ValueError("not HTTP")
        if end < 0:
            return False
        self._head = bytes(self._held[: end + 2])
        del self._held[: end + 4]
        return True

    def _plain(self) -> bytes | None:
        assert self._head is not None
        found = _LENGTH.search(self._head)
        length = int(found[1]) if found else 0
        if len(self._held) < length:
            return None
        body = bytes(self._held[:length])
        del self._held[:length]
        return body

    def _chunks(self) -> bytes | None:
        parts, at = [], 0
        while True:
            end = self._held.find(b"\r\n", at)
            if end < 0:
                return None
            size = int(self._held[at:end], 16)
            if len(self._held) < end + 2 + size + 2:
                return None
            parts.append(self._held[end + 2 : end + 2 + size])
            at = end + 2 + size + 2
            if size == 0:
                del self._held[:at]
                return b"".join(parts)
