"""From a row to one call as the twins of the detectors see it.

Arguments and results are read by the kernel itself, which has a slow twin of its own: here it is
an oracle, so that what the judge makes of its answers can be compared to the bit.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from otel_anomaly.config import effective_detectors
from otel_anomaly.kernels import Array, Int, borrow, kernel
from otel_anomaly.otlp.arguments import ARGUMENTS, DESK, HASHING, LOOKING, read_value, scratch_size
from otel_anomaly.otlp.attributes import ANY, BOOL, INT, NONE, STRING
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.plans import make_plans
from otel_anomaly.policy import NAME_BYTES_MAX
from tests import naive_detectors_a
from tests.naive_identity import number
from tests.rig import SEED
from tests.wire_writer import varint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_anomaly.config import Config
    from tests.naive_identity import Person, Row

POLLING, BATCH = 1, 2
Call = dict[str, Any]


@kernel
def _read(
    data: Array, kind: Int, looking: Int, plan: Array, out: Array, desk: Array, text: Array
) -> None:
    data, plan, out = borrow(data), borrow(plan), borrow(out)
    size = np.int64(data.size)
    read_value(data, kind, np.int64(0), size, looking, plan[0], out[0], desk[0], borrow(text))


class Content:
    """Reads arguments and results as the judge does."""

    def __init__(self, config: Config) -> None:
        self._plans = make_plans(config, SEED).arguments
        self._desk = np.zeros(1, DESK)

    def read(self, value: Any, plan: int, looking: Int) -> np.void:
        kind, data = encoded(value)
        out = np.zeros(1, ARGUMENTS)
        text = np.zeros(scratch_size(len(data)), np.uint8)
        view = np.frombuffer(data, np.uint8)
        _read(view, np.int64(kind), looking, self._plans[plan : plan + 1], out, self._desk, text)
        result: np.void = out[0]
        return result


def encoded(value: Any) -> tuple[int, bytes]:
    """A value as it stands on the wire, and its kind."""
    if value is None:
        return NONE, b""
    if isinstance(value, str):
        return STRING, value.encode()
    match value.WhichOneof("value"):
        case "string_value":
            return STRING, value.string_value.encode()
        case "bool_value":
            return BOOL, varint(value.bool_value)
        case "int_value":
            return INT, varint(value.int_value)
        case _:
            return ANY, value.SerializeToString()


class Policy:
    """Whose limits apply to a call."""

    def __init__(self, config: Config) -> None:
        self.policy, self.sections = config.policy, effective_detectors(config)

    def plan(self, person: Person, tool: str | None) -> int:
        """0: the detectors section; 1 + i: override i, the first that matches."""
        for i, override in enumerate(self.policy.overrides):
            names = (person.who.tenant, person.who.agent, tool)
            lists = (override.tenant, override.agent, override.tool)
            if all(not g or matches(g, n) for g, n in zip(lists, names, strict=True)):
                return 1 + i
        return 0

    def exempt(self, tool: str | None) -> int:
        polling, batch = self.policy.polling_tools, self.policy.batch_tools
        return POLLING * matches(polling, tool) | BATCH * matches(batch, tool)

    def starts_program(self, tool: str | None, plan: int) -> bool:
        return tool is not None and matches(self.sections[plan].child_process.tools, tool)


def matches(globs: Iterable[str], name: str | None) -> bool:
    """Whether a name matches one of the patterns; a name not told is empty."""
    text = (name or "").encode()[:NAME_BYTES_MAX].decode(errors="ignore")
    return any(
        re.fullmatch(
            re.escape(glob).replace(r"\*", ".*").replace(r"\?", "."),
            text,
            re.DOTALL | re.IGNORECASE | re.ASCII,
        )
        for glob in globs
    )


def call_of(row: Row, person: Person, plan: int, content: Content, policy: Policy) -> Call:
    """A call as CALL has it, but for its time and whether it is fresh."""
    arguments = content.read(row.facts["arguments"], plan, LOOKING)
    result = content.read(row.facts["result"], plan, HASHING)
    tool, told, found = number(row.tool), bool(arguments["known"]), arguments["found"]
    count = int(found["destinations"])
    starts = policy.starts_program(row.tool, plan)
    fingerprint = int(arguments["fingerprint"])
    return {
        "tool": tool,
        "agent": number(person.who.agent),
        "owner": number(person.who.owner),
        "has_arguments": told,
        "fingerprint": of_tool(fingerprint, tool) if told else 0,
        "arguments": fingerprint,
        "names": int(arguments["names"]),
        "result": int(result["fingerprint"]),
        "failed": row.error or bool(result["failed"]),
        "program": int(arguments["program"]) * starts,
        "starts_program": starts,
        "exempt": policy.exempt(row.tool),
        "destinations": count,
        "destination": found["destination"][:count].tolist(),
        "destination_is": found["destination_is"][:count].tolist(),
        **{name: int(found[name]) for name in AMOUNTS},
    }


AMOUNTS = ("secrets", "credentials", "personal", "personal_strong")


def of_tool(fingerprint: int, tool: int) -> int:
    """The fingerprint of arguments to a tool, which is not always told."""
    return int(hash_two(fingerprint, tool, SEED)) if tool else fingerprint


def complete(call: Call, earlier: Call) -> None:
    """What an inner span of the call told, and the outer one does not."""
    nameless = not call["tool"]
    call["tool"] = call["tool"] or earlier["tool"]
    if nameless and call["tool"] and call["has_arguments"]:
        call["fingerprint"] = of_tool(call["fingerprint"], call["tool"])
    call["result"] = call["result"] or earlier["result"]
    call["failed"] = call["failed"] or earlier["failed"]
    if not call["has_arguments"]:
        content = ("has_arguments", "fingerprint", "names", "program", "destinations")
        found = ("destination", "destination_is", *AMOUNTS)
        call |= {name: earlier[name] for name in (*content, *found)}
        if call["has_arguments"] and not earlier["tool"]:
            call["fingerprint"] = of_tool(call["fingerprint"], call["tool"])


def for_risk(call: Call) -> naive_detectors_a.Told:
    """The same call as the twins of risk and its parts see it."""
    return naive_detectors_a.Told(
        time_ns=call["time_ns"],
        tool=call["tool"],
        names=call["names"] if call["has_arguments"] else None,
        destinations=tuple(call["destination"]),
        program=call["program"],
        exempt=bool(call["exempt"]),
        fresh=call["fresh"],
    )
