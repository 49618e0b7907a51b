"""What a configuration comes to for the judge: compiled, and exchanged as one.

A request that is scanned by one set of rules is judged and written by the same: whoever holds
columns across an await compares `keys` and scans again when they are others by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from otel_anomaly.otlp.dialects import compile_keys
from otel_anomaly.plans import make_plans
from otel_anomaly.verdict import make_texts

if TYPE_CHECKING:
    import numpy as np

    from otel_anomaly.config import Config
    from otel_anomaly.state import Plans


class Rules(NamedTuple):
    """A compiled configuration."""

    config: Config
    plans: Plans
    keys: np.ndarray
    """KEYS [1]."""
    texts: np.ndarray
    """TEXTS [1]."""


def make_rules(config: Config, seed: int) -> Rules:
    """Compile. `seed`: secret of all hashes. Raises ValueError for what only this can tell."""
    who = config.identity
    keys = compile_keys(
        (who.tenant, who.agent, who.session, who.user, who.owner),
        who.weak,
        prefix=config.annotate.prefix,
        seed=seed,
        placeholders=who.placeholders,
        lenient=config.dialects.lenient,
    )
    texts = make_texts(
        config.annotate.prefix,
        all_signals=config.annotate.signals == "all",
        keys=(who.tenant, who.agent, who.session, who.user),
    )
    return Rules(config, make_plans(config, seed), keys, texts)
