"""`identity_spoofing`: a call claims another agent than the one its credential belongs to.

Sees: a span whose agent differs from the owner of the credential presented with it, when the
telemetry carries both (`identity.owner`). Blind to: telemetry without an owner, which is reported
as `not_told`; a stolen credential used under its owner's name; an exporter that writes both itself:
the owner is worth as much as whoever vouches for it, so let the gateway set it.

    owner told, agent told, owner != agent -> action, score 0.7

Source: Agent Assembly `CrossAgentIdentitySpoofing`, whose live path handed over no owner, so that
it never ran; a detector that cannot run here is counted as skipped with the reason.

>>> from otel_anomaly.config import IdentitySpoofingConfig
>>> from otel_anomaly.detectors.call import CALL
>>> from otel_anomaly.detectors.finding import SIGN
>>> plan = make_plan(IdentitySpoofingConfig())[0]
>>> call, sign = np.zeros(1, CALL)[0], np.zeros(1, SIGN)[0]
>>> for call["agent"], call["owner"] in ((7, 7), (7, 8), (7, 0)):
...     score(plan, call, sign)
...     print(ACTIONS[sign["action"]], float(sign["score"]), int(sign["skipped"] == NOT_TOLD))
allow 0.0 0
warn 0.7 0
allow 0.0 1
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import IdentitySpoofingConfig
from otel_anomaly.detectors.finding import ACTIONS, JUDGED, NOT_TOLD, OFF
from otel_anomaly.detectors.measure import measure
from otel_anomaly.detectors.silence import silence
from otel_anomaly.kernels import Record, inlined

NAME: Final = "identity_spoofing"
CLAUSES: Final = ("the credential presented belongs to another than the agent claimed",)

PLAN = np.dtype([("enabled", "i8"), ("action", "i8")])
LIMIT = np.int64(1)


def make_plan(config: IdentitySpoofingConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    plan["enabled"], plan["action"] = config.enabled, ACTIONS.index(config.action)
    return plan


@inlined
def score(plan: Record, call: Record, sign: Record) -> None:
    """Judge one call."""
    silence(sign, JUDGED)
    if plan["enabled"] == 0:
        sign["skipped"] = OFF
    elif call["owner"] == 0 or call["agent"] == 0:
        sign["skipped"] = NOT_TOLD
    else:
        measure(sign, np.int64(0) if call["owner"] == call["agent"] else LIMIT, LIMIT)
        if sign["observed"] > 0:
            sign["action"], sign["score"] = plan["action"], 0.7
