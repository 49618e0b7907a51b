"""The detectors: every key, its default, its limits and what it does.

What a limit can never be is refused here, with the sum that shows it: a threshold that no call can
reach is a detector switched off without anybody knowing.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from otel_anomaly.config.conflicts import conflict
from otel_anomaly.config.patterns import Globs, Hosts, Names, TimeZone
from otel_anomaly.config.quantities import DAY_NS, SECOND_NS, Count, Duration, Ratio, duration_text
from otel_anomaly.config.reach import SIGNALS, unreachable
from otel_anomaly.config.section import Section

COUNT_MAX = 65535
"""What the counters of a ring hold: 16 bits."""
TOTAL_MAX = 16384
"""An agent's learned calls from which all its counts are halved: half of it is always there."""

Action = Literal["warn", "pause", "block"]


def _check_window(window: int, least_s: int, most_s: int, words: str) -> None:
    if window % SECOND_NS or not least_s * SECOND_NS <= window <= most_s * SECOND_NS:
        raise conflict(f"must be whole seconds from {words}", "window")


class LearningConfig(Section):
    """How long an agent is only learned about. It needs all of this before it is judged."""

    samples: Count = Field(default=50, ge=1, le=1_000_000)
    """Calls of an agent, none of which was paused or blocked."""
    time: Duration = 3600 * SECOND_NS
    """Time since its first call."""
    forget_after: Annotated[Duration, Field(ge=DAY_NS)] = 28 * DAY_NS
    """Tools, destinations and programs unused for so long are new again. Whole days."""

    @model_validator(mode="after")
    def _whole_days_beyond_learning(self) -> Self:
        if self.forget_after % DAY_NS:
            raise conflict("must be whole days", "forget_after")
        if self.forget_after <= self.time:
            after, time = duration_text(self.forget_after), duration_text(self.time)
            text = f"forget_after ({after}) must be more than time ({time})"
            raise conflict(text, "forget_after", "time")
        return self


class RateConfig(Section):
    """Calls of a session in the last window against two fixed limits, inclusive; 0 is off."""

    enabled: bool = True
    """Whether the detector runs."""
    scope: Literal["session", "agent", "user", "tenant"] = "session"
    """Whose calls are added up."""
    window: Duration = 60 * SECOND_NS
    """Length of the window: 1s to 60s, whole seconds."""
    warn: Count = Field(default=100, ge=0, le=COUNT_MAX)
    """Calls in the window from which the action is warn; 0 is off."""
    block: Count = Field(default=500, ge=0, le=COUNT_MAX)
    """Calls in the window from which the action is block; 0 is off."""

    @model_validator(mode="after")
    def _ladder(self) -> Self:
        _check_window(self.window, 1, 60, "1s to 60s")
        if self.warn and self.block and self.warn >= self.block:
            text = f"warn ({self.warn}) must be below block ({self.block}), or one of them 0"
            raise conflict(text, "warn", "block")
        return self


class RateShiftConfig(Section):
    """An agent's open bucket far above its own closed ones, at 1 s and at 60 s."""

    enabled: bool = True
    """Whether the detector runs."""
    k: Ratio = Field(default=3.0, gt=0, le=1000)
    """How many robust standard deviations above the median the limit lies."""
    ratio: Ratio = Field(default=2.0, ge=1, le=1000)
    """The limit is at least so many times the level reached in three closed buckets."""
    min_calls_second: Count = Field(default=30, ge=1, le=COUNT_MAX)
    """No one-second bucket below this is ever a shift."""
    min_calls_minute: Count = Field(default=500, ge=1, le=COUNT_MAX)
    """No one-minute bucket below this is ever a shift."""
    min_buckets: Count = Field(default=10, ge=3, le=59)
    """Closed buckets needed before a resolution judges: its learning time."""
    min_samples: Count = Field(default=10, ge=1, le=1_000_000)
    """Calls needed in the agent's past before anything is judged."""
    ceiling: Count = Field(default=6000, ge=0, le=COUNT_MAX)
    """Calls of an agent in one minute that are a shift whatever its past; 0 is off."""
    action: Action = "pause"
    """What a shift asks for."""

    @model_validator(mode="after")
    def _ceiling_above_floor(self) -> Self:
        if self.ceiling and self.ceiling < self.min_calls_minute:
            floor = self.min_calls_minute
            text = f"ceiling ({self.ceiling}) must be at least min_calls_minute ({floor}), or 0"
            raise conflict(text, "ceiling", "min_calls_minute")
        return self


class NoveltyConfig(Section):
    """A tool the agent never used, or a known tool with argument names never used. Into risk."""

    enabled: bool = True
    """Whether the detector runs."""


