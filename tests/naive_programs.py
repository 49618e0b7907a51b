"""The slow twin of the program search: words in a list, one method for each state."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KEYWORDS = {"if", "then", "elif", "else", "do", "while", "until", "!", "{", "time"}
INSIDE = {
    *("cd", "pushd", "popd", "export", "set", "unset", "alias", "source", ".", "umask", "ulimit"),
    *("shopt", "declare", "local", "for", "true", ":"),
}
WRAPPERS = {
    **dict.fromkeys(("command", "builtin", "eval", "nohup", "setsid", "busybox"), ""),
    "sudo": "ugpChDTRrtU",
    "doas": "uC",
    "env": "uC",
    "exec": "a",
    "nice": "n",
    "ionice": "cnpPu",
    "stdbuf": "ioe",
    "timeout": "ks",
}
SHELLS = {
    **dict.fromkeys(("sh", "bash", "dash", "zsh", "ksh", "ash", "fish"), "oO"),
    **dict.fromkeys(("cmd", "powershell", "pwsh"), ""),
}
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z_0-9]*=")


def tokens(line: str) -> Iterator[str | None]:
    """The words of a line, unquoted; None where a command ends, and for blanks at the end."""
    at = 0
    while at < len(line):
        one = line[at]
        if one in " \t\r":
            at += 1
            if at == len(line):
                yield None
        elif one in "\n;&|()":
            at += 1
            yield None
        elif one == "#":
            at = (line + "\n").index("\n", at)
            yield None
        else:
            word, at = word_at(line, at)
            yield word


def word_at(line: str, at: int) -> tuple[str, int]:
    """(a word without its quotes and escapes, where it ends)."""
    word, quote = "", ""
    while at < len(line) and (quote or line[at] not in " \t\r\n;&|()"):
        one, following = line[at], line[at + 1 : at + 2]
        at += 1
        if one == quote:
            quote = ""
        elif not quote and one in "'\"":
            quote = one
        elif one == "\\" and is_hidden(following, quote):
            word += following
            at += 1
        else:
            word += one
    return word, at


def is_hidden(one: str, quote: str) -> bool:
    """Whether a backslash before it is taken away; `one` is empty at the end."""
    if quote == "'" or not one:
        return False
    if quote:
        return one in '"\\$`'
    return not re.match(r"[0-9A-Za-z\x80-\U0010ffff]", one)


class Search:
    """The program search, one word after the other."""

    def __init__(self) -> None:
        self.program: str | None = None
        self.state = "start"
        self.letters = ""
        self.skip = 0
        self.time = False

    def line(self, line: str, lines: int = 1) -> None:
        """A command line."""
        self.state = "program"
        words = list(tokens(line))
        for number, word in enumerate(words):
            if self.state == "found":
                return
            if word is None:
                more = number + 1 < len(words)
                if self.state in {"program", "passing"}:
                    self.state = "program"
                elif more:
                    self.state = "found"
            elif self.state == "line":
                if lines == 4:
                    self.state = "found"
                else:
                    self.line(word, lines + 1)
                return
            else:
                self.word(word)

    def word(self, word: str) -> None:
        """One word of it."""
        if self.state == "program":
            self._program(word)
        elif self.state == "options":
            self._option(word)
        elif self.state == "shell":
            self._shell_option(word)

    def _program(self, word: str) -> None:
        if word == "" or ASSIGNMENT.match(word):
            return
        name = name_of(word)
        if name in KEYWORDS:
            return
        self.program, self.skip = name, 0
        if name in INSIDE:
            self.state = "passing"
        elif name in WRAPPERS:
            self.state, self.letters, self.time = "options", WRAPPERS[name], name == "timeout"
        elif name in SHELLS:
            self.state, self.letters = "shell", SHELLS[name]
        else:
            self.state = "found"

    def _takes_value(self, word: str) -> bool:
        return len(word) == 2 and word[1] in self.letters

    def _option(self, word: str) -> None:
        if self.skip:
            self.skip -= 1
        elif word.startswith("-") and len(word) > 1:
            self.skip = int(self._takes_value(word))
        elif ASSIGNMENT.match(word):
            pass
        elif self.time:
            self.time, self.letters = False, ""
        else:
            self.state = "program"
            self._program(word)

    def _shell_option(self, word: str) -> None:
        short = len(word.encode()) <= 5
        if self.skip:
            self.skip -= 1
        elif not word.startswith("-") and not (word.startswith("/") and len(word.encode()) == 2):
            self.state = "found"
            self.program = name_of(word) or self.program
        elif (
            word[1:5].lower() == "comm"
            or (short and not word.startswith("--") and "c" in word[1:].lower())
            or (word.lower() == "/k")
        ):
            self.state = "line"
        elif self._takes_value(word) or (not short and not word.startswith("--")):
            self.skip = 1


def name_of(word: str) -> str:
    """Without folder and `.exe`."""
    name = re.sub(r".*[/\\](?=.)", "", word, flags=re.DOTALL)
    return name[:-4] if len(name.encode()) > 4 and name.lower().endswith(".exe") else name


def first_program(words: Sequence[str]) -> str | None:
    """The program of a command line, or of a list of arguments."""
    search = Search()
    for word in words:
        if search.state in {"start", "line"}:
            search.line(word)
        else:
            search.word(word)
    return search.program
