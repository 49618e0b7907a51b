"""Who made a call: the attribute keys that say so, and how much is remembered of everybody.

The lists are those of the instrumentations in use, the convention's own first. Frameworks put what
an application tells them under a prefix of their own, in the spelling that the application chose,
so those keys are every prefix with every spelling.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from otel_anomaly.config.conflicts import conflict
from otel_anomaly.config.patterns import Names
from otel_anomaly.config.quantities import DAY_NS, SECOND_NS, Count, Duration
from otel_anomaly.config.section import Section

_KEYS_MAX, _KEY_BYTES_MAX = 48, 256

_PREFIXES = (
    "langsmith.metadata.",
    "traceloop.association.properties.",
    "ai.telemetry.metadata.",
    "ai.settings.context.",
    "langfuse.trace.metadata.",
    "metadata.",
)


def _spelt(*spellings: str) -> tuple[str, ...]:
    """Every spelling under every prefix."""
    return tuple(prefix + spelling for prefix in _PREFIXES for spelling in spellings)


class EntityLimits(Section):
    """How much is remembered. Each is a number of rows; beyond it the longest idle go."""

    agents: Count = Field(default=65536, ge=1, le=1 << 24)
    """Agents with a past of their own."""
    services: Count = Field(default=4096, ge=1, le=1 << 20)
    """Services with a past, which speaks for their agents while these are new."""
    sessions: Count = Field(default=131072, ge=1, le=1 << 24)
    """Sessions with counters of their own."""
    traces: Count = Field(default=65536, ge=1, le=1 << 24)
    """Traces whose identity is remembered for spans that come later."""
    spans: Count = Field(default=131072, ge=1, le=1 << 26)
    """Spans remembered, so that one delivered twice, and nested ones of one call, count once."""
    moves: Count = Field(default=65536, ge=1, le=1 << 24)
    """Calls remembered to be moved to the right agent when the trace tells it later."""
    episodes: Count = Field(default=65536, ge=1, le=1 << 24)
    """Episodes open at a time; beyond it the one open longest ends for a new one."""
    labels: Count = Field(default=65536, ge=1, le=1 << 24)
    """Names of tenants, agents and tools whose patterns are remembered as matched."""
    agent_idle: Annotated[Duration, Field(gt=0)] = 30 * DAY_NS
    """An agent silent for so long may be forgotten at any time."""
    session_idle: Annotated[Duration, Field(gt=0)] = 3600 * SECOND_NS
    """A session silent for so long may be forgotten at any time."""
    agent_keep: Duration = 600 * SECOND_NS
    """An agent seen within this time is never evicted: newcomers share the overflow row."""
    session_keep: Duration = 60 * SECOND_NS
    """A session seen within this time is never evicted: newcomers share the overflow row."""

    @model_validator(mode="after")
    def _kept_no_longer_than_idle(self) -> Self:
        if self.agent_keep > self.agent_idle:
            raise conflict("agent_keep must be at most agent_idle", "agent_keep", "agent_idle")
        if self.session_keep > self.session_idle:
            text = "session_keep must be at most session_idle"
            raise conflict(text, "session_keep", "session_idle")
        return self


class IdentityConfig(Section):
    """Who made a call. Attribute keys in order of preference: span, then resource, then trace."""

    tenant: tuple[str, ...] = (
        "tenant.id",
        "microsoft.tenant.id",
        "organization.id",
        *_spelt("tenant_id", "tenant", "org_id"),
        "service.namespace",
    )
    """Keys of the tenant."""
    agent: tuple[str, ...] = (
        "gen_ai.agent.name",
        "agent.name",
        "agent_name",
        "langsmith.metadata.lc_agent_name",
        "traceloop.association.properties.lc_agent_name",
        "metadata.lc_agent_name",
        "ai.telemetry.functionId",
        "gen_ai.main_agent.name",
        "microsoft.gen_ai.main_agent.name",
        "microsoft.a365.agent.blueprint.id",
        "fastmcp.server.name",
        "service.name",
    )
    """Keys of the agent. Not `gen_ai.agent.id`: several frameworks make it anew for every process.
    Add it, and to `weak`, where yours is kept."""
    # Not `mcp.session.id`, which some servers make anew for every call, and not
    # `langsmith.trace.session_name`, which is a project.
    session: tuple[str, ...] = (
        "gen_ai.conversation.id",
        "session.id",
        "microsoft.session.id",
        "gcp.vertex.agent.session_id",
        "conversation.id",
        "spring.ai.chat.client.conversation.id",
        *_spelt("session_id", "sessionId", "thread_id", "threadId"),
    )
    """Keys of the session. None found: for `rate` the user, the tenant, then `anon` stand in; for
    `loop` the trace."""
    user: tuple[str, ...] = (
        "enduser.id",
        "user.id",
        "microsoft.agent.user.id",
        "user.email",
        "user.account_uuid",
        "user.account_id",
        "enduser.pseudo.id",
        "gen_ai.user",
        *_spelt("user_id", "userId"),
    )
    """Keys of the user."""
    owner: tuple[str, ...] = ()
    """Keys naming whom the presented credential belongs to."""
    weak: tuple[str, ...] = (
        "service.namespace",
        "fastmcp.server.name",
        "service.name",
    )
    """Keys of the above that count only when span, resource and trace hold none of the others."""
    placeholders: Names = ("OpenAI Agent", "agent", "unknown", "default")
    """Agents of these names have none: some instrumentations write them for every agent."""
    hold: Annotated[Duration, Field(le=60 * SECOND_NS)] = 0
    """How long a request waits when a call in it does not itself tell agent and session. 0: it is
    judged at once by what is known, and its counts move when the names come with a later span."""
    limits: EntityLimits = EntityLimits()

    @field_validator("tenant", "agent", "session", "user", "owner", "weak")
    @classmethod
    def _keys_are_sound(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if len(keys) > _KEYS_MAX or len(set(keys)) != len(keys):
            raise ValueError(f"must be at most {_KEYS_MAX} keys, each once")
        if any(not key or len(key.encode()) > _KEY_BYTES_MAX for key in keys):
            raise ValueError(f"must be keys of 1 to {_KEY_BYTES_MAX} bytes")
        return keys

    @model_validator(mode="after")
    def _weak_keys_are_used(self) -> Self:
        used = {*self.tenant, *self.agent, *self.session, *self.user, *self.owner}
        if stray := set(self.weak) - used:
            raise conflict(f"names keys that no identity uses: {', '.join(sorted(stray))}", "weak")
        return self
