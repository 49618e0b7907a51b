"""A next hop's words without our data: it may quote what it refuses.

    "invalid value 'alice: 4711' in attribute note"  ->  "invalid value '*: *' in attribute *"

A word that stands in the request that was sent, in capitals or not, is a star, unless it belongs to
the language of such messages, which tells nothing of anybody. A word with a number of four digits
or more is a star too: the request holds numbers in binary. Shorter ones are left: they are codes.
An escape (`\\u0411`, `\\xc3`, `%C3`, `\\303`) is one as well, as it stands for another text than is
looked up. The same holds for the headers it was sent, among which are credentials: "invalid API
key 'a1b2c3'".
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from otel_anomaly.exporters.contract import SendResult

_WORD: Final = re.compile(r"\w+")
_SHORT: Final = 2
_NUMBER: Final = re.compile(r"\d{4}")
_ESCAPES: Final = re.compile(r"(?:\\u[0-9A-Fa-f]{4}|(?:\\x|%)[0-9A-Fa-f]{2}|\\[0-3][0-7]{2})+")
SEARCHED_MAX: Final = 1 << 20
"""Bytes of a request that are searched for each word. In a larger one any word may stand."""

_LANGUAGE: Final = """
about accept accepted aborted after again allowed already and answer any argument attempt
attribute attributes authenticated authentication authorization auth bad backend be because
been before body broken bytes can cancelled cannot certificate client close closed code codec
compressed connect connection could data deadline decode deadline_exceeded denied did does
dropped duplicate empty endpoint error event events exceeded exceeds exhausted expected expired
export exporter failed failure field fields for forbidden found from full gateway given gzip
has have header headers host http https id in ingest internal into invalid invalid_argument is
item items its json key keys kept kind large later left length less limit link links list log
logs malformed match may maximum message metric metrics missing more must name no not number of
on only or otlp over overloaded parent part permission permission_denied pipeline please
protobuf quota range rate read receive received record records refused rejected request
required reset resource resource_exhausted response retry same schema scope send sent server
service session short size small some span spans status stopped stopping storage stream string
tenant text that the then time timed timeout timestamp to token tokens too trace traces
try unauthenticated unauthorized unavailable unexpected unimplemented unknown unsupported up
upstream utf url valid value values version was when while will with within without write
wrong your
"""
_PLAIN: Final = frozenset(_LANGUAGE.split())


def without_echo(message: str, body: bytes) -> str:
    """`message` with a star for each word that stands in `body`."""
    if not message:
        return message
    searched = None
    if len(body) <= SEARCHED_MAX:
        searched = body.decode(errors="replace").casefold()

    def kept(match: re.Match[str]) -> str:
        word = match[0]
        if len(word) <= _SHORT or word.lower() in _PLAIN:
            return word
        if _NUMBER.search(word):
            return "*"
        if word.isdecimal():
            return word
        return "*" if searched is None or word.casefold() in searched else word

    return _WORD.sub(kept, _ESCAPES.sub("*", message))


def told_by(headers: Mapping[str, str], urls: Iterable[str] = ()) -> bytes:
    """What a next hop gets to know by headers, for `without_headers`.

    A user and a password are told encoded, but whoever decodes them can quote them. Those of a URL
    are told by a header as well.
    """
    told = [value.encode() for value in headers.values()]
    for value in headers.values():
        scheme, _, encoded = value.partition(" ")
        if scheme.lower() == "basic":
            told += _both(_decoded(encoded))
    for url in urls:
        written = urlsplit(url).netloc.rpartition("@")[0]
        user, _, password = written.partition(":")
        meant = f"{unquote(user)}:{unquote(password)}"
        sent = [b64encode(meant.encode(name, "replace")) for name in ("latin-1", "utf-8")]
        told += [written.encode(), meant.encode(), *sent] if written else []
    return b"\n".join(told)


def _decoded(encoded: str) -> bytes:
    """What stands in base64; nothing when it is none."""
    try:
        return b64decode(encoded)
    except ValueError:
        return b""


def _both(text: bytes) -> tuple[bytes, bytes]:
    """UTF-8 of a text that may be in Latin-1, as nobody says which of both it is."""
    return text, text.decode("latin-1").encode()


def without_headers(result: SendResult, told: bytes) -> SendResult:
    """A result whose message does not repeat them."""
    if not told or not result.message:
        return result
    return result._replace(message=without_echo(result.message, told))
