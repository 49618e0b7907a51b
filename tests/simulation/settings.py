"""Configurations of a simulated service: small queues, and any mood that the seed picks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_anomaly.config import Config
from tests.rig import ROOMY

if TYPE_CHECKING:
    import random

HOPS: dict[str, dict[str, Any]] = {
    "otlp_http/first": {"endpoint": "http://127.0.0.1:1"},
    "otlp_grpc/second": {"endpoint": "127.0.0.1:2"},
    "otlp_http/optional": {"endpoint": "http://127.0.0.1:3", "required": False},
}
OPTIONAL = "otlp_http/optional"
QUEUE_SIZES = (100_000, 200_000)
CONSUMERS = (1, 2, 4)


def hop_of(endpoint: str) -> str:
    """Whose endpoint it is, at whichever of its addresses."""
    port = endpoint.rpartition(":")[2]
    return next(name for name, hop in HOPS.items() if hop["endpoint"].endswith(f":{port[0]}"))


def config_for(rng: random.Random, lasting: dict[str, Any]) -> Config:
    """Any mood of batching, retrying, holding back, answering, remembering and being short of
    memory. `lasting` is what cannot change while the service runs: `storage`, `sending_queue`."""
    queue: dict[str, Any] = {
        "queue_size": rng.choice(QUEUE_SIZES),
        "num_consumers": rng.choice(CONSUMERS),
        "batch": {
            "max_size": rng.choice((500, 20_000, 60_000)),
            "flush_timeout": rng.choice(("0s", "200ms", "3s")),
        },
    }
    queue |= lasting["sending_queue"]
    retry = {"max_elapsed_time": rng.choice((0, "30s")), "enabled": rng.random() < 0.9}
    headers = {"x-version": rng.choice("ab")}
    shared = {"sending_queue": queue, "retry_on_failure": retry, "headers": headers}
    snapshots = lasting["storage"]["snapshots"] | {"interval": rng.choice(("1s", "60s"))}
    return Config.model_validate(
        {
            "exporters": {name: {**section, **shared} for name, section in HOPS.items()},
            "ack": rng.choice(("queued", "queued", "sent")),
            "identity": {"hold": rng.choice(("0s", "0s", "400ms", "5s")), "limits": _limits(rng)},
            "audit": {"enabled": False},  # The sinks have threads of their own, and own tests.
            "alerts": {"console": False},
            "storage": lasting["storage"] | {"snapshots": snapshots},
            "service": {
                "drain_timeout": rng.choice(("0s", "5s", "1h")),
                "memory": {
                    "limit_percentage": rng.choice((0, 80, 80)),
                    "limit": rng.choice((None, "64MiB")),
                    "check_interval": rng.choice(("100ms", "1s", "10s")),
                },
            },
        }
    )


def _limits(rng: random.Random) -> dict[str, int]:
    """Room enough that nothing has to be forgotten, in various sizes."""
    return ROOMY | {
        "agents": rng.choice((64, 64, 100, 300)),
        "sessions": rng.choice((256, 256, 300)),
        "spans": rng.choice((4096, 4096, 8192)),
        "moves": rng.choice((1024, 1024, 2048)),
    }


def changed(rng: random.Random, lasting: dict[str, Any]) -> Config:
    """Another configuration that a running service can go over to: next hops may have moved, the
    optional one may be gone."""
    plain = config_for(rng, lasting).model_dump(mode="json", exclude_none=True)
    for name, section in plain["exporters"].items():
        if rng.random() < 0.3:
            section["endpoint"] = f"{HOPS[name]['endpoint']}{rng.choice((0, 1))}"
    if rng.random() < 0.3:
        del plain["exporters"][OPTIONAL]
    return Config.model_validate(plain)
