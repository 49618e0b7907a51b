"""The slow twin of the hosts in command lines: tokens, and a frame for each quoted text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""(?P<word>(?:[^\s;|&()<>`'"\\\x00]|\\(?![\n'"]))+)|(?P<hidden>\\[\n'"])|(?P<line>\n)"""
    r"""|(?P<stop>[;|])|(?P<quote>['"])|(?P<tick>`|(?<=\$)\()|(?P<open>\()|(?P<arrow>[<>])"""
    r"""|(?P<amp>&)|(?P<blank>.)""",
    re.DOTALL,
)
_WRAPPERS = """
sudo doas env exec nice ionice stdbuf timeout nohup setsid command builtin eval busybox xargs watch
sh bash dash zsh ksh ash fish su cmd docker podman kubectl sshpass strace parallel find torsocks
flock chroot proxychains
"""
WRAPPERS = set(_WRAPPERS.split())
KEYWORDS = {"if", "then", "elif", "else", "do", "while", "until", "!", "{", "time", "$", "%"}
FILES = {"md", "py", "sh", "rs", "zip", "txt", "js", "json", "pl", "mov"}
TOP_LEVELS = {"com", "net", "org", "io", "uk", "md", "py", "sh", "rs", "zip", "dev", "id", "pl"}
SSH = set("bcDeEFiIlLmoOpQRSwW")
EVERY = {
    "curl": (set("AbcCdDeEFhHKmoPQrtTuUwXyYz"), {"x"}),
    "wget": (set("aABDeGHiIlOopPQRtTUwX"), set()),
    "nc": (set("cegiImMoOpPqsTVwW"), {"x"}),
    "ping": (set("cFiIlmMpQsStTwW"), set()),
    "dig": (set("bcfkpty"), set()),
    "traceroute": (set("fgimNpqstwzP"), set()),
}
FIRST = {"ssh": (SSH, {"J"})}
REMOTE = {"scp": (set("cDFiloPSX"), {"J"}), "git": (set("cC"), set())}
OPTION = {"mysql": (set("DeuP"), {"h"}), "redis-cli": (set("anpru"), {"h"})}
PROGRAMS = EVERY | FIRST | REMOTE | OPTION


@dataclass
class Frame:
    """One command, or one quoted text that is a command."""

    program: str = ""
    expects: bool = True
    loose: bool = False
    words: set[str] = field(default_factory=set)
    """What this word is: a value, a host, behind a long option."""
    following: set[str] = field(default_factory=set)
    begun: bool = False

    def over(self) -> None:
        """A word is over."""
        if self.begun:
            self.words, self.following, self.begun = self.following, set(), False


def name_of(word: str) -> tuple[str, bool]:
    """(the name of a program, whether the word is an assignment)."""
    start = 0
    for at, char in enumerate(word[:-1]):
        if char in "/\\":
            start = at + 1
        elif char == "=" and start == 0:
            return "", True
    name = word[start:]
    return (name[:-4].lower() if len(name) > 4 and name[-4:].lower() == ".exe" else name), False


