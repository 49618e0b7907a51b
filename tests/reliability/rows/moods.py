"""Next hop flapping, slow, resetting, answering every retryable and every permanent code, garbage
and 4 GiB: the ledger adds up to the span in each case.

One service, two exporters to the same hop, one mood after the other. After each mood the hop is
well again and the queues drain, so that the books can be closed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.e2e.service_process import wait_until
from tests.reliability.children import Hop, Ledger, Load, Service
from tests.reliability.figures import Figure
from tests.reliability.trial import (
    GRPC,
    HTTP,
    SMALL,
    Trial,
    compare,
    for_a_while,
    load_on,
    running,
    sections,
    settle,
)

FOUR_GIB = 4 << 30
HTTP_CODES = (429, 502, 503, 504, 400, 401, 403, 404, 405, 413, 415, 422, 500, 501, 505, 302)
GRPC_CODES = tuple(range(1, 17))
EXPORTERS = {"http": HTTP, "grpc": GRPC}


class Case(NamedTuple):
    """One mood of both faces of the hop."""

    name: str
    http: dict[str, Any]
    grpc: dict[str, Any]


def both(name: str, **mood: Any) -> Case:
    return Case(name, mood, mood)


def codes() -> list[Case]:
    """Every code, one of each kind at a time."""
    calm: dict[str, Any] = {"kind": "ok"}
    cases = []
    for index in range(max(len(HTTP_CODES), len(GRPC_CODES))):
        http, grpc, names = calm, calm, []
        if index < len(HTTP_CODES):
            http = {"kind": "status", "code": HTTP_CODES[index]}
            names.append(f"HTTP {HTTP_CODES[index]}")
        if index < len(GRPC_CODES):
            grpc = {"kind": "status", "code": GRPC_CODES[index]}
            names.append(f"gRPC {GRPC_CODES[index]}")
        cases.append(Case(" / ".join(names), http, grpc))
    hint = {"kind": "status", "retry_after": 1}
    cases.append(Case("503 / 8 with a hint", {**hint, "code": 503}, {**hint, "code": 8}))
    return cases


def cases(trial: Trial) -> list[Case]:
    """All of them; in the short form one of each kind."""
    kinds = [
        both("down", kind="down"),
        both("flapping", kind="flap", s=0.3),
        both("slow", kind="slow", s=0.5),
        both("slower than the timeout", kind="slow", s=3),
        both("silent", kind="silent"),
        both("resetting", kind="reset"),
        both("forgetful", kind="forget"),
        both("garbage", kind="garbage"),
        both("4 GiB", kind="huge", bytes=FOUR_GIB),
        both("part of it", kind="partial"),
        both("mixed", kind="mixed"),
    ]
    if trial.full:
        return [*kinds, *codes()]
    return [kinds[1], kinds[5], kinds[6], kinds[8], kinds[10], codes()[0], codes()[2]]


def run(trial: Trial) -> list[Figure]:
    """How many moods leave books that do not add up: none."""
    # A request is given up when its retries have lasted so long, so that this has an end.
    patience = {"max_elapsed_time": f"{trial.size(1, 4):.0f}s"}
    seconds = trial.size(1.0, 6.0)
    rate = trial.size(100, 300)
    told: dict[str, str] = {}
    with Hop(SMALL, trial.seed) as hop:
        exporter = {"retry_on_failure": patience, "timeout": "1s"}
        config = sections(hop, grpc=True, exporter=exporter)
        with (
            running(trial.folder, config) as service,
            load_on(service, rate, spans=SMALL, agents=100_000) as load,
        ):
            load.ask(do="rate", value=0)
            for case in cases(trial):
                told[case.name] = _one(case, hop, service, load, seconds)
            load.stop()
            wrong = _close(trial, hop, service, load)
    failed = {name: text for name, text in told.items() if not text.startswith("adds up")}
    return [
        Figure(
            "moods",
            "moods of the next hop after which a ledger does not add up",
            len(failed) + len(wrong),
            "moods",
            limit=0,
            details={"moods": len(told), "wrong": wrong or failed or "none", **told},
        )
    ]


def _one(case: Case, hop: Hop, service: Service, load: Load, seconds: float) -> str:
    """A mood and its end, under load. What became of the spans, in words."""
    before = {name: service.ledger(exporter) for name, exporter in EXPORTERS.items()}
    hop.ask(do="mood", transport="http", mood=case.http)
    hop.ask(do="mood", transport="grpc", mood=case.grpc)
    load.ask(do="rate", value=load.plan.rate)
    for_a_while(seconds)
    hop.mood("ok")
    load.ask(do="rate", value=0)
    wait_until(lambda: load.ask(do="totals")["under_way"] == 0, "the clients", 60)
    said = []
    for name, exporter in EXPORTERS.items():
        settle(service, exporter, 120)
        now = service.ledger(exporter)
        if not now.adds_up:
            said.append(f"{name} DOES NOT: {now}")
        gone = Ledger(*(after - start for after, start in zip(now, before[name], strict=True)))
        said.append(f"{name} {gone.accepted} = {gone.sent} sent + {gone.dropped} dropped")
    told = "; ".join(said)
    return told if "DOES NOT" in told else f"adds up: {told}"


def _close(trial: Trial, hop: Hop, service: Service, load: Load) -> list[str]:
    """Compare span by span. Returns what is wrong."""
    wrong = []
    known, taken = load.arrays(trial.folder), hop.arrays(trial.folder)
    for name, exporter in EXPORTERS.items():
        ledger = service.ledger(exporter)
        compared = compare(known, taken[f"{name}_counts"], SMALL)
        if compared.lost > ledger.dropped:
            wrong.append(f"{name}: {compared.lost} lost, {ledger.dropped} reported as dropped")
        if compared.leaked:
            wrong.append(f"{name}: {compared.leaked} refused and sent on all the same")
        if ledger.accepted < compared.accepted:
            wrong.append(f"{name}: {compared.accepted} told OK, {ledger.accepted} counted")
    return wrong
