"""What leaves is not what came: redaction between the judge and the exporters.

A request is covered before anything else is done with it, so that one which cannot be is refused
and leaves no trace. It is judged as it came. The verdicts are then written into the covered bytes,
which are as many as the received ones; with `mode: remove`, what is covered is cut out at last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from otel_anomaly.otlp import redaction
from otel_anomaly.otlp.cutting import cut, remove
from otel_anomaly.otlp.redaction import make_redaction
from otel_anomaly.otlp.scan import LOGS
from otel_anomaly.otlp.splice import splice

if TYPE_CHECKING:
    from otel_anomaly.config import RedactConfig
    from otel_anomaly.otlp.scan import Columns
    from otel_anomaly.telemetry import Telemetry

_PERSONAL: Final = redaction.MAILS | redaction.PHONES | redaction.NUMBERS
_KINDS: Final = {
    "secrets": redaction.SECRETS,
    "personal_data": _PERSONAL,
    "mails": redaction.MAILS,
    "phones": redaction.PHONES,
    "numbers": redaction.NUMBERS,
}
_ONE_MAIL: Final = b"\n\x11\n\x0f\n\r\n\x01m\x12\x08\n\x06a@b.co"
"""A request: a resource with the attribute m."""


class Redactor:
    """Covers or removes what a configuration says. For one thread."""

    def __init__(self, config: RedactConfig, telemetry: Telemetry) -> None:
        kinds = 0
        for name in config.what:
            kinds |= _KINDS[name]
        self._redaction = make_redaction(kinds, config.keep)
        self._removes = config.mode == "remove"
        self._telemetry = telemetry

    def warm(self) -> None:
        """Compile what redaction needs, where it was off when the service started."""
        remove(_ONE_MAIL, redaction.TRACES, self._redaction)

    def cover(self, columns: Columns) -> Columns:
        """The same columns, with what may be forwarded; `body` itself when all of it may."""
        message = redaction.LOGS if columns.signal == LOGS else redaction.TRACES
        covered, count = redaction.redact(columns.body, message, self._redaction)
        self._telemetry.redacted_values.inc(count)
        return columns._replace(redacted=covered)

    def finish(
        self,
        columns: Columns,
        covered: bytes,
        keys: np.ndarray,
        blob: np.ndarray,
        ends: np.ndarray,
    ) -> bytes:
        """What is forwarded. `covered`: what `splice` made of these columns, blob and ends."""
        if not self._removes or columns.redacted is columns.body:
            return covered
        message = redaction.LOGS if columns.signal == LOGS else redaction.TRACES
        try:
            whole = splice(columns._replace(redacted=None), keys, blob, ends)
            return remove(cut(whole, covered, message, self._redaction), message, self._redaction)
        except Exception:  # noqa: BLE001 - nothing leaks from what is only covered.
            self._telemetry.redaction_failures.inc()
            return covered