class Commands:
    """A value, read word by word."""

    def __init__(self) -> None:
        self.frame, self.outer = Frame(), Frame()
        self.quote, self.fresh, self.nested = "", False, False
        self.hosts: list[str] = []

    def read(self, text: str) -> list[str]:
        """The hosts of the commands in a text, in order."""
        for token in TOKEN.finditer(text):
            kind = token.lastgroup
            if kind == "word":
                self.hosts += self.host(text, token)
                self.take(token[0])
            elif kind != "hidden":
                self.part(str(kind), token, text)
        return self.hosts

    def part(self, kind: str, token: re.Match[str], text: str) -> None:
        """What stands between words."""
        around = text[max(token.start() - 1, 0) : token.end() + 1]
        if kind == "amp" and (around.endswith("&>") or around[0] in "<>"):
            kind = "blank"
        if kind == "quote" and self.quote in {"", token[0]}:
            self.switch(token[0])
        elif kind == "tick":
            self.fresh = True
        elif kind in {"line", "stop", "open", "amp"}:
            self.fresh = bool(self.quote)
            if not self.quote:
                self.frame = Frame()
        elif not self.quote or self.nested:
            self.frame.over()
            if kind == "arrow":
                self.frame.words = self.frame.words | {"value"}

    def switch(self, sign: str) -> None:
        """A quoted text begins or ends."""
        if not self.quote:
            self.quote, self.fresh, self.nested = sign, True, False
            self.outer = Frame(self.frame.program, self.frame.expects, self.frame.loose)
        else:
            if self.nested:
                words = self.frame.words
                self.frame = Frame(self.outer.program, expects=False, words=words)
            self.quote, self.fresh, self.nested = "", False, False
        self.frame.begun = True

    def take(self, word: str) -> None:
        """What a word is, for those behind it."""
        frame = self.frame
        frame.begun = True
        if frame.expects or frame.loose or self.fresh:
            name, assigns = name_of(word)
            if name in PROGRAMS:
                frame.program, frame.expects, frame.loose, self.fresh = name, False, False, False
                if self.quote:
                    self.nested = True
                    frame.words, frame.following = set(), set()
                return
            if assigns or name in KEYWORDS:
                return
            self.fresh = False
            if frame.expects or name in WRAPPERS:
                frame.expects = False
                frame.loose = frame.loose or name in WRAPPERS
            if not frame.program:
                return
        if frame.program and (not self.quote or self.nested):
            if word.startswith("-") and len(word) > 1:
                self.option(word)
            elif frame.program in FIRST and not frame.words:
                frame.program, frame.expects, frame.loose = "", True, True

    def option(self, word: str) -> None:
        """An option, and what it says of the next word."""
        valued, hosted = PROGRAMS[self.frame.program]
        if word.startswith("--"):
            if word == "--host":
                self.frame.following.add("host")
            elif "=" not in word and word != "--":
                self.frame.following.add("long")
            return
        for at, letter in enumerate(word[1:], 2):
            if letter in hosted | valued:
                if at == len(word):
                    self.frame.following.add("host" if letter in hosted else "value")
                return

    def host(self, text: str, token: re.Match[str]) -> list[str]:
        """The host that a word is, if any."""
        for run in re.finditer(r"[A-Za-z0-9.-]+", token[0]):
            begin, end = token.start() + run.start(), token.start() + run.end()
            before, follows = text[begin - 1 : begin], text[end : end + 1]
            if begin == 0 or not looks_like_host(run[0], follows):
                continue
            if re.fullmatch(r"[\w:./]", before, re.ASCII):
                continue
            return [run[0]] if self.is_meant(run[0], follows, token[0][: run.start()]) else []
        return []

    def is_meant(self, name: str, follows: str, head: str) -> bool:
        """Whether the command goes to the host; `head` is what stands before it in its word."""
        program, words = self.frame.program, self.frame.words
        if not program or "value" in words:
            return False
        if self.quote and not self.nested and not self.fresh:
            return False
        if head == "--host=":
            return True
        if head and not re.fullmatch(r"[\w.+%:-]+@", head, re.ASCII):
            return head == "@" and program == "dig"
        if head.startswith(":"):
            return True if "host" in words else program in (EVERY | FIRST)
        if "host" in words:
            return True
        if program in REMOTE:
            return follows == ":"
        if program in EVERY and "long" in words:
            return follows in {":", "/"} or name.rpartition(".")[2].lower() not in FILES
        return program in EVERY or program in FIRST


def looks_like_host(name: str, follows: str) -> bool:
    """Whether a name has a top-level domain, or is four numbers."""
    if follows and follows in "@=_$(":
        return False
    labels = name.removesuffix(".").split(".")
    if len(labels) < 2 or not all(labels) or not name[0].isalnum():
        return False
    if labels[-1][-1].isdigit():
        return len(labels) == 4 and all(label.isdigit() for label in labels)
    return labels[-1].lower() in TOP_LEVELS or re.match(r"..--.", labels[-1]) is not None
