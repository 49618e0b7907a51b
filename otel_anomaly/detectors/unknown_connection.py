"""`unknown_connection`: a call names a host that is not on the list of allowed ones.

Sees: a host among the arguments that no entry of `allow` covers: an exact name, a suffix, an
address or a network, each with a port or without. A host is seen in a URL wherever it stands, as a
whole value (`evil.com/x`), in a login (`me@evil.com:path`), behind a program that takes hosts
(`commands`), as `"//evil.com/x"`; and so is a bucket (`s3://bucket`), which is covered by an entry
of its own alone. Nothing is learned, so the first call counts. Names are compared as URL parsers
read them, so case, port, user part, trailing dot, punycode and odd spellings of addresses make no
difference.

Blind to: a bare name in running text or behind a program that is not known to take hosts; names
without a dot outside of URLs; hosts that do not stand in the arguments (a script that is run, a
name that resolves to another machine, a redirect); spans without arguments; the ninth and later
destinations of one call, of which listed hosts, paths and mails give way first.

    hosts of the call that are not listed > 0 -> action, score 1

An empty list is off: a list nobody wrote forbids nothing. Mail addresses are no connections:
`new_destination` and `data_exfiltration` look at those. Source: Agent Assembly
`UnknownExternalConnection`, whose comparison was exact, case-sensitive and undone by user parts.

>>> from otel_anomaly.config import UnknownConnectionConfig
>>> from otel_anomaly.detectors.call import CALL
>>> from otel_anomaly.detectors.finding import SIGN
>>> plan = make_plan(UnknownConnectionConfig(allow=("api.example.com",)))[0]
>>> call, sign = np.zeros(1, CALL)[0], np.zeros(1, SIGN)[0]
>>> call["has_arguments"], call["destinations"] = 1, 2
>>> call["destination_is"][:2] = HOST | LISTED, HOST
>>> score(plan, call, sign)
>>> float(sign["observed"]), ACTIONS[sign["action"]], float(sign["score"])
(1.0, 'block', 1.0)
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import UnknownConnectionConfig
from otel_anomaly.detectors.finding import ACTIONS, JUDGED, NO_ARGUMENTS, OFF
from otel_anomaly.detectors.measure import measure
from otel_anomaly.detectors.silence import silence
from otel_anomaly.kernels import Int, Record, inlined
from otel_anomaly.otlp.content import HOST, LISTED

NAME: Final = "unknown_connection"
CLAUSES: Final = ("the call names hosts that are not on the list of allowed hosts: {observed}",)

PLAN = np.dtype([("enabled", "i8"), ("listed", "i8"), ("action", "i8")])
LIMIT = np.int64(1)


def make_plan(config: UnknownConnectionConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    plan["enabled"], plan["action"] = config.enabled, ACTIONS.index(config.action)
    plan["listed"] = len(config.allow)
    return plan


@inlined
def _strange_hosts(call: Record) -> Int:
    """How many hosts of the call are not listed."""
    count = np.int64(0)
    for i in range(call["destinations"]):
        count += call["destination_is"][i] & (HOST | LISTED) == HOST
    return count


@inlined
def score(plan: Record, call: Record, sign: Record) -> None:
    """Judge one call."""
    silence(sign, JUDGED)
    if plan["enabled"] == 0 or plan["listed"] == 0:
        sign["skipped"] = OFF
        return
    if call["has_arguments"] == 0:
        sign["skipped"] = NO_ARGUMENTS
        return
    measure(sign, _strange_hosts(call), LIMIT)
    if sign["observed"] > 0:
        sign["action"], sign["score"] = plan["action"], 1.0
