"""`credential_leak`: an agent's calls carry secrets in their arguments, several times in a while.

Sees: keys, tokens, passwords and private keys among the arguments, wherever they go: to a program,
a file, a form, a search box. Blind to: secrets of a form `content` does not know, encoded or cut
into pieces; spans without arguments; fewer than `threshold` in a `window`. Where a secret leaves
for a strange destination at once, `data_exfiltration` says so.

    row:   | 1 | 0 | 0 | 2 | .. |   secrets in 12 sub-windows of window / 12

    total = sum over the window, this call's included;  total >= threshold -> action

Only a call that itself carries a secret is a finding: the clean call after it says nothing, though
it is told the total. The same secret in two calls counts twice: it left twice. The score is
1 - threshold / (2 * total): 0.5 at the threshold, towards 1 above.

Counters are 16 bits; what goes beyond 65535 in a sub-window is not counted. Source: Agent Assembly
`CredentialLeakAttempt`, whose counter never fell while the agent was active, so that three secrets
in three months were an alarm; this one forgets after `window`.

>>> from otel_anomaly.config import CredentialLeakConfig
>>> from otel_anomaly.detectors.call import CALL
>>> from otel_anomaly.detectors.finding import ACTIONS, SECOND_NS, SIGN
>>> plan, state = make_plan(CredentialLeakConfig(threshold=2))[0], np.zeros(1, STATE)[0]
>>> call, sign = np.zeros(1, CALL)[0], np.zeros(1, SIGN)[0]
>>> call["has_arguments"] = call["fresh"] = 1
>>> for now_s, secrets in ((10_000, 1), (10_060, 1), (10_061, 0), (14_000, 1)):
...     call["time_ns"], call["secrets"] = now_s * SECOND_NS, secrets
...     score(state, plan, call, sign)
...     learn(state, plan, call, False)
...     print(float(sign["observed"]), ACTIONS[sign["action"]], float(sign["score"]))
1.0 allow 0.0
2.0 warn 0.5
2.0 allow 0.0
1.0 allow 0.0
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import CredentialLeakConfig
from otel_anomaly.detectors.finding import ACTIONS, JUDGED, LATE, NO_ARGUMENTS, OFF, SECOND_NS
from otel_anomaly.detectors.measure import measure
from otel_anomaly.detectors.silence import silence
from otel_anomaly.detectors.subwindows import number_of
from otel_anomaly.kernels import Int, Record, inlined, kernel

NAME: Final = "credential_leak"
CLAUSES: Final = ("secrets in the agent's arguments in {window} s: {observed}, limit {limit}",)

SUBWINDOWS: Final = 12
COUNT_MAX: Final = 65535

PLAN = np.dtype(
    [
        ("enabled", "i8"),
        ("threshold", "i8"),
        ("action", "i8"),
        ("subwindow_ns", "i8"),
        ("window_s", "f8"),
    ]
)
STATE = np.dtype(
    [
        ("subwindow_ns", "i8"),  # What the ring is cut into.
        ("head", "i8"),  # Number of the newest sub-window seen.
        ("counts", "u2", (SUBWINDOWS,)),
    ],
    align=True,
)


def make_plan(config: CredentialLeakConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    plan["enabled"], plan["action"] = config.enabled, ACTIONS.index(config.action)
    plan["threshold"] = config.threshold
    plan["subwindow_ns"] = config.window // SUBWINDOWS
    plan["window_s"] = config.window / SECOND_NS
    return plan


@inlined
def _bring_up(state: Record, plan: Record, call: Record) -> Int:
    """Move the ring up to a call, if that is newer. Returns the number of the call's sub-window."""
    if state["subwindow_ns"] != plan["subwindow_ns"]:
        # Cut for another window, before the configuration changed: it says nothing here.
        subwindow = call["time_ns"] // plan["subwindow_ns"]
        state["subwindow_ns"], state["head"] = plan["subwindow_ns"], subwindow - SUBWINDOWS
    subwindow = number_of(call["time_ns"], plan["subwindow_ns"], state["head"])
    passed = min(subwindow - state["head"], np.int64(SUBWINDOWS))
    for back in range(passed):
        state["counts"][(subwindow - back) % SUBWINDOWS] = 0
    state["head"] = max(np.int64(state["head"]), subwindow)
    return subwindow


@kernel
def score(state: Record, plan: Record, call: Record, sign: Record) -> None:
    """Judge one call of an agent."""
    silence(sign, OFF if plan["enabled"] == 0 else JUDGED)
    if plan["enabled"] == 0:
        return
    subwindow = _bring_up(state, plan, call)
    sign["window_s"] = plan["window_s"]
    if subwindow <= state["head"] - SUBWINDOWS:
        sign["skipped"] = LATE
        return
    total = np.int64(call["secrets"]) if call["fresh"] != 0 else np.int64(0)
    for place in range(SUBWINDOWS):
        total += state["counts"][place]
    measure(sign, total, plan["threshold"])
    if call["has_arguments"] == 0:
        sign["skipped"] = NO_ARGUMENTS
    elif call["secrets"] > 0 and total >= plan["threshold"]:
        sign["action"] = plan["action"]
        sign["score"] = 1.0 - plan["threshold"] / (2.0 * total)


@kernel
def learn(state: Record, plan: Record, call: Record, alarmed: bool) -> None:  # noqa: ARG001 -- Counts go on: a leak does not end by being seen.
    """Count the secrets of a call, also one that another agent was thought to have made."""
    if plan["enabled"] == 0 or call["secrets"] == 0:
        return
    subwindow = _bring_up(state, plan, call)
    if subwindow > state["head"] - SUBWINDOWS:
        place = subwindow % SUBWINDOWS
        total = np.int64(state["counts"][place]) + call["secrets"]
        state["counts"][place] = min(total, np.int64(COUNT_MAX))


@kernel
def unlearn(state: Record, plan: Record, call: Record) -> None:
    """Take back the secrets of a call that is another agent's."""
    subwindow = call["time_ns"] // plan["subwindow_ns"]
    outside = subwindow > state["head"] or subwindow <= state["head"] - SUBWINDOWS
    if outside:
        return
    place = subwindow % SUBWINDOWS
    left = np.int64(state["counts"][place]) - call["secrets"]
    state["counts"][place] = max(left, np.int64(0))
