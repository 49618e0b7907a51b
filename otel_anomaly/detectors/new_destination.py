"""`new_destination`: an agent names a host, mail address, account or path it never named before.

Sees: where an agent reaches that it never reached, once it is known: also the first destination of
an agent that never named one. Blind to: spans without arguments; an agent still cold whose service
is cold too; destinations it already has, whatever goes there; a stranger met while it was cold; the
ninth and later destinations of one call. An agent whose telemetry begins to carry arguments when it
is warm already names everything for the first time once.

    new = destinations of the call that the past does not hold, or has forgotten
    new > 0 -> action, score 0.6; 0.5 when all of them are paths

A path says less than the others: agents walk through folders, and only its first parts count.
A destination is learned with the call that names it unless the verdict reached `pause`, so it is
new once, and new again after `forget_after`. While the agent is cold its service speaks for it: a
replica is held against what all of them named. When its memory for destinations is full of ones in
use the detector is silent and says so; before that, each one that filled it was a finding.

Source: none of the three systems this replaces has it; `novelty` is its like for tools.

>>> from otel_anomaly.config import NewDestinationConfig
>>> from otel_anomaly.detectors.call import CALL
>>> from otel_anomaly.detectors.finding import SECOND_NS, SIGN, SKIP_REASONS
>>> from otel_anomaly.detectors.past import LEARNING, PAST
>>> plan, own, call = make_plan(NewDestinationConfig())[0], np.zeros(1, PAST)[0], np.zeros(1, CALL)
>>> learning, sign = np.zeros(1, LEARNING)[0], np.zeros(1, SIGN)[0]
>>> learning["samples"], learning["forget_days"] = 2, 28
>>> for now_s, host in ((100, 7), (101, 7), (102, 7), (103, 8), (104, 8)):
...     call["time_ns"], call["has_arguments"], call["destinations"] = now_s * SECOND_NS, 1, 1
...     call["destination"][0, 0], call["destination_is"][0, 0] = host, HOST
...     score(own, own, learning, plan, call[0], sign)
...     past.learn(own, learning, call[0])
...     print(SKIP_REASONS[sign["skipped"]], ACTIONS[sign["action"]], float(sign["score"]))
learning allow 0.0
learning allow 0.0
 allow 0.0
 warn 0.6
 allow 0.0
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import NewDestinationConfig
from otel_anomaly.detectors import past
from otel_anomaly.detectors.finding import (
    ACTIONS,
    COLD,
    FULL,
    JUDGED,
    NO_ARGUMENTS,
    OFF,
)
from otel_anomaly.detectors.measure import measure
from otel_anomaly.detectors.silence import silence
from otel_anomaly.kernels import Record, inlined, kernel
from otel_anomaly.otlp.content import ACCOUNT, HOST, MAIL

NAME: Final = "new_destination"
CLAUSES: Final = (
    "the call leads where this agent has not been lately, after {usual} calls: {observed} new",
    (
        "the call leads where no agent of this service has been lately, after {usual} calls:"
        " {observed} new"
    ),
)
OF_AGENT, OF_SERVICE = np.arange(2)

PLAN = np.dtype([("enabled", "i8"), ("action", "i8")])
LIMIT = np.int64(1)


def make_plan(config: NewDestinationConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    plan["enabled"], plan["action"] = config.enabled, ACTIONS.index(config.action)
    return plan


@inlined
def _compare(known: Record, learning: Record, plan: Record, call: Record, sign: Record) -> None:
    """Look up each destination in one past."""
    now_ns, forget_days = call["time_ns"], learning["forget_days"]
    count, worst, full = np.int64(0), 0.0, False
    for i in range(call["destinations"]):
        entry = past.find(known, past.DESTINATIONS, call["destination"][i], now_ns, forget_days)
        full = full or entry == past.NO_ROOM
        if entry == past.NOT_KNOWN:
            count += 1
            strong = call["destination_is"][i] & (HOST | MAIL | ACCOUNT) != 0
            worst = max(worst, 0.6 if strong else 0.5)
    measure(sign, count, LIMIT)
    sign["usual"] = known["calls"]
    if count > 0:
        sign["action"], sign["score"] = plan["action"], worst
    elif full:
        sign["skipped"] = FULL


@kernel
def score(
    own: Record, peers: Record, learning: Record, plan: Record, call: Record, sign: Record
) -> None:
    """Judge one call by the agent's past, or by its service's while the agent is cold."""
    silence(sign, JUDGED)
    if plan["enabled"] == 0:
        sign["skipped"] = OFF
    elif call["has_arguments"] == 0:
        sign["skipped"] = NO_ARGUMENTS
    elif not past.is_cold(own, learning, call["time_ns"]):
        _compare(own, learning, plan, call, sign)
    elif not past.is_cold(peers, learning, call["time_ns"]):
        _compare(peers, learning, plan, call, sign)
        sign["variant"] = OF_SERVICE
    else:
        sign["skipped"] = COLD
