"""`child_process`: a tool starts a program, always or one this agent never started before.

Sees: calls of the tools that start programs (`tools` of its configuration), and in mode `novel` by
which program: the name in the arguments the configuration tells. Blind to: programs started by a
program that was, or by a tool nobody named; in mode `novel` also to what a known program is made to
do (`bash -c ...` is one program), to an agent still cold whose service is cold too, and to calls
that do not say which program: those are reported as `not_told`.

    always: any program                            -> block, score 1
    novel:  a program the past does not hold       -> warn, score 0.6

`action` takes the place of both. Mode `always` needs no arguments and no learning. A program is
learned with the call that starts it unless the verdict reached `pause`; the service speaks for an
agent that is cold. When the memory for programs is full of ones in use the detector is silent and
says so.

Source: Agent Assembly `ChildProcessExecution`, which blocks every program, so that an agent whose
work is the shell cannot be watched; here that is the mode `always`.

>>> from otel_anomaly.config import ChildProcessConfig
>>> from otel_anomaly.detectors.call import CALL
>>> from otel_anomaly.detectors.finding import SIGN
>>> from otel_anomaly.detectors.past import LEARNING, PAST
>>> plan = make_plan(ChildProcessConfig(mode="always"))[0]
>>> unknown, learning = np.zeros(1, PAST)[0], np.zeros(1, LEARNING)[0]
>>> call, sign = np.zeros(1, CALL)[0], np.zeros(1, SIGN)[0]
>>> call["starts_program"] = 1
>>> score(unknown, unknown, learning, plan, call, sign)
>>> ACTIONS[sign["action"]], float(sign["score"])
('block', 1.0)
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import ChildProcessConfig
from otel_anomaly.detectors import past
from otel_anomaly.detectors.finding import (
    ACTIONS,
    BLOCK,
    COLD,
    FULL,
    JUDGED,
    NO_ARGUMENTS,
    NOT_TOLD,
    OFF,
    WARN,
)
from otel_anomaly.detectors.measure import measure
from otel_anomaly.detectors.silence import silence
from otel_anomaly.kernels import Record, inlined, kernel

NAME: Final = "child_process"
CLAUSES: Final = (
    "the tool started a program, where none is to be started",
    "the tool started a program that this agent has not started lately, after {usual} calls",
    "the tool started a program no agent of this service has started lately, after {usual} calls",
)
ANY, OF_AGENT, OF_SERVICE = np.arange(3)

PLAN = np.dtype([("enabled", "i8"), ("always", "i8"), ("action", "i8")])
LIMIT = np.int64(1)


def make_plan(config: ChildProcessConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    always = config.mode == "always"
    plan["enabled"], plan["always"] = config.enabled, always
    plan["action"] = BLOCK if always else WARN
    if config.action is not None:
        plan["action"] = ACTIONS.index(config.action)
    return plan


@inlined
def _compare(known: Record, learning: Record, plan: Record, call: Record, sign: Record) -> None:
    """Look up the program in one past."""
    entry = past.find(
        known, past.PROGRAMS, call["program"], call["time_ns"], learning["forget_days"]
    )
    new = np.int64(1) if entry == past.NOT_KNOWN else np.int64(0)
    measure(sign, new, LIMIT)
    sign["usual"] = known["calls"]
    if new > 0:
        sign["action"], sign["score"] = plan["action"], 0.6
    elif entry == past.NO_ROOM:
        sign["skipped"] = FULL


@kernel
def score(
    own: Record, peers: Record, learning: Record, plan: Record, call: Record, sign: Record
) -> None:
    """Judge one call by the agent's past, or by its service's while the agent is cold."""
    silence(sign, OFF if plan["enabled"] == 0 else JUDGED)
    if plan["enabled"] == 0 or call["starts_program"] == 0:
        return
    if plan["always"] != 0:
        measure(sign, LIMIT, LIMIT)
        sign["action"], sign["score"], sign["variant"] = plan["action"], 1.0, ANY
    elif call["has_arguments"] == 0:
        sign["skipped"] = NO_ARGUMENTS
    elif call["program"] == 0:
        sign["skipped"] = NOT_TOLD
    elif not past.is_cold(own, learning, call["time_ns"]):
        _compare(own, learning, plan, call, sign)
        sign["variant"] = OF_AGENT
    elif not past.is_cold(peers, learning, call["time_ns"]):
        _compare(peers, learning, plan, call, sign)
        sign["variant"] = OF_SERVICE
    else:
        sign["skipped"] = COLD
