"""Slow twins of the detectors that look into calls: dicts, lists and loops over all that happened.

Counters here have no end, and a past never is full. A call is any mapping with the names of CALL.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

ALLOW, WARN, PAUSE, BLOCK = range(4)
ACTIONS = ("allow", "warn", "pause", "block")
JUDGED, LATE, COLD, NO_ENTITY, NO_ARGUMENTS, NOT_TOLD, EXEMPT, FULL, OFF = range(9)
HOST, MAIL, ACCOUNT, PATH, PUBLIC, OUTSIDE, LISTED, ASIDE, DATUM, LINK = (
    1 << bit for bit in range(10)
)
SECOND_NS = 10**9
DAY_NS = 86_400 * SECOND_NS
POLLING = 1
Call = Any


@dataclass
class Sign:
    """What a detector says of a call: the fields of SIGN."""

    score: float = 0.0
    observed: float = 0.0
    limit: float = 0.0
    usual: float = 0.0
    window_s: float = 0.0
    ratio: float = 0.0
    action: int = ALLOW
    skipped: int = JUDGED
    variant: int = 0

    def measure(self, observed: float, limit: float) -> None:
        self.observed, self.limit, self.ratio = observed, limit, observed / limit


@dataclass
class Slot:
    """One call that is counted."""

    key: Hashable
    result: int = 0
    times: list[int] = field(default_factory=list)


class Loop:
    """The calls of one session."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.cut_ns = config.window // 10
        self.head: int | None = None
        self.slots = [Slot(None) for _ in range(16)]
        self.hand = 0
        self.calls: list[int] = []
        self.order: list[Hashable] = []

    @staticmethod
    def key(call: Call) -> Hashable:
        return int(call["fingerprint"]), bool(call["failed"])

    @staticmethod
    def result(call: Call) -> int:
        """What a call that did not fail came back with: no two errors read alike."""
        return 0 if call["failed"] else int(call["result"])

    def mark(self, call: Call) -> Hashable:
        return self.key(call), self.result(call)

    def bring_up(self, call: Call) -> int:
        number = int(call["time_ns"]) // self.cut_ns
        self.head = number if self.head is None else max(self.head, number)
        return number

    def inside(self, times: Iterable[int]) -> int:
        assert self.head is not None
        return sum(number > self.head - 10 for number in times)

    def slot(self, call: Call) -> Slot | None:
        return next((slot for slot in self.slots if slot.key == self.key(call)), None)

    @staticmethod
    def is_other(slot: Slot, call: Call) -> bool:
        return bool(Loop.result(call) and slot.result and slot.result != Loop.result(call))

    def why_not(self, call: Call) -> int:
        if not self.config.enabled:
            return OFF
        if not call["has_arguments"] or not call["fingerprint"]:
            return NO_ARGUMENTS
        return EXEMPT if call["exempt"] & POLLING else JUDGED

    def rounds(self, call: Call) -> tuple[int, int]:
        """(How often the cycle came round to this call, its period)."""
        order, total = self.order, self.inside(self.calls)
        if call["fresh"]:
            order, total = [*order, self.mark(call)], total + 1
        elif not order or order[-1] != self.mark(call):
            return 0, 0
        best = (0, 0)
        for period in (2, 3, 4):
            at = len(order) - 1
            while at >= period and order[at] == order[at - period]:
                at -= 1
            run = len(order) - 1 - at
            rounds = -(-min(run + period, total) // period) if run > 0 else 0
            if rounds > best[0]:
                best = rounds, period
        return best

    def score(self, call: Call) -> Sign:
        sign, config = Sign(skipped=self.why_not(call)), self.config
        number = self.bring_up(call)
        if sign.skipped != JUDGED:
            return sign
        sign.window_s = config.window / SECOND_NS
        if self.head is not None and number <= self.head - 10:
            sign.skipped = LATE
            return sign
        slot, same = self.slot(call), int(call["fresh"])
        if slot is not None and not self.is_other(slot, call):
            same += self.inside(slot.times)
        observed, (rounds, period) = same, self.rounds(call)
        if rounds > 1 and rounds >= same:
            observed, sign.usual, sign.variant = rounds, period, 3
        elif self.result(call):
            sign.variant = 1
        elif call["failed"]:
            sign.variant = 2
        sooner = call["result"] or call["failed"]
        sign.measure(observed, config.repeat if sooner else config.threshold)
        if observed >= config.threshold:
            sign.limit, sign.action = config.threshold, ACTIONS.index(config.action)
            sign.score = 1 - config.threshold / (2 * observed)
        elif sooner and observed >= config.repeat:
            way = (observed - config.repeat) / (config.threshold - config.repeat)
            sign.action, sign.score = WARN, 0.25 + 0.25 * way
        return sign

    def learn(self, call: Call) -> None:
        if self.why_not(call) != JUDGED:
            return
        number = self.bring_up(call)
        if self.head is not None and number <= self.head - 10:
            return
        slot = self.slot(call)
        if slot is None:
            places = [(self.hand + 1 + step) % 16 for step in range(16)]
            self.hand = min(places, key=lambda place: self.inside(self.slots[place].times))
            slot = self.slots[self.hand] = Slot(self.key(call))
        elif self.is_other(slot, call):
            slot.times = []
        slot.result = self.result(call) or slot.result
        slot.times.append(number)
        self.calls.append(number)
        self.order.append(self.mark(call))

    def unlearn(self, call: Call) -> None:
        number = int(call["time_ns"]) // self.cut_ns
        if self.head is None or not self.head - 10 < number <= self.head or self.why_not(call):
            return
        slot = self.slot(call)
        if slot is not None and number in slot.times:
            slot.times.remove(number)
        if number in self.calls:
            self.calls.remove(number)
        self.order = []


class Leak:
    """The secrets in the calls of one agent."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.cut_ns = config.window // 12
        self.head = -(10**9)
        self.counts: dict[int, int] = defaultdict(int)

    def score(self, call: Call) -> Sign:
        if not self.config.enabled:
            return Sign(skipped=OFF)
        number = int(call["time_ns"]) // self.cut_ns
        self.head = max(self.head, number)
        sign = Sign(window_s=self.config.window / SECOND_NS)
        if number <= self.head - 12:
            sign.skipped = LATE
            return sign
        total = sum(n for at, n in self.counts.items() if self.head - 12 < at <= self.head)
        total += int(call["secrets"]) * bool(call["fresh"])
        sign.measure(total, self.config.threshold)
        if not call["has_arguments"]:
            sign.skipped = NO_ARGUMENTS
        elif call["secrets"] and total >= self.config.threshold:
            sign.action = ACTIONS.index(self.config.action)
            sign.score = 1 - self.config.threshold / (2 * total)
        return sign

    def learn(self, call: Call) -> None:
        number = int(call["time_ns"]) // self.cut_ns
        self.head = max(self.head, number)
        self.counts[number] += int(call["secrets"])

    def unlearn(self, call: Call) -> None:
        number = int(call["time_ns"]) // self.cut_ns
        self.counts[number] = max(0, self.counts[number] - int(call["secrets"]))


class Past:
    """Destinations and programs one agent, or one service, is known for."""

    def __init__(self, learning: Any) -> None:
        self.learning = learning
        self.born_ns: int | None = None
        self.calls = 0
        self.day = 0
        self.used: dict[Hashable, tuple[int, int]] = {}

    def is_cold(self, call: Call) -> bool:
        if self.born_ns is None or self.calls < self.learning["samples"]:
            return True
        return bool(call["time_ns"] - self.born_ns < self.learning["age_ns"])

    def _open_day(self, call: Call) -> None:
        self.day = max(self.day, int(call["time_ns"]) // DAY_NS)
        for name, (day, _) in list(self.used.items()):
            if self.day - day > self.learning["forget_days"]:
                del self.used[name]

    def uses(self, call: Call, name: Hashable) -> int:
        self._open_day(call)
        return self.used.get(name, (0, 0))[1]

    def learn(self, call: Call) -> None:
        self._open_day(call)
        self.born_ns = int(call["time_ns"]) if self.born_ns is None else self.born_ns
        self.calls += 1
        names = [("to", hashed) for hashed, _ in destinations(call)]
        names += [("program", int(call["program"]))] if call["program"] else []
        for name in names:
            self.used[name] = self.day, self.used.get(name, (0, 0))[1] + 1


def destinations(call: Call) -> list[tuple[int, int]]:
    """[(hash, bits)]."""
    count = int(call["destinations"])
    hashes, bits = call["destination"][:count], call["destination_is"][:count]
    return [(int(one), int(kind)) for one, kind in zip(hashes, bits, strict=True)]


def unknown_connection(config: Any, call: Call) -> Sign:
    if not config.enabled or not config.allow:
        return Sign(skipped=OFF)
    if not call["has_arguments"]:
        return Sign(skipped=NO_ARGUMENTS)
    strange = [to for to, bits in destinations(call) if bits & HOST and not bits & LISTED]
    sign = Sign()
    sign.measure(len(strange), 1)
    if strange:
        sign.score, sign.action = 1.0, ACTIONS.index(config.action)
    return sign


def new_destination(config: Any, own: Past, peers: Past, call: Call) -> Sign:
    if not config.enabled:
        return Sign(skipped=OFF)
    if not call["has_arguments"]:
        return Sign(skipped=NO_ARGUMENTS)
    if own.is_cold(call) and peers.is_cold(call):
        return Sign(skipped=COLD)
    sign = Sign(variant=int(own.is_cold(call)))
    past = peers if own.is_cold(call) else own
    new = [bits for to, bits in destinations(call) if not past.uses(call, ("to", to))]
    sign.measure(len(new), 1)
    sign.usual = past.calls
    if new:
        only_paths = all(not bits & (HOST | MAIL | ACCOUNT) for bits in new)
        sign.score, sign.action = 0.5 if only_paths else 0.6, ACTIONS.index(config.action)
    return sign


def child_process(config: Any, own: Past, peers: Past, call: Call) -> Sign:
    if not config.enabled:
        return Sign(skipped=OFF)
    if not call["starts_program"]:
        return Sign()
    sign = Sign()
    if config.mode == "always":
        sign.measure(1, 1)
        sign.score = 1.0
        sign.action = ACTIONS.index(config.action) if config.action else BLOCK
        return sign
    if not call["has_arguments"]:
        return Sign(skipped=NO_ARGUMENTS)
    if not call["program"]:
        return Sign(skipped=NOT_TOLD)
    if own.is_cold(call) and peers.is_cold(call):
        return Sign(skipped=COLD)
    past = peers if own.is_cold(call) else own
    sign.variant = 2 if own.is_cold(call) else 1
    is_new = not past.uses(call, ("program", int(call["program"])))
    sign.measure(int(is_new), 1)
    sign.usual = past.calls
    if is_new:
        sign.score = 0.6
        sign.action = ACTIONS.index(config.action) if config.action else WARN
    return sign


def data_exfiltration(config: Any, own: Past, call: Call) -> Sign:
    if not config.enabled:
        return Sign(skipped=OFF)
    if not call["has_arguments"]:
        return Sign(skipped=NO_ARGUMENTS)
    is_habit = {
        to: not own.is_cold(call) and own.uses(call, ("to", to)) >= 5
        for to, _ in destinations(call)
    }
    outside = [
        bits
        for to, bits in destinations(call)
        if bits & OUTSIDE and not bits & LINK and not is_habit[to]
    ]
    amounts = [int(call[name]) for name in ("secrets", "personal_strong", "personal")]
    leading = [bits for _, bits in destinations(call) if bits & OUTSIDE and not bits & LINK]
    if len(leading) == 1 and leading[0] & HOST:
        amounts[0] = max(0, amounts[0] - int(call["credentials"]))
    if any(bits & HOST and not bits & ASIDE for bits in outside):  # A record sent there.
        data = [bits for _, bits in destinations(call) if bits & DATUM and bits & (MAIL | ACCOUNT)]
        amounts[1] += sum(bool(bits & ACCOUNT) for bits in data)
        amounts[2] += len(data)
    sign = Sign()
    if not outside or not any(amounts):
        return sign
    sign.variant = next(i for i, amount in enumerate(amounts) if amount)
    by_mail = all(bits & MAIL for bits in outside) and sign.variant == 2
    sign.measure(amounts[sign.variant], 3 if by_mail else 1)
    if sign.ratio >= 1:
        sign.score = 0.8 if sign.variant == 2 else 1.0
        sign.action = ACTIONS.index(config.action)
    return sign


def identity_spoofing(config: Any, call: Call) -> Sign:
    if not config.enabled:
        return Sign(skipped=OFF)
    if not call["owner"] or not call["agent"]:
        return Sign(skipped=NOT_TOLD)
    sign = Sign()
    sign.measure(int(call["owner"] != call["agent"]), 1)
    if sign.observed:
        sign.score, sign.action = 0.7, ACTIONS.index(config.action)
    return sign
