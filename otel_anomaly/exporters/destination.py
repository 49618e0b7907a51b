"""Before anything is sent: does the next hop's address lead back to us?"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from otel_anomaly.config import own_door

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LOOKUP_S: Final = 3.0
"""For a name service that does not answer. The start must not hang on it: a next hop that cannot
be found is not an error either."""


async def refuse_own_doors(urls: Iterable[str], doors: Sequence[str]) -> None:
    """Look the addresses up.

    Raises
    ------
    ValueError
        One leads to a door of this process. Names the door.
    """
    for url in urls:
        lookup = asyncio.to_thread(own_door, url, doors)
        try:
            door = await asyncio.wait_for(lookup, LOOKUP_S)
        except TimeoutError:
            continue
        if door is not None:
            raise ValueError(
                f"the endpoint leads to our own door {door}: every span would come back for ever"
            )
