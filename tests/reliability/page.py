"""docs/reliability.md, written from the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.reliability.figures import notes, places, table

if TYPE_CHECKING:
    from tests.reliability.figures import Figure

INTRO = """# Reliability: what was tried, and what came of it

Written by `make reliability`; do not edit. Each row but fuzz runs the real process between a load
generator that remembers what became of every request and a next hop that counts every span, each a
process of its own. *Full* is the trial as long as it should be, or cut by the `scale` that stands
beside it; *short* is the form that `make test` runs: it shows that nothing is grossly wrong, and
its wall-clock figures are told and not judged. They stand beside a peer measured in the same run:
machines are shared, so compare the two rather than either with another machine.

What no real process can show in a reasonable time, an ordering of events that happens once in a
million, is looked for in `tests/simulation`: the whole service in one thread under virtual time,
`SIM_SEEDS=1000 pytest tests/simulation`.
"""


WHERE = """The load is that of the machine as the row began, beside the trial: 1.0 is a core that
others had.
"""


def page(figures: list[Figure]) -> str:
    """The whole page."""
    return (
        f"{INTRO}\n## Figures\n\n{table(figures)}\n\n## Details\n\n{notes(figures)}\n\n"
        f"## Conditions\n\n{WHERE}\n{places(figures)}\n"
    )
