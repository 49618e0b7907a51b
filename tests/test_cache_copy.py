"""Copies of the kernel cache: made, and what a killed process left of them is removed."""

from __future__ import annotations

import os
import tempfile
import time
from typing import TYPE_CHECKING

from otel_anomaly import cache_copy
from otel_anomaly.cache_copy import PREFIX, remove_abandoned, writable_copy

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_what_a_killed_process_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a cache is copied twice, as two processes would; one of them is killed. Beside them
    lie a copy made just now, a link with such a name, and a folder of somebody else's.
    Guarantees: the next start removes the abandoned copy alone; copies are whole, and private.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    for folder in (cache, elsewhere):
        folder.mkdir()
        (folder / "kernel.nbc").write_bytes(b"code")
    killed = writable_copy(cache)
    assert killed is not None
    assert (killed / "kernel.nbc").read_bytes() == b"code"
    assert killed.stat().st_mode & 0o777 == 0o700
    os.close(cache_copy._LOCKS.pop())  # What the system does.
    used = writable_copy(cache)
    assert used is not None
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    remove_abandoned(tmp_path)
    assert killed.exists()  # As young as one that another process just makes.
    later = time.time() + 2 * cache_copy.YOUNG_S
    monkeypatch.setattr(time, "time", lambda: later)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 4711)
        remove_abandoned(tmp_path)
        assert killed.exists()
    remove_abandoned(tmp_path)
    assert not killed.exists()
    assert (used / "kernel.nbc").exists()
    assert (elsewhere / "kernel.nbc").exists()
    os.close(cache_copy._LOCKS.pop())


def test_no_room_for_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: there is no folder for a copy; then the machine has none for anything temporary, as
    with a read-only root and no /tmp.
    Guarantees: none, without an error: kernels are then compiled anew, and the log says why.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert writable_copy(tmp_path) is None

    def nowhere() -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    assert writable_copy(tmp_path) is None
    told = f"the kernels in {tmp_path} are of no use, all is compiled anew: "
    assert [told in message for message in caplog.messages] == [True, True]
    assert "no usable temporary directory" in caplog.messages[-1]
