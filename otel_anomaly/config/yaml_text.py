"""YAML text to plain data, remembering where every key was written.

A document becomes a `Layer`: nested dicts and lists, and for each key path the line it stands on,
so that an error found later in the typed models can still name the line. Layers lie on top of one
another: maps merge, everything else is replaced, and null over a map changes nothing.

Read with the safe loader, one node after the other, under three bounds: size of the text, depth,
and nodes after aliases are followed (an alias is copied each time, so a small text could unfold
to gigabytes). Keys that appear twice are errors: YAML would silently take the last.

`${env:NAME}` and `${env:NAME:-default}` expand inside text, `$$` is a dollar sign, once: what a
variable holds is not looked at again. A plain scalar that is nothing but one variable is read as
YAML reads a scalar, so that an empty variable is null; numbers stay text, because the models read
numbers from text and a token of digits in a header must keep its zeros.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

TEXT_BYTES_MAX = 256 << 10
_DEPTH_MAX = 32
_NODES_MAX = 20_000

_MERGE_TAG = "tag:yaml.org,2002:merge"
_MAP_TAG, _SEQUENCE_TAG = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
_NULL = re.compile(r"(?:~|null|Null|NULL|)")
_VARIABLE = re.compile(r"\$(?:\$|\{(?:env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?)")

KeyPath = tuple[str | int, ...]

SECRET: Final = "***"  # noqa: S105 - what stands in its place.
_KEYS_SHOWN: Final[dict[str, frozenset[str]]] = {
    "headers": frozenset(),
    "auth": frozenset(("bearer", "tokens", "filename", "basic", "htpasswd", "inline", "file")),
}
"""Blocks whose values are never shown -> the keys below them that are. Where a space or a quote is
missing, YAML takes a secret for a key: `{Authorization:Bearer a1b2}`."""
SECRET_BLOCKS: Final = frozenset(_KEYS_SHOWN)
_PLAIN_KEY: Final = re.compile(r"[\w./*-]*")
_TAGGED: Final = re.compile(r"\b(?:tag|alias|anchor)\b")
_IN_QUOTES: Final = "a value that is = or <<, or begins with ! & or *, must be in quotes"
"""Said of tags, aliases and anchors, whose names may be such a value: a secret."""

PROBLEMS_TOLD_MAX: Final = 30
PROBLEM_CHARS_MAX: Final = 600
"""More than any that is not made up of what somebody wrote."""


class ConfigError(Exception):
    """The configuration cannot be used. The text is ready to print, one problem per line."""

    @classmethod
    def of(cls, problems: Iterable[str]) -> ConfigError:
        """All of them, each once: the first in full, of very many the number."""
        told = [clipped(problem) for problem in dict.fromkeys(problems)]
        more = len(told) - PROBLEMS_TOLD_MAX
        return cls("\n".join(told[:PROBLEMS_TOLD_MAX] + [f"... and {more} more"] * (more > 0)))


def clipped(problem: str) -> str:
    """A problem with a name in it as long as a hostile file likes."""
    half = PROBLEM_CHARS_MAX // 2
    if len(problem) <= PROBLEM_CHARS_MAX:
        return problem
    return f"{problem[:half]} ... {problem[-half:]}"


class Origin(NamedTuple):
    """Where a key was written."""

    source: str
    """File, or the `--set` it came from."""
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Layer(NamedTuple):
    """One source of configuration, or several merged."""

    data: dict[str, Any]
    origins: dict[KeyPath, Origin]
    depth: int = 0
    """How many of the first keys are only the way to what is set: 0 for a file."""

    def under(self, other: Layer) -> Layer:
        """This layer with `other` on top."""
        origins = dict(self.origins)
        for path, origin in other.origins.items():
            if len(path) >= other.depth or path not in origins:  # The way to a key is not the key.
                origins[path] = origin
        return Layer(merged(self.data, other.data), origins)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` on top of `below`: maps merge, the rest is replaced, null over a map is nothing."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            both[key] = merged(old, value)
        elif value is not None or not isinstance(old, dict):
            both[key] = value
    return both


def read_yaml(text: str, origin: Origin, root: KeyPath, environ: Mapping[str, str]) -> Layer:
    """The value that `text` holds, placed at the key path `root`.

    Raises
    ------
    ConfigError
        Not YAML, over a bound, a key twice, an unknown tag, or an unset variable.
    """
    reader = _Reader(text, origin, environ)
    try:
        value = reader.read_document(root)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        reader.complain(line, f"not YAML: {_problem(error)}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        reader.complain(line, f"not YAML: character {error.character:#x} is not allowed")
    except RecursionError:
        reader.complain(0, "nested too deep")
    if reader.problems:
        raise ConfigError.of(reader.problems)
    for key in reversed(root):
        value = {key: value}
    return Layer(value if isinstance(value, dict) else {}, reader.origins, len(root))


def _problem(error: yaml.MarkedYAMLError) -> str:
    """The parser's words. It quotes single characters, terms of its own, and names of tags."""
    if _TAGGED.search(f"{error.context} {error.problem}"):
        return _IN_QUOTES
    return str(error.problem or error.context)


