"""Names: what a hash stood for, as a person would write it."""

from __future__ import annotations

import numpy as np
import pytest

from otel_anomaly.entities.identity import NAME_BYTES
from otel_anomaly.entities.names import TEXT_BYTES_MAX, Caller, decode, entity
from otel_anomaly.otlp.attributes import BOOL, INT, STRING
from tests.book_rigs import BookRig, at
from tests.traffic import Agent, Value, tool_span
from tests.wire_writer import varint

NOBODY = Caller(None, None, None, None, None)


def decoded(value: bytes, kind: int) -> str:
    """`value` in the middle of other bytes, decoded."""
    data = np.frombuffer(b"\xff" + value + b"\xff", np.uint8)
    return decode(data, kind, 1, len(value))


def caller_of(*said: tuple[str, Value], resource: tuple[tuple[str, Value], ...] = ()) -> Caller:
    """Who made a call whose span says so."""
    rig = BookRig(identity={"owner": ["owner.id"]})
    rig.send(Agent(None).call(at(0), extra=said), resource=resource)
    return rig.calls[0].who


@pytest.mark.parametrize("letter", ["a", "\u00fc", "\u20ac", "\U0001f916"])
@pytest.mark.parametrize("before", range(4))
def test_long_names_are_cut_between_letters(letter: str, before: int) -> None:
    """
    Scenario: names of letters of one to four bytes, at every offset, around the limit.
    Guarantees: up to the limit a name is whole; beyond it, it is the longest head of whole letters
    that fits, and a mark.
    """
    size = len(letter.encode())
    for letters in range((TEXT_BYTES_MAX - before) // size - 1, TEXT_BYTES_MAX // size + 3):
        name = "x" * before + letter * letters
        told = decoded(name.encode(), STRING)
        if before + letters * size <= TEXT_BYTES_MAX:
            assert told == name
            continue
        assert told.endswith("...")
        head = told.removesuffix("...")
        assert name.startswith(head)
        assert TEXT_BYTES_MAX - size < len(head.encode()) <= TEXT_BYTES_MAX


@pytest.mark.parametrize("value", [0, 1, 7, 127, 128, 300, 2**63 - 1, -1, -(2**63)])
def test_numbers_are_told_as_numbers(value: int) -> None:
    """
    Scenario: a user that is a number, up to the ends of its range; as a varint longer than needed.
    Guarantees: the digits.
    """
    assert decoded(varint(value), INT) == str(value)
    assert decoded(varint(value, width=10), INT) == str(value)
    assert caller_of(("user.id", value)).user == str(value)


def test_truths_are_told_as_words() -> None:
    """
    Scenario: a user that is a truth value, also one written as a number that is not 1.
    Guarantees: `true` or `false`.
    """
    assert caller_of(("user.id", True)).user == "true"
    assert caller_of(("user.id", False)).user == "false"
    assert decoded(varint(2), BOOL) == "true"


def test_everyone_by_name() -> None:
    """
    Scenario: a span names all five; another names nobody, and neither does its resource.
    Guarantees: each name under its own heading; None where nothing is said, also for the tool.
    """
    everyone: tuple[tuple[str, Value], ...] = (
        ("tenant.id", "t"),
        ("gen_ai.agent.name", "a"),
        ("session.id", "s"),
        ("user.id", "u"),
        ("owner.id", "o"),
    )
    assert caller_of(*everyone) == Caller("t", "a", "s", "u", "o")
    assert caller_of() == NOBODY
    rig = BookRig()
    nameless = Agent(None).call(at(0), None)
    nameless.name = ""  # It would be told as the tool's.
    rig.send(nameless, Agent(None, seed=1).call(at(0), "send_mail"))
    assert [call.tool for call in rig.calls] == [None, "send_mail"]


def test_a_name_from_the_resource_or_a_weak_key() -> None:
    """
    Scenario: the tenant stands on the resource, and its service name is all that is known of the
    agent.
    Guarantees: both are told.
    """
    who = caller_of(resource=(("tenant.id", "t"), ("service.name", "desk")))
    assert who == Caller("t", "desk", None, None, None)


@pytest.mark.parametrize(
    ("session", "told"),
    [
        ("s-1", "s-1"),
        (7, "7"),
        (True, "true"),
        ("x" + "\u20ac" * NAME_BYTES, "x" + "\u20ac" * 31 + "..."),
    ],
)
def test_a_name_from_the_trace(session: Value, told: str) -> None:
    """
    Scenario: a call that says nothing of its session comes after one of its trace that does; the
    session is a text, a number, a truth value, a text longer than what is kept.
    Guarantees: the session is told from what is kept, in whole letters, and a cut is marked.
    """
    rig = BookRig()
    speaker, silent = Agent(None, seed=1), Agent(None, seed=2)
    silent.trace_id = speaker.trace_id
    rig.send(speaker.call(at(0), extra=[("session.id", session)]))
    rig.send(silent.call(at(1)))
    assert rig.calls[1].who == NOBODY._replace(session=told)


def test_ids_in_hex() -> None:
    """
    Scenario: a call is told.
    Guarantees: trace and span id as everybody writes them.
    """
    rig = BookRig()
    trace_id, span_id = bytes(range(16)), bytes(range(8, 16))
    span = tool_span(trace_id=trace_id, span_id=span_id, start_ns=1, end_ns=at(0), tool="t")
    rig.send(span)
    call = rig.calls[0]
    assert call.trace_id == "000102030405060708090a0b0c0d0e0f"
    assert call.span_id == "08090a0b0c0d0e0f"


@pytest.mark.parametrize(
    ("said", "scope", "name"),
    [
        ({"session": "x", "user": "u", "tenant": "t"}, "session", "session:x"),
        ({"user": "u", "tenant": "t"}, "session", "user:u"),
        ({"tenant": "t"}, "session", "tenant:t"),
        ({}, "session", "anon"),
        ({"session": "x", "user": "u"}, "agent", "agent:a"),
        ({"session": "x", "user": "u"}, "user", "user:u"),
        ({"session": "x", "tenant": "t"}, "tenant", "tenant:t"),
    ],
)
def test_an_entity_with_its_kind(said: dict[str, str], scope: str, name: str) -> None:
    """
    Scenario: the scopes of `rate`, and what stands in when a call does not say.
    Guarantees: the entity of a finding is named by kind and name; nobody is `anon`.
    """
    rig = BookRig(detectors={"rate": {"warn": 1, "block": 0, "scope": scope}})
    rig.send(Agent("a", **said).call(at(0)))
    assert rig.findings[0].entity == name


def test_kinds_of_the_same_name() -> None:
    """
    Scenario: a session, a user and a tenant of one name.
    Guarantees: three entities.
    """
    who = Caller("x", "x", "x", "x", None)
    assert len({entity(kind, who) for kind in range(1, 6)}) == 5
