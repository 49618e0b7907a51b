"""The memory limit: where it comes from, what counts, and when requests may come in again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from otel_anomaly.config import MemoryConfig
from otel_anomaly.handoff import Outcome, Signal
from otel_anomaly.memory import LOG_EVERY_S, RELIEF_EVERY_S, Bound, MemoryFiles, MemoryLimiter
from otel_anomaly.telemetry import PREFIX, Telemetry
from tests.door_rigs import StandingClock
from tests.service_rigs import calls, running

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def system(root: Path, *, cgroup: str = "", **files: str) -> MemoryFiles:
    """The files of a machine of 8 GiB whose process takes 100 MiB. `files`: others, `__` is `/`."""
    texts = {
        "proc/meminfo": "MemTotal:        8388608 kB\nMemFree:  1 kB\n",
        "proc/self/status": "Name:\tpython\nVmRSS:\t  102400 kB\n",
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{path.replace('__', '/')}": text for path, text in files.items()},
    }
    for path, text in texts.items():
        # A name of a keyword has no dot; the files of a cgroup begin with `memory.`.
        name = path.replace("/memory_", "/memory.")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return MemoryFiles(root)


def test_the_machine(tmp_path: Path) -> None:
    """
    Scenario: no cgroup has a limit; or there is nothing that the kernel tells.
    Guarantees: the process is held against the machine; without anything there is no limit.
    """
    machine = Bound(8192 * MIB, 100 * MIB, "machine")
    assert system(tmp_path).bound() == machine
    unlimited = system(tmp_path, cgroup="0::/a\n", a__memory_max="max\n", a__memory_current="5\n")
    assert unlimited.bound() == machine
    assert MemoryFiles(tmp_path / "nothing").bound() == Bound(0, 0, "machine")


def test_cgroup_v2(tmp_path: Path) -> None:
    """
    Scenario: nested groups, of which the outer one has the tighter limit; file cache in use.
    Guarantees: the tightest counts, with its own use, less the cache that can be thrown away.
    """
    files = system(
        tmp_path,
        cgroup="0::/pod/box\n",
        pod__memory_max=f"{512 * MIB}\n",
        pod__memory_current=f"{400 * MIB}\n",
        pod__memory_stat=f"anon 1\nfile 7\ninactive_file {150 * MIB}\nactive_file 3\n",
        pod__box__memory_max=f"{1024 * MIB}\n",
        pod__box__memory_current=f"{300 * MIB}\n",
        pod__box__memory_stat="inactive_file 0\n",
    )
    assert files.bound() == Bound(512 * MIB, 250 * MIB, "cgroup")


def test_cgroup_v2_in_a_container(tmp_path: Path) -> None:
    """
    Scenario: the path of the group is one outside, of which nothing is mounted here; or it points
    out of the mount.
    Guarantees: what is mounted is the container's own group, and its limit counts.
    """
    for number, group in enumerate(("/outside/box", "/../../box", "/")):
        files = system(
            tmp_path / str(number),
            cgroup=f"0::{group}\n",
            memory_max=f"{256 * MIB}\n",
            memory_current=f"{200 * MIB}\n",
            memory_stat=f"inactive_file {20 * MIB}\n",
        )
        assert files.bound() == Bound(256 * MIB, 180 * MIB, "cgroup")


def test_cgroup_v1(tmp_path: Path) -> None:
    """
    Scenario: the older hierarchy, whose root has the number that means no limit.
    Guarantees: the limit below it counts, less the cache of the whole group.
    """
    files = system(
        tmp_path,
        cgroup="9:name=systemd:/\n4:cpu,memory:/docker/x\n1:cpu:/y\n0::/\n",
        memory__memory_limit_in_bytes="9223372036854771712\n",
        memory__memory_usage_in_bytes="999\n",
        memory__docker__x__memory_limit_in_bytes=f"{300 * MIB}\n",
        memory__docker__x__memory_usage_in_bytes=f"{290 * MIB}\n",
        memory__docker__x__memory_stat=f"inactive_file 5\ntotal_inactive_file {90 * MIB}\n",
    )
    assert files.bound() == Bound(300 * MIB, 200 * MIB, "cgroup")


@pytest.mark.parametrize("odd", ["", "nonsense", "-5", "1.5", "\u0663", "9" * 40, "\x00"])
def test_odd_files(tmp_path: Path, odd: str) -> None:
    """
    Scenario: a limit that is no number, is negative, or is larger than any memory.
    Guarantees: it is as if it were not there.
    """
    files = system(tmp_path, cgroup=f"0::/\n{odd}\n", memory_max=odd, memory_current=odd)
    assert files.bound() == Bound(8192 * MIB, 100 * MIB, "machine")


def test_this_machine() -> None:
    """
    Scenario: the real files of the machine that runs the tests.
    Guarantees: the process takes some memory, and there is more of it than that.
    """
    files = MemoryFiles()
    assert files.resident() > MIB
    bound = files.bound()
    assert bound.limit > bound.used > 0


class Files(MemoryFiles):
    """Says what a test wants."""

    def __init__(self, used: int, limit: int = 1000 * MIB) -> None:
        self.used, self.limit, self.reads = used, limit, 0

    def bound(self) -> Bound:
        self.reads += 1
        return Bound(self.limit, self.used, "cgroup")

    def resident(self) -> int:
        self.reads += 1
        return self.used


class Rig:
    """A limiter of 800 MiB with a clock by hand, which knows how often it was relieved."""

    def __init__(self, used: int, **section: object) -> None:
        self.files, self.clock, self.telemetry = Files(used), StandingClock(), Telemetry()
        self.relieved = self.freed = 0
        self.limiter = MemoryLimiter(
            MemoryConfig.model_validate(section),
            self.telemetry,
            self.clock,
            lambda: 7.0,
            files=self.files,
            relieve=self.relieve,
        )

    def relieve(self) -> None:
        """As much as the test says is garbage."""
        self.relieved += 1
        self.files.used -= self.freed

    def later(self, seconds: float = 1.0) -> None:
        """Time goes by."""
        self.clock.steady_s += seconds

    def admits(self, size: int = 0) -> bool:
        """Whether a request comes in."""
        return self.limiter.admit(size) is None

    def metric(self, name: str) -> float:
        """A gauge."""
        value = self.telemetry.registry.get_sample_value(f"{PREFIX}_{name}")
        assert value is not None
        return value


def test_it_is_looked_at_now_and_then() -> None:
    """
    Scenario: thousands of requests within an interval, then one after it.
    Guarantees: memory was read once at the start and once more, not per request.
    """
    rig = Rig(100 * MIB)
    assert all(rig.admits(1000) for _ in range(5000))
    assert rig.files.reads == 1
    rig.later()
    assert rig.admits()
    assert rig.files.reads == 2
    rig.later()
    rig.limiter.tick()
    assert rig.files.reads == 3


def test_a_burst_between_two_looks() -> None:
    """
    Scenario: 700 of 800 MiB are used; requests of 30 MiB come before the next look, and of no
    stated size.
    Guarantees: three come in, the fourth is refused as MEMORY, to be sent again after the time the
    queues need; small ones are refused when there is no room for them either; after the next look,
    what is used counts alone.
    """
    rig = Rig(700 * MIB)
    assert [rig.admits(30 * MIB) for _ in range(4)] == [True, True, True, False]
    reply = rig.limiter.admit(30 * MIB)
    assert reply is not None
    assert (reply.outcome, reply.retry_after_s) == (Outcome.MEMORY, 7.0)
    small = sum(rig.admits() for _ in range(100_000))
    assert small == 10 * MIB // 4096
    assert rig.limiter.problem is None
    rig.later()
    assert rig.admits(30 * MIB)


def test_the_same_bytes_count_once() -> None:
    """
    Scenario: 700 of 800 MiB are used; a request of 60 MiB arrives as announced, then one that was
    announced as 10 MiB and came to 60, then one whose size nobody knew.
    Guarantees: the first counts once; of the others what was not known of before, which the last
    one finds no room for; what is smaller than announced takes nothing, and gives nothing back.
    """
    rig = Rig(700 * MIB)
    admit = rig.limiter.admit
    assert admit(60 * MIB) is None
    assert admit(60 * MIB, 60 * MIB) is None
    assert admit(5 * MIB, 60 * MIB) is None
    assert admit(10 * MIB) is None
    assert admit(39 * MIB, 10 * MIB) is None  # 99 MiB in all.
    assert admit(0) is None
    assert admit(2 * MIB, 0) is not None
    assert admit(1 * MIB, 0) is None  # What it took before it was known counts to it.
    assert not rig.admits()


def test_what_passes_through_does_not_stay() -> None:
    """
    Scenario: 40 MiB come in every 20 ms and leave again, for ten seconds; 700 of 800 MiB are used.
    Guarantees: all are let in: memory is looked at more often then, but not for each of them.
    """
    rig = Rig(700 * MIB, check_interval="60s")
    refused = 0
    for _ in range(500):
        rig.later(0.02)
        refused += not rig.admits(40 * MIB)
    assert refused == 0
    assert rig.files.reads <= 250


def test_refusing_ends_when_there_is_air() -> None:
    """
    Scenario: use goes over the limit, a little under it, well under it.
    Guarantees: refused from the look that sees it; still refused a little under; let in again
    well under; health and metrics say so.
    """
    rig = Rig(100 * MIB)
    for used, admitted in ((801, False), (790, False), (761, False), (760, True), (800, True)):
        rig.files.used = used * MIB
        rig.later()
        assert rig.admits(4096) is (admitted and used < 800)
        assert (rig.limiter.problem is None) is admitted
        assert rig.metric("memory_used_bytes") == used * MIB
    assert rig.metric("memory_limit_bytes") == 800 * MIB


def test_garbage_goes_first(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: use goes over the limit; part of it is garbage, enough or not enough.
    Guarantees: it is collected before anything is refused; not again for ten seconds; the log says
    it once a minute.
    """
    rig = Rig(100 * MIB)
    rig.files.used, rig.freed = 900 * MIB, 300 * MIB
    rig.later()
    assert rig.admits()
    assert rig.relieved == 1
    rig.files.used, rig.freed = 900 * MIB, 0
    for _ in range(int(LOG_EVERY_S)):
        rig.later()
        assert not rig.admits()
    assert rig.relieved == 1 + LOG_EVERY_S // RELIEF_EVERY_S
    assert caplog.text.count("900 MiB used by the cgroup, limit 800 MiB") == 1


