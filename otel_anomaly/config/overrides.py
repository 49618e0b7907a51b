"""Other limits for some calls: the detectors section once more for each override.

An override says only what differs. It is laid over the detectors section as a second file would
be, and the whole is checked like a section of its own, so a ladder that is ordered in the base and
in the override cannot be disordered together.

Windows and scopes are the same for all: a ring of counters has one width, whoever adds to it.

An override that does nothing is a mistake nobody would notice, so it is refused: one that an
earlier one leaves no call for, and one that changes nothing. What looks like the latter and is not:
an exception. `tool: run_sql` with nothing changed, ahead of an override for `agent: ci-*`, keeps
the calls that match both at the ordinary limits.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from otel_anomaly.config.conflicts import CONFLICT, conflict
from otel_anomaly.config.detectors import DetectorsConfig
from otel_anomaly.config.globs import covers, meet
from otel_anomaly.config.patterns import PATTERNS_MAX, Globs
from otel_anomaly.config.section import Section
from otel_anomaly.config.yaml_text import dotted, merged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_anomaly.config.models import Config

OVERRIDES_MAX = 60
"""Each is a bit of a number, beside two for the classes of tools."""
OVERRIDES = "overrides"
"""Type of the error that carries those of all overrides."""
_WHO = ("tenant", "agent", "tool")
_ANY = ("*",)
_SAME_FOR_ALL = (
    ("rate", "scope"),
    ("rate", "window"),
    ("burst", "window"),
    ("loop", "window"),
    ("credential_leak", "window"),
)


def _nothing_is_empty(value: object) -> object:
    return {} if value is None else value


class OverrideConfig(Section):
    """Limits for calls that all of the given patterns match."""

    tenant: Globs = ()
    """Patterns of the tenant; left out: any."""
    agent: Globs = ()
    """Patterns of the agent; left out: any."""
    tool: Globs = ()
    """Patterns of the tool; left out: any."""
    detectors: Annotated[dict[str, Any], BeforeValidator(_nothing_is_empty)]
    """What differs from `detectors`. Windows and scopes cannot: they are one for all calls."""

    @field_validator("tenant", "agent", "tool")
    @classmethod
    def _a_list_names_some(cls, globs: tuple[str, ...]) -> tuple[str, ...]:
        if not globs:
            raise ValueError("must name a pattern; leave the key out where any name will do")
        return globs

    @model_validator(mode="after")
    def _some_pattern(self) -> Self:
        if not (self.tenant or self.agent or self.tool):
            raise conflict("at least one of tenant, agent and tool must be given")
        return self


def effective_detectors(config: Config) -> list[DetectorsConfig]:
    """The detectors section, then as each override makes it."""
    base = config.detectors
    return [base, *(_overridden(base, override) for override in config.policy.overrides)]


def _overridden(base: DetectorsConfig, override: OverrideConfig) -> DetectorsConfig:
    """`base` in the form of a file, with `override` on top."""
    return DetectorsConfig.model_validate(merged(base.model_dump(mode="json"), override.detectors))


def check_overrides(config: Config) -> None:
    """Refuse overrides that make a section which could not stand alone."""
    errors: list[ErrorDetails] = []
    sections: list[DetectorsConfig] = []
    for i, override in enumerate(config.policy.overrides):
        place = ("policy", "overrides", i, "detectors")
        try:
            section = _overridden(config.detectors, override)
        except ValidationError as error:
            found = error.errors(include_url=False)
            errors += [{**details, "loc": (*place, *details["loc"])} for details in found]
        else:
            errors += _differences(place, config.detectors, section)
            sections.append(section)
    if not errors:
        errors += _without_effect(config, sections)
    if errors:
        text = "; ".join(f"{dotted(error['loc'])}: {error['msg']}" for error in errors)
        raise PydanticCustomError(OVERRIDES, "{text}", {"text": text, "errors": errors})
    _check_room(config)


def _differences(
    place: tuple[str | int, ...], base: DetectorsConfig, section: DetectorsConfig
) -> Iterator[ErrorDetails]:
    """What an override may not change."""
    for detector, key in _SAME_FOR_ALL:
        value = getattr(getattr(section, detector), key)
        if value != getattr(getattr(base, detector), key):
            text = f"is the same for all calls: set detectors.{detector}.{key} instead"
            context = {"message": text, "keys": ((detector, key),)}
            yield {"type": CONFLICT, "loc": place, "msg": text, "input": value, "ctx": context}


def _without_effect(config: Config, sections: list[DetectorsConfig]) -> Iterator[ErrorDetails]:
    """Overrides that no call ever gets to, and those that change nothing."""
    overrides = config.policy.overrides
    for i, override in enumerate(overrides):
        first = next((j for j in range(i) if _matches_all(overrides[j], override)), None)
        later = range(i + 1, len(overrides))
        if first is not None:
            text = f"never applies: policy.overrides[{first}] comes first and matches all it does"
        elif sections[i] == config.detectors and not any(
            sections[j] != config.detectors and _may_meet(override, overrides[j]) for j in later
        ):
            text = "changes nothing: these calls have the same limits without it"
        else:
            continue
        context = {"message": text, "keys": ((),)}
        place = ("policy", "overrides", i)
        yield {"type": CONFLICT, "loc": place, "msg": text, "input": override, "ctx": context}


def _matches_all(earlier: OverrideConfig, later: OverrideConfig) -> bool:
    """Whether every call that `later` matches is matched by `earlier`. None given: any name."""
    return all(
        any(covers(wide, narrow) for wide in getattr(earlier, who) or _ANY)
        for who in _WHO
        for narrow in getattr(later, who) or _ANY
    )


def _may_meet(one: OverrideConfig, other: OverrideConfig) -> bool:
    """Whether some call is matched by both."""
    return all(
        any(
            meet(glob, against)
            for glob in getattr(one, who) or _ANY
            for against in getattr(other, who) or _ANY
        )
        for who in _WHO
    )


def _check_room(config: Config) -> None:
    """Patterns of one kind are one table: together they must fit into it."""
    policy = config.policy
    lists = {
        f"patterns of {who}s": [getattr(override, who) for override in policy.overrides]
        for who in ("tenant", "agent", "tool")
    }
    lists["patterns of tools"] += [policy.polling_tools, policy.batch_tools]
    sections = effective_detectors(config)
    lists["child_process.tools"] = [section.child_process.tools for section in sections]
    for what, globs in lists.items():
        count = len(set(chain.from_iterable(globs)))
        if count > PATTERNS_MAX:
            text = f"{count} different {what} in all, at most {PATTERNS_MAX} fit"
            raise conflict(text, ("policy", "overrides"))
