"""Metrics are checked as Google's own parser would, and not read."""

from __future__ import annotations

import random

import pytest
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from otel_anomaly.handoff import Outcome, Signal
from otel_anomaly.otlp.metrics import is_metrics
from tests.conformance.requests import metrics, with_unknown_fields
from tests.rig import Rig
from tests.test_wire import mutated


def parses(body: bytes) -> bool:
    try:
        ExportMetricsServiceRequest.FromString(body)
    except DecodeError:
        return False
    return True


@pytest.mark.parametrize("seed", range(400))
def test_agrees_with_the_parser(seed: int) -> None:
    """
    Scenario: metrics of every kind with a few bytes changed, dropped or doubled.
    Guarantees: refused exactly when protobuf refuses them.
    """
    body = mutated(random.Random(seed), metrics().SerializeToString())
    assert is_metrics(body) == parses(body)


def test_cut_at_every_byte() -> None:
    """
    Scenario: the same, and with fields from the future, cut at each byte.
    Guarantees: as protobuf has it, and the whole is taken.
    """
    for body in (metrics().SerializeToString(), with_unknown_fields(metrics())):
        assert is_metrics(body)
        for end in range(len(body)):
            assert is_metrics(body[:end]) == parses(body[:end])


def test_broken_metrics_reserve_nothing() -> None:
    """
    Scenario: metrics that are cut short, then whole ones.
    Guarantees: refused for good before room is asked for; the whole ones go on as the same object.
    """
    rig, body = Rig(), metrics().SerializeToString()
    reply = rig.offer(body[:-1], signal=Signal.METRICS)
    assert (reply.outcome, rig.room.asked) == (Outcome.MALFORMED, [])
    assert "desk" not in reply.message
    assert rig.offer(body, signal=Signal.METRICS).outcome is Outcome.ACCEPTED
    assert rig.room.payloads[-1].body is body
