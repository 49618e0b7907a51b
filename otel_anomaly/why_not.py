"""What a detector observed of one call, against which limit and past, also when it kept still.

The kernels leave a sign of every detector, made to be cheap: one that keeps still does not work out
what it would have taken. Here the rest is worked out, for the one call that somebody asks about,
from a copy of all that it was judged by (`state.EXPLAINED`).

    observed   limit   baseline   window     None where there is no such thing
    details    what the four do not hold: both rings of `rate_shift`, how far learning is, ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from otel_anomaly.detectors import rate_shift
from otel_anomaly.detectors.finding import ACTIONS, COLD, JUDGED, OFF, SECOND_NS, SKIP_REASONS
from otel_anomaly.scoring import PARTS_OF_RISK

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from otel_anomaly.config.detectors import DetectorsConfig, RateShiftConfig

_SKIPPED: Final = {
    "late": "the call is too late for its window",
    "learning": "still learning",
    "no_entity": "nobody is known to count the call for, or there was no room for them",
    "no_arguments": "the span carries no arguments",
    "not_told": "the telemetry does not say what it looks at",
    "exempt": "the tool is exempt (policy.polling_tools, policy.batch_tools)",
    "memory_full": "the agent's memory is full: new cannot be told from not kept",
    "off": "switched off",
}
assert set(_SKIPPED) == set(SKIP_REASONS) - {""}
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class Seen(NamedTuple):
    """What one detector is asked about."""

    record: np.void
    """Of EXPLAINED. May be written to: it is a copy."""
    config: DetectorsConfig
    """That of the override that applied."""
    sign: np.void
    plan: np.void
    """Of LIMITS."""

    @property
    def looked(self) -> bool:
        """Whether the detector judged the call."""
        return bool(self.sign["skipped"] == JUDGED)

    @property
    def observed(self) -> float:
        return float(self.sign["observed"])

    @property
    def limit(self) -> float:
        return float(self.sign["limit"])


class Told(NamedTuple):
    """What is said of it."""

    why: str
    observed: float | None = None
    limit: float | None = None
    baseline: float | None = None
    window_s: float | None = None
    details: dict[str, Any] | None = None


def tell(name: str, seen: Seen, reason: str | None) -> dict[str, Any]:
    """One row: what the detector `name` said of the call and why. `reason`: of its finding."""
    told = _KEPT_STILL[name](seen)
    sign = seen.sign
    if reason is not None:
        told = _found(name, seen, told, reason.removeprefix(f"{name}: "))
    elif sign["skipped"] not in (JUDGED, COLD):
        told = told._replace(why=_skipped(name, seen))
    return {
        "detector": name,
        "skipped": SKIP_REASONS[sign["skipped"]] or None,
        "action": ACTIONS[sign["action"]],
        "score": float(sign["score"]),
        "observed": told.observed,
        "limit": told.limit,
        "baseline": told.baseline,
        "window_s": told.window_s,
        "why": told.why,
        "details": told.details or {},
    }


def _found(name: str, seen: Seen, told: Told, reason: str) -> Told:
    """The numbers of a finding are those that its reason tells."""
    if name != "off_hours":
        told = told._replace(
            observed=seen.observed,
            limit=seen.limit or told.limit,
            baseline=float(seen.sign["usual"]) or told.baseline,
            window_s=float(seen.sign["window_s"]) or told.window_s,
        )
    quiet = seen.sign["action"] == 0
    ending = "; counts in risk, no alarm by itself" if name in PARTS_OF_RISK else "; no alarm"
    return told._replace(why=reason + (ending if quiet else ""))


def _skipped(name: str, seen: Seen) -> str:
    """Why it did not look at the call."""
    if seen.sign["skipped"] == OFF and getattr(seen.config, name).enabled:
        return _OFF_ALL_THE_SAME.get(name, _SKIPPED["off"])
    return _SKIPPED[SKIP_REASONS[seen.sign["skipped"]]]


_OFF_ALL_THE_SAME: Final = {
    "off_hours": "off: start and end are the same hour, so no hour is in between",
    "unknown_connection": "off: no host is listed in allow",
}


def duration(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `1 h`, `2 h 5 min`; the two largest units."""
    left, parts = max(int(seconds), 0), []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def _window(window_ns: int) -> str:
    """As the clauses of the findings have it."""
    return f"{window_ns / SECOND_NS:g} s"


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def _learned(past: np.void, seen: Seen) -> dict[str, Any]:
    """How far learning is."""
    learning, now_ns = seen.config.learning, int(seen.record["call"]["time_ns"])
    born_ns = int(past["born_ns"])
    return {
        "calls": int(past["calls"]),
        "calls_needed": learning.samples,
        "seconds": max(now_ns - born_ns, 0) // SECOND_NS if born_ns else 0,
        "seconds_needed": learning.time // SECOND_NS,
    }