def test_the_limit_of_the_configuration() -> None:
    """
    Scenario: a size instead of a share; then no limit at all; then a share again.
    Guarantees: the size is held against the process; 0 per cent lets everything in.
    """
    rig = Rig(90 * MIB, limit="100MiB")
    assert rig.metric("memory_limit_bytes") == 100 * MIB
    assert not rig.admits(11 * MIB)
    assert rig.admits(9 * MIB)
    rig.limiter.reconfigure(MemoryConfig(limit_percentage=0))
    rig.files.used = 5000 * MIB
    rig.later()
    assert rig.admits(5000 * MIB)
    rig.limiter.reconfigure(MemoryConfig(limit_percentage=100))
    assert not rig.admits()


def test_the_service_refuses(tmp_path: Path) -> None:
    """
    Scenario: memory is short when requests come, then it is not.
    Guarantees: both doors answer what a client repeats; nothing is learned or counted as taken;
    health says so, readiness stays; afterwards all is well.
    """

    async def play() -> None:
        async with running(tmp_path, service={"memory": {}}) as at:
            limiter, files = at.service.memory, Files(10**12)
            limiter._files = files
            limiter.look()
            assert await at.http(calls(1)) == 503
            assert (await at.grpc(calls(1))).name == "UNAVAILABLE"
            assert at.metric("spans_total") == 0
            refused = {"transport": "http", "signal": "traces", "outcome": "memory"}
            assert at.metric("receiver_requests_total", **refused) == 1
            assert "limit" in at.service.health()["problems"]["memory"]
            assert await at.page("/readyz") == (200, "ready\n")
            assert (await at.consume(calls(1), Signal.METRICS)).outcome is Outcome.MEMORY
            files.used = 1
            limiter.look()
            assert await at.http(calls(1)) == 200
            assert at.service.health()["status"] == "ok"

    asyncio.run(play())