class _Stop(Exception):
    """A bound is passed: nothing more is read."""


class _Reader:
    """One walk over the nodes of one document."""

    def __init__(self, text: str, origin: Origin, environ: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self.origins: dict[KeyPath, Origin] = {}
        self._text = text
        self._origin = origin
        self._environ = environ
        self._nodes = 0

    def complain(self, line: int, text: str) -> None:
        """Note a problem at a line counted from 0."""
        self.problems.append(f"{self._at(line)}: {text}")

    def read_document(self, root: KeyPath) -> object:
        """The value of the only document."""
        for i in range(len(root) + 1):
            self.origins[root[:i]] = self._at(0)
        loader = self._loader = yaml.SafeLoader(self._text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if not root and not isinstance(node, yaml.MappingNode):
                if node.tag != "tag:yaml.org,2002:null":
                    self.complain(node.start_mark.line, "the file must hold keys with values")
                return None
            return self._read(node, root)
        except _Stop:
            return None
        finally:
            loader.dispose()

    def _at(self, line: int) -> Origin:
        return self._origin if self._origin.line is None else Origin(self._origin.source, line + 1)

    def _read(self, node: yaml.Node, path: KeyPath) -> object:
        line = node.start_mark.line
        self.origins[path] = self._at(line)
        self._nodes += 1
        if self._nodes > _NODES_MAX:
            self.complain(line, f"more than {_NODES_MAX} values, counting every alias")
            raise _Stop
        if len(path) > _DEPTH_MAX:
            self.complain(line, "nested too deep")
            raise _Stop
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP_TAG:
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQUENCE_TAG:
            return [self._read(item, (*path, i)) for i, item in enumerate(node.value)]
        self.complain(line, _IN_QUOTES)
        return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        inherited: dict[str, Any] = {}
        for base in _bases(node):
            block = self._read(base, path)
            inherited = {**(block if isinstance(block, dict) else {}), **inherited}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line
            key = key_node.value
            if key_node.tag == _MERGE_TAG:
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.complain(line, "a key must be text")
            elif key in own:
                self.complain(line, f"{dotted((*path, key))}: written twice in one block")
            else:
                own[key] = self._read(value_node, (*path, key))
                self.origins[*path, key] = self._at(line)
        return {**inherited, **own}

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> object:
        try:
            value = self._loader.construct_object(node)
        except (ValueError, OverflowError):  # YAML takes 2024-99-99 for a date, and fails.
            kind = node.tag.rpartition(":")[2]
            self.complain(node.start_mark.line, f"{dotted(path)}: not a valid {kind}")
            return None
        if not isinstance(value, str) or "$" not in value:
            return value
        text = _VARIABLE.sub(lambda match: self._variable(match, node, path), value)
        alone = _VARIABLE.fullmatch(value)
        if alone and alone[1] and node.style is None and _NULL.fullmatch(text):
            return None
        return text

    def _variable(self, match: re.Match[str], node: yaml.Node, path: KeyPath) -> str:
        name, default = match[1], match[2]
        if match[0] == "$$":
            return "$"
        if name is None:
            text = "${ must begin ${env:NAME} or ${env:NAME:-default}; write $${ for the text"
        elif name in self._environ:
            return self._environ[name]
        elif default is not None:
            return default
        else:
            text = f"the environment variable {name} is not set, and no default given"
        self.complain(node.start_mark.line, f"{dotted(path)}: {text}")
        return ""


def _bases(node: yaml.MappingNode) -> Iterator[yaml.Node]:
    """The blocks that `<<` takes over: one or a list, the first wins."""
    for key_node, value_node in node.value:
        if key_node.tag == _MERGE_TAG:
            several = isinstance(value_node, yaml.SequenceNode)
            yield from value_node.value if several else [value_node]


def dotted(path: KeyPath) -> str:
    """A key path as people write it, `policy.overrides[0].agent`, with stars for what is no key."""
    parts = []
    known = None
    for key in path:
        if isinstance(key, int):
            parts.append(f"[{key}]")
        elif known is None:
            parts.append(f".{key if _PLAIN_KEY.fullmatch(key) else SECRET}")
            known = _KEYS_SHOWN.get(key)
        else:
            parts.append(f".{key if key in known else SECRET}")
    return "".join(parts).removeprefix(".")