class BurstConfig(Section):
    """Calls of an agent in the last window against a limit, graded. Into risk."""

    enabled: bool = True
    """Whether the detector runs."""
    threshold: Count = Field(default=20, ge=2)
    """Calls in the window from which the score counts; twice as many are the full score."""
    window: Duration = 60 * SECOND_NS
    """Length of the window: 1s to 60s, whole seconds."""

    @model_validator(mode="after")
    def _counters_hold_it(self) -> Self:
        _check_window(self.window, 1, 60, "1s to 60s")
        if 2 * self.threshold > COUNT_MAX:
            text = f"its full score cannot be reached: a counter holds {COUNT_MAX} calls, "
            raise conflict(f"{text}2 x {self.threshold} = {2 * self.threshold}", "threshold")
        return self


class FrequencyConfig(Section):
    """A known tool that makes up a small share of the agent's calls. Into risk."""

    enabled: bool = True
    """Whether the detector runs."""
    min_calls: Count = Field(default=10, ge=1)
    """Calls of the agent, all tools, before a share says anything."""
    share: Ratio = Field(default=0.01, gt=0, le=0.5)
    """Share of the agent's calls below which a tool is rare, if also far under its fair share."""

    @model_validator(mode="after")
    def _counters_reach_it(self) -> Self:
        held = TOTAL_MAX // 2
        if self.min_calls > held:
            text = f"cannot be relied on: of an agent's past the last {held} to {TOTAL_MAX} calls"
            raise conflict(f"{text} count, {self.min_calls} are asked for", "min_calls")
        if self.share * held <= 1:
            text = f"cannot be reached: the smallest share is one call of {held} = {1 / held:.6f}"
            raise conflict(text, "share")
        return self


class OffHoursConfig(Section):
    """A call at night, by its own time. Into risk. Equal start and end: never; 0 to 24: always."""

    enabled: bool = True
    """Whether the detector runs."""
    start: Count = Field(default=22, ge=0, le=24)
    """Hour from which calls are off-hours; the night may pass midnight."""
    end: Count = Field(default=6, ge=0, le=24)
    """Hour from which they no longer are."""
    timezone: TimeZone = "UTC"
    """Whose hours: a name of the IANA database, like `Europe/Berlin`. Summer time is known."""


class RiskWeights(Section):
    """How much of each score counts: a share of what is left to 1."""

    novelty: Ratio = Field(default=0.6, ge=0, le=1)
    """Of `novelty`."""
    burst: Ratio = Field(default=0.8, ge=0, le=1)
    """Of `burst`."""
    frequency: Ratio = Field(default=0.15, ge=0, le=1)
    """Of `frequency`."""
    off_hours: Ratio = Field(default=0.15, ge=0, le=1)
    """Of `off_hours`."""


class RiskConfig(Section):
    """The four scores above in one: 1 - (1 - weight x score) x ... of each."""

    enabled: bool = True
    """Whether the detector runs."""
    weights: RiskWeights = RiskWeights()
    warn: Ratio = Field(default=0.5, gt=0, le=1)
    """Risk from which the action is warn."""
    block: Ratio = Field(default=0.8, gt=0, le=1)
    """Risk from which the action is block, when `action` is block."""
    action: Literal["warn", "block"] = "warn"
    """The strongest action it asks for."""

    @model_validator(mode="after")
    def _ladder(self) -> Self:
        if self.warn >= self.block:
            raise conflict(
                f"warn ({self.warn}) must be below block ({self.block})", "warn", "block"
            )
        return self


class LoopConfig(Section):
    """The same call again and again, or the same few in turn."""

    enabled: bool = True
    """Whether the detector runs."""
    threshold: Count = Field(default=50, ge=2, le=60000)
    """Repetitions in the window from which the action is the one below."""
    window: Duration = 300 * SECOND_NS
    """Length of the window: 10s to 1h, whole seconds."""
    repeat: Count = Field(default=10, ge=2, le=60000)
    """Repetitions from which the action is warn, when results repeat too or the calls fail."""
    # Left in, although they change from call to call: `timestamp`, `ts`, `trace_id`, `span_id`,
    # `call_id`. Tools for logs, traces and metrics are asked for things by them, so fifty calls
    # that differ in one are fifty questions. A client that only stamps its calls adds them here.
    volatile: Names = (
        "_meta",
        "checkpoint_ns",
        "correlation_id",
        "idempotencyKey",
        "idempotency_key",
        "langgraph_checkpoint_ns",
        "langgraph_step",
        "nonce",
        "progressToken",
        "requestId",
        "request_id",
        "requestid",
        "toolCallId",
        "tool_call_id",
        "traceparent",
        "tracestate",
    )
    """Arguments of these names make no difference between two calls, at any depth."""
    # Not `time` and `date`: of a clock or a calendar they are the result.
    volatile_results: Names = (
        "duration",
        "durationMs",
        "duration_ms",
        "elapsed",
        "elapsedMs",
        "elapsed_ms",
        "latency_ms",
        "pid",
        "requestId",
        "request_id",
        "timestamp",
        "took",
        "took_ms",
        "ts",
    )
    """Members of these names make no difference between two results, at any depth."""
    action: Action = "pause"
    """What a loop asks for."""

    @model_validator(mode="after")
    def _ladder(self) -> Self:
        _check_window(self.window, 10, 3600, "10s to 1h")
        if self.repeat > self.threshold:
            text = f"repeat ({self.repeat}) must be at most threshold ({self.threshold})"
            raise conflict(text, "repeat", "threshold")
        return self