def _progress(learned: dict[str, Any]) -> str:
    needed = f"{learned['calls']} of {learned['calls_needed']} calls"
    return f"{needed}, {duration(learned['seconds'])} of {duration(learned['seconds_needed'])}"


def _learning(seen: Seen, *, with_service: bool = True) -> Told:
    """What an agent, and its service, still lack."""
    details = {"agent": _learned(seen.record["agent"]["past"], seen)}
    why = f"still learning: this agent {_progress(details['agent'])}"
    if with_service and seen.record["service"]["key"] != 0:
        details["service"] = _learned(seen.record["service"]["past"], seen)
        why += f"; its service {_progress(details['service'])}"
    return Told(why, details={"learning": details})


def _rate(seen: Seen) -> Told:
    config = seen.config.rate
    limits = {"warn": config.warn, "block": config.block}
    ladder = ", ".join(f"{action} from {limit}" for action, limit in limits.items() if limit)
    calls = f"{_count(seen.observed, 'call')} in {_window(config.window)}"
    return Told(
        f"{calls}, {ladder}" if ladder else f"{calls}; warn and block are both 0: off",
        observed=seen.observed if seen.looked else None,
        limit=seen.limit or float(config.warn or config.block) or None,
        window_s=config.window / SECOND_NS,
        details=limits,
    )


def _ring(seen: Seen, which: int) -> dict[str, Any]:
    """One resolution of `rate_shift`: its open bucket, and its limit if it has one."""
    shift, plan = seen.record["agent"]["shift"], seen.plan["rate_shift"]
    held = rate_shift.held_against(shift, plan, which, seen.record["call"])
    config = seen.config.rate_shift
    return held | {"min_calls": (config.min_calls_second, config.min_calls_minute)[which]}


def _words_of_ring(ring: dict[str, Any], unit: str, config: RateShiftConfig) -> str:
    calls = f"{_count(ring['calls'], 'call')} in this {unit}"
    if ring["usual"] is not None:
        return f"{calls}, limit {ring['limit']:g}, usual {ring['usual']:g}"
    buckets = f"{min(ring['buckets'], config.min_buckets)} of {config.min_buckets} earlier {unit}s"
    samples = f"{min(ring['samples'], config.min_samples)} of {config.min_samples} earlier calls"
    ceiling = "" if ring["limit"] is None else f", ceiling {ring['limit']:g}"
    return f"{calls}{ceiling}, no limit of its own yet ({buckets}, {samples})"


def _rate_shift(seen: Seen) -> Told:
    if seen.sign["skipped"] not in (JUDGED, COLD):
        return Told("")
    config, rings = seen.config.rate_shift, (_ring(seen, 0), _ring(seen, 1))
    words = [
        _words_of_ring(ring, unit, config)
        for ring, unit in zip(rings, ("second", "minute"), strict=True)
    ]
    nearest = max(rings, key=lambda ring: ring["calls"] / (ring["limit"] or float("inf")))
    cold = "still learning; " if seen.sign["skipped"] == COLD else ""
    return Told(
        cold + "; ".join(words),
        observed=float(nearest["calls"]),
        limit=nearest["limit"],
        baseline=nearest["usual"],
        window_s=nearest["window_s"],
        details={"second": rings[0], "minute": rings[1]},
    )


def _novelty(seen: Seen) -> Told:
    if seen.sign["skipped"] == COLD:
        return _learning(seen)
    why = f"a known tool: {_count(seen.observed, 'call')} so far"
    if seen.record["call"]["has_arguments"] == 0:
        why += "; no arguments are carried, so their names are not judged"
    return Told(why, observed=seen.observed if seen.looked else None)


def _burst(seen: Seen) -> Told:
    config = seen.config.burst
    limit, usual = seen.limit or float(config.threshold), float(seen.sign["usual"])
    why = f"{_count(seen.observed, 'call')} in {_window(config.window)}"
    return Told(
        f"{why}, says nothing below {limit / 2:g}, half its limit",
        observed=seen.observed if seen.looked else None,
        limit=limit,
        baseline=usual or None,
        window_s=config.window / SECOND_NS,
    )


def _frequency(seen: Seen) -> Told:
    config, past = seen.config.frequency, seen.record["agent"]["past"]
    share = 100.0 * config.share
    if seen.sign["skipped"] == COLD:
        told = _learning(seen, with_service=False)
        if seen.sign["observed"] == 0 and past["calls"] >= seen.config.learning.samples:
            few = f"{past['total']} of {config.min_calls} calls of known tools"
            told = told._replace(why=f"{told.why}; {few}")
        return told._replace(limit=share)
    if seen.limit == 0:
        return Told("a tool never used before has no share: novelty speaks of it", limit=share)
    why = f"this tool makes up {seen.observed:.3g} % of the agent's calls"
    return Told(f"{why}, rare below {seen.limit:.3g} %", observed=seen.observed, limit=seen.limit)


