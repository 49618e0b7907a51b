"""The configuration as the kernels read it: one record a detector and override."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from otel_anomaly.config import effective_detectors
from otel_anomaly.detectors.finding import BLOCK, WARN
from otel_anomaly.entities import identity
from otel_anomaly.otlp.arguments import compile_arguments
from otel_anomaly.otlp.content import make_content_plan
from otel_anomaly.policy import compile_patterns
from otel_anomaly.scoring import make_limits
from otel_anomaly.state import PLAN, Plans

if TYPE_CHECKING:
    from otel_anomaly.config import Config, DetectorsConfig

_SCOPE_KINDS = {
    "tenant": identity.OF_TENANT,
    "agent": identity.OF_AGENT,
    "session": identity.OF_SESSION,
    "user": identity.OF_USER,
}


def make_plans(config: Config, seed: int) -> Plans:
    """All of it. Raises ValueError for what only the compilation can tell."""
    plan = np.zeros(1, PLAN)
    plan["seed"], plan["scope"] = seed, _SCOPE_KINDS[config.detectors.rate.scope]
    plan["skew_ns"], plan["hold_ns"] = config.policy.max_clock_skew, config.alerts.hold
    plan["clear"] = config.alerts.clear
    plan["action_max"] = WARN if config.policy.mode == "observe" else BLOCK
    plan["overrides"] = len(config.policy.overrides)
    sections = effective_detectors(config)
    patterns = compile_patterns(config)
    return Plans(
        judge=plan,
        limits=make_limits(sections),
        arguments=np.concatenate([_plan_of_arguments(section, seed) for section in sections]),
        patterns=np.concatenate(
            [patterns.tenant, patterns.agent, patterns.tool, patterns.programs]
        ),
    )


def rules_of(plans: Plans) -> str:
    """Names what limits are worked out by: a digest of the sections of all detectors."""
    return hashlib.sha256(plans.limits.tobytes()).hexdigest()


def _plan_of_arguments(detectors: DetectorsConfig, seed: int) -> np.ndarray:
    content = make_content_plan(
        seed, detectors.unknown_connection.allow, detectors.data_exfiltration.inside
    )
    return compile_arguments(
        seed=seed,
        content=content,
        volatile=detectors.loop.volatile,
        volatile_results=detectors.loop.volatile_results,
        programs=detectors.child_process.arguments,
    )
