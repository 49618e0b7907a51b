"""The end of a process that does not come to its end by itself."""

from __future__ import annotations

import threading

import pytest

from otel_anomaly.last_resort import LastResort


def test_it_ends_what_does_not_end(capsys: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: it is armed, and nobody disarms it.
    Guarantees: the last words are said, then the process ends with the code.
    """
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    LastResort(end).arm(0.01, 4, lambda: "stopped by force: next: held 3\n")
    assert ended.wait(60)
    assert codes == [4]
    assert capsys.readouterr().err == "stopped by force: next: held 3\n"


def test_it_ends_even_without_last_words(capsys: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: the words cannot be found.
    Guarantees: the process ends all the same.
    """
    codes: list[int] = []
    with pytest.raises(ZeroDivisionError):
        LastResort(codes.append)._give_up(4, lambda: str(1 // 0))
    assert codes == [4]
    assert capsys.readouterr().err == ""


def test_a_stop_in_time_is_left_alone() -> None:
    """
    Scenario: it is disarmed in time, and once more; a stop that never began.
    Guarantees: nothing happens, and no thread is left.
    """
    codes: list[int] = []
    before = threading.active_count()
    last_resort = LastResort(codes.append)
    last_resort.disarm()
    last_resort.arm(600, 4, str)
    timer = last_resort._timer
    assert timer is not None
    assert timer.daemon
    last_resort.disarm()
    last_resort.disarm()
    timer.join(60)
    assert threading.active_count() == before
    assert codes == []