class UnknownConnectionConfig(Section):
    """A host that is not on the list, anywhere in the arguments."""

    enabled: bool = True
    """Whether the detector runs."""
    allow: Hosts = ()
    """Hosts (`api.example.com`, `*.example.com`, `.example.com`, `10.0.0.0/8`, with or without a
    port) and buckets (`s3://bucket`) that may be named. Empty: the detector is off."""
    action: Action = "block"
    """What another host asks for."""


class NewDestinationConfig(Section):
    """A host, mail address, account or path root that the agent never named before."""

    enabled: bool = True
    """Whether the detector runs."""
    action: Action = "warn"
    """What it asks for."""


class CredentialLeakConfig(Section):
    """Keys, passwords and tokens in arguments, counted per agent."""

    enabled: bool = True
    """Whether the detector runs."""
    threshold: Count = Field(default=3, ge=1, le=COUNT_MAX)
    """Secrets in the window from which a call that carries one is a finding."""
    window: Duration = 3600 * SECOND_NS
    """Length of the window: 12s to 24h, a multiple of 12s."""
    action: Action = "warn"
    """What it asks for."""

    @model_validator(mode="after")
    def _twelfths(self) -> Self:
        if self.window % (12 * SECOND_NS) or not 12 * SECOND_NS <= self.window <= DAY_NS:
            raise conflict("must be 12s to 24h, a multiple of 12s", "window")
        return self


class ChildProcessConfig(Section):
    """A program started by a tool."""

    enabled: bool = True
    """Whether the detector runs."""
    mode: Literal["novel", "always"] = "novel"
    """`novel`: a program the agent never started before. `always`: any."""
    tools: Globs = (
        "*bash*",
        "*shell*",
        "*terminal*",
        "*execute_command*",
        "*run_command*",
        "*subprocess*",
        "exec",
        "exec_*",
        "cmd",
        "spawn_*",
        "start_process",
    )
    """Tools that start programs: patterns with `*` and `?`, case ignored."""
    arguments: Names = (
        "argv",
        "cmd",
        "cmdline",
        "command",
        "command_line",
        "executable",
        "full_command",
        "program",
    )
    """Arguments that say which program."""
    action: Action | None = None
    """What it asks for. Default: warn when novel, block when always."""


class DataExfiltrationConfig(Section):
    """Personal data or secrets in a call that goes outside."""

    enabled: bool = True
    """Whether the detector runs."""
    inside: Hosts = ()
    """Hosts, mail domains and buckets that are ours, written as for `unknown_connection.allow`.
    Private and local addresses are always inside."""
    action: Action = "block"
    """What it asks for."""


class IdentitySpoofingConfig(Section):
    """An agent that is not the owner of the credential presented. Needs `identity.owner`."""

    enabled: bool = True
    """Whether the detector runs."""
    action: Action = "warn"
    """What it asks for."""


class DetectorsConfig(Section):
    """One section per detector, and how long they learn."""

    learning: LearningConfig = LearningConfig()
    rate: RateConfig = RateConfig()
    rate_shift: RateShiftConfig = RateShiftConfig()
    novelty: NoveltyConfig = NoveltyConfig()
    burst: BurstConfig = BurstConfig()
    frequency: FrequencyConfig = FrequencyConfig()
    off_hours: OffHoursConfig = OffHoursConfig()
    risk: RiskConfig = RiskConfig()
    loop: LoopConfig = LoopConfig()
    unknown_connection: UnknownConnectionConfig = UnknownConnectionConfig()
    new_destination: NewDestinationConfig = NewDestinationConfig()
    credential_leak: CredentialLeakConfig = CredentialLeakConfig()
    child_process: ChildProcessConfig = ChildProcessConfig()
    data_exfiltration: DataExfiltrationConfig = DataExfiltrationConfig()
    identity_spoofing: IdentitySpoofingConfig = IdentitySpoofingConfig()

    @model_validator(mode="after")
    def _risk_can_be_reached(self) -> Self:
        risk, night = self.risk, self.off_hours
        able = [name for name in SIGNALS if getattr(self, name).enabled]
        if night.start == night.end and "off_hours" in able:
            able.remove("off_hours")
        if not risk.enabled or not able:  # Nothing to add up: as good as off, and said so.
            return self
        weights = risk.weights.model_dump()
        always = (night.start, night.end) == (0, 24)
        why = unreachable(
            weights, risk.warn, risk.block, risk.action, able=able, always_night=always
        )
        # While it is not asked for, `block` need only be possible: one may switch a signal off.
        if risk.action != "block":
            why = why or unreachable(weights, risk.warn, risk.block, "block")
        if why:
            keys = [("risk", why.split()[0]), ("risk", "weights"), ("risk", "action")]
            keys += [(name, "enabled") for name in SIGNALS if name not in able]
            raise conflict(f"risk.{why}", *keys)
        return self
