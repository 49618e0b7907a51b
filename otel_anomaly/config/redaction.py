"""Redaction: which secrets and personal data are taken out of what is forwarded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from otel_anomaly.config.patterns import Names
from otel_anomaly.config.section import Section

Redacted = Literal["secrets", "personal_data", "mails", "phones", "numbers"]


class RedactConfig(Section):
    """What is taken out of forwarded spans and log records. Judging sees all that came."""

    enabled: bool = False
    """Whether anything is."""
    what: Annotated[tuple[Redacted, ...], Field(min_length=1, max_length=5)] = (
        "secrets",
        "personal_data",
    )
    """`secrets`; `personal_data`, which is `mails`, `phones` and `numbers` (of cards, accounts and
    citizens); or some of these three."""
    mode: Literal["mask", "remove"] = "mask"
    """`mask`: each byte becomes a star, lengths stay. `remove`: one star stands for all of it."""
    keep: Names = ()
    """Attributes that are never redacted, by key: `user.email` where dashboards go by it."""
