"""`data_exfiltration`: personal data or secrets in a call whose destination is outside.

Sees: a call that holds both what should not leave and where to: a public host or a mail domain that
is not among `inside`, or an account. From the first call on. Blind to: data in a form `content`
does not know, encoded, or in a file the call only names; a destination that is not in the
arguments; data and destination in two calls; an agent that first makes a stranger its habit.

    outside = destinations that are OUTSIDE and no habit of the agent
    hosts, accounts:  secrets + personal >= 1                    -> action
    mail only:        secrets + strong   >= 1  or  personal >= 3 -> action
    score 1 with secrets or strong data, else 0.8

Strong are card, account and national id numbers. Contact details in a mail are what mails are made
of: one or two say nothing, a list of them does. The address a mail goes to is not its content.

A habit is a destination that a warm agent has named in `HABIT` learned calls and not forgotten: a
newsletter service that gets addresses every day is no exfiltration. To meet a stranger once without
data does not make it one, so the bait call before the real one buys nothing. A call that was
stopped is not learned, so an attacker cannot make a habit of it either.

Source: Agent Assembly `DataExfiltrationAttempt`, which blocks personal data on any network request,
also to a host on its own list; here destination and content count together.

>>> from otel_anomaly.config import DataExfiltrationConfig
>>> from otel_anomaly.detectors.call import CALL
>>> from otel_anomaly.detectors.finding import SIGN
>>> from otel_anomaly.detectors.past import LEARNING, PAST
>>> own, learning = np.zeros(1, PAST)[0], np.zeros(1, LEARNING)[0]
>>> plan = make_plan(DataExfiltrationConfig())[0]
>>> call, sign = np.zeros(1, CALL)[0], np.zeros(1, SIGN)[0]
>>> call["has_arguments"] = call["destinations"] = call["personal"] = 1
>>> for bits in (HOST, HOST | OUTSIDE, MAIL | OUTSIDE):
...     call["destination_is"][0] = bits
...     score(own, learning, plan, call, sign)
...     print(ACTIONS[sign["action"]], float(sign["score"]))
allow 0.0
block 0.8
allow 0.0
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import DataExfiltrationConfig
from otel_anomaly.detectors import past
from otel_anomaly.detectors.finding import ACTIONS, JUDGED, NO_ARGUMENTS, OFF
from otel_anomaly.detectors.measure import measure
from otel_anomaly.detectors.silence import silence
from otel_anomaly.kernels import Int, Record, inlined, kernel
from otel_anomaly.otlp.content import ACCOUNT, HOST, MAIL, OUTSIDE

NAME: Final = "data_exfiltration"
CLAUSES: Final = (
    "secrets in a call to the outside: {observed}",
    "card, account or national id numbers in a call to the outside: {observed}",
    "personal data in a call to the outside: {observed}, limit {limit}",
)
SECRETS, STRONG, PERSONAL = np.arange(3)

HABIT: Final = 5
"""Learned calls after which a destination is one the agent is known for."""
CONTACTS = np.int64(3)
"""Personal data in a mail from which on they are a list, not a signature."""
ONE = np.int64(1)

PLAN = np.dtype([("enabled", "i8"), ("action", "i8")])


def make_plan(config: DataExfiltrationConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    plan["enabled"], plan["action"] = config.enabled, ACTIONS.index(config.action)
    return plan


@kernel
def _outside(own: Record, learning: Record, call: Record) -> Int:
    """Kinds, as bits, of the call's destinations that are outside and no habit; 0: none."""
    warm = not past.is_cold(own, learning, call["time_ns"])
    now_ns, forget_days = call["time_ns"], learning["forget_days"]
    kinds = np.int64(0)
    for i in range(call["destinations"]):
        bits = np.int64(call["destination_is"][i])
        if bits & OUTSIDE == 0:
            continue
        if warm:
            entry = past.find(own, past.DESTINATIONS, call["destination"][i], now_ns, forget_days)
            if entry >= 0 and past.uses(own, entry) >= HABIT:
                continue
        kinds |= bits
    return kinds


@inlined
def _weigh(call: Record, sign: Record, limit: Int) -> None:
    """Tell the gravest kind of data in the call, and its number against the limit."""
    if call["secrets"] > 0:
        measure(sign, call["secrets"], ONE)
        sign["variant"] = SECRETS
    elif call["personal_strong"] > 0:
        measure(sign, call["personal_strong"], ONE)
        sign["variant"] = STRONG
    else:
        measure(sign, call["personal"], limit)
        sign["variant"] = PERSONAL


@inlined
def score(own: Record, learning: Record, plan: Record, call: Record, sign: Record) -> None:
    """Judge one call, by the agent's past once it is warm."""
    silence(sign, OFF if plan["enabled"] == 0 else JUDGED)
    if plan["enabled"] == 0:
        return
    if call["has_arguments"] == 0:
        sign["skipped"] = NO_ARGUMENTS
        return
    if call["secrets"] + call["personal"] + call["personal_strong"] == 0:
        return
    kinds = _outside(own, learning, call)
    if kinds == 0:
        return
    only_mail = kinds & MAIL != 0 and kinds & (HOST | ACCOUNT) == 0
    _weigh(call, sign, CONTACTS if only_mail else ONE)
    if sign["observed"] >= sign["limit"]:
        sign["action"] = plan["action"]
        sign["score"] = 0.8 if sign["variant"] == PERSONAL else 1.0