def _off_hours(seen: Seen) -> Told:
    config = seen.config.off_hours
    why = f"local hour {seen.observed:g}, off hours {config.start} to {config.end}"
    details = {"start": config.start, "end": config.end, "timezone": config.timezone}
    observed = seen.observed if seen.looked else None
    return Told(f"{why} ({config.timezone})", observed=observed, details=details)


def _risk(seen: Seen) -> Told:
    config = seen.config.risk
    why = f"none of {', '.join(PARTS_OF_RISK)} speaks"
    if seen.sign["skipped"] == COLD:
        why = f"still learning: {why}"
    details = {"warn": config.warn, "block": config.block, "action": config.action}
    return Told(why, observed=seen.observed, limit=config.warn, details=details)


def _loop(seen: Seen) -> Told:
    config = seen.config.loop
    window = _window(config.window)
    why = f"this call {_count(seen.observed, 'time')} in {window}"
    call = seen.record["call"]
    tells = "carries a result" if call["result"] != 0 else "carries no result"
    tells = "failed" if call["failed"] != 0 else tells
    ladder = f"{config.action} from {config.threshold}"
    if seen.limit and seen.limit < config.threshold:
        ladder = f"warn from {config.repeat}, {ladder}"
    return Told(
        f"{why}, {ladder}; it {tells}",
        observed=seen.observed if seen.looked else None,
        limit=seen.limit or float(config.threshold),
        window_s=config.window / SECOND_NS,
        details={"repeat": config.repeat, "threshold": config.threshold},
    )


def _destinations(seen: Seen) -> str:
    return _count(int(seen.record["call"]["destinations"]), "destination")


def _of_one(why: str, seen: Seen) -> Told:
    """A detector for which one is enough."""
    if not seen.looked:
        return Told(why)
    return Told(why, observed=seen.observed, limit=seen.limit or 1.0)


def _unknown_connection(seen: Seen) -> Told:
    listed = len(seen.config.unknown_connection.allow)
    why = f"{_destinations(seen)} in the arguments, no host beside the {listed} allowed"
    return _of_one(why, seen)


def _new_destination(seen: Seen) -> Told:
    if seen.sign["skipped"] == COLD:
        return _learning(seen)
    return _of_one(f"{_destinations(seen)} in the arguments, none of them new", seen)


def _credential_leak(seen: Seen) -> Told:
    config, here = seen.config.credential_leak, int(seen.record["call"]["secrets"])
    window = _window(config.window)
    secrets = f"{_count(seen.observed, 'secret')} in {window}"
    if seen.observed:
        secrets += f", {here} of them in this call"
    action = f"{config.action} from {config.threshold}"
    if seen.observed >= config.threshold and here == 0:
        action += ", told with a call that carries one"
    counted = seen.sign["window_s"] > 0
    return Told(
        f"{secrets}, {action}",
        observed=seen.observed if counted else None,
        limit=float(config.threshold),
        window_s=config.window / SECOND_NS,
    )


def _child_process(seen: Seen) -> Told:
    if seen.sign["skipped"] == COLD:
        return _learning(seen)
    if seen.record["call"]["starts_program"] == 0:
        return _of_one("the tool is none of those that start programs", seen)
    return _of_one("a program started before", seen)


def _data_exfiltration(seen: Seen) -> Told:
    call = seen.record["call"]
    details = {name: int(call[name]) for name in ("secrets", "personal", "personal_strong")}
    why = "neither secrets nor personal data in the arguments"
    if any(details.values()):
        data = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in details.items())
        why = f"{data}; too few, or none of {_destinations(seen)} is outside and no habit"
    details["destinations"] = int(call["destinations"])
    return _of_one(why, seen)._replace(details=details if seen.looked else {})


def _identity_spoofing(seen: Seen) -> Told:
    return _of_one("the credential presented belongs to the agent claimed", seen)


_KEPT_STILL: Final[dict[str, Callable[[Seen], Told]]] = {
    "rate": _rate,
    "rate_shift": _rate_shift,
    "novelty": _novelty,
    "burst": _burst,
    "frequency": _frequency,
    "off_hours": _off_hours,
    "risk": _risk,
    "loop": _loop,
    "unknown_connection": _unknown_connection,
    "new_destination": _new_destination,
    "credential_leak": _credential_leak,
    "child_process": _child_process,
    "data_exfiltration": _data_exfiltration,
    "identity_spoofing": _identity_spoofing,
}
"""What each says when it found nothing; of its findings the kernels tell the reason."""
