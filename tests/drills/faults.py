"""How each kind of fault is brought about, and what the run must do before the next one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.drills.schedule import SERVERS, Fault
from tests.drills.training import PAUSE_SECONDS, DrillError, Training, alive
from tests.kafka.broker import Broker
from tests.streaming.counting.run import CUT, HELD

_MOMENT_SECONDS = 20.0
_PAGE_BYTES = 1 << 16
_NO_SPACE = "no space left for a checkpoint"
_AFTER_SECONDS = 0.2  # what was under way may still arrive; a step after that is a new one


@dataclasses.dataclass(slots=True, kw_only=True)
class Outcome:
    """What a fault did.

    Attributes:
        fault: As it was scheduled.
        at: Seconds from the start of the drill.
        trained: Samples in the ledger when it fell.
        struck: Monotonic time at which it fell; for a pause, its beginning.
        over: Monotonic time from which the run can recover.
        recovery: Seconds from `struck` to the first step after the longest stand-still.
        note: What was seen.
    """

    fault: Fault
    at: float
    trained: int
    struck: float
    over: float
    recovery: float = 0.0
    note: str = ""


class Injector:
    """Strikes a run and its broker."""

    def __init__(self, training: Training, broker: Broker, *, disk: bool, restores: bool) -> None:
        """Prepares the faults.

        Args:
            training: The run.
            broker: Its broker.
            disk: Whether `training.directory` is a file system of its own, which can be filled;
                else a limit on the size of the servers' files has to stand for a full disk.
            restores: Whether a torn push is answered with a restore.
        """
        self._training, self._broker, self._disk = training, broker, disk
        self._restores = restores
        self._began = time.monotonic()
        self._kinds: dict[str, Callable[[Fault], str]] = {
            "truncated checkpoint": self._truncate,
            "full disk": self._fill_disk,
            "SIGTERM in a save": self._terminate_in_save,
            "stop in a push": self._stop_in_push,
            "torn push": self._tear,
            "kill broker": self._kill_broker,
            "pause broker": self._pause_broker,
        }

    def inject(self, fault: Fault) -> Outcome:
        """Has one fault fall, and waits until the run learns again.

        Raises:
            DrillError: If it does not.
        """
        training = self._training
        self._wait(fault.delay)
        _, _, trained = training.last_commit()
        self._struck = time.monotonic()
        self._restarts = False
        verb = fault.kind.partition(" ")[0]
        strike = self._kinds.get(fault.kind, self._kill if verb == "kill" else self._pause)
        note = strike(fault)
        over = time.monotonic()
        outcome = Outcome(
            fault=fault,
            at=self._struck - self._began,
            trained=trained,
            struck=self._struck,
            over=over,
            note=note,
        )
        former = self._life if self._restarts else None
        training.wait_for(
            lambda: self._learns_again(over, former),
            f"a step after fault {fault.number}, {fault.kind} {fault.target}",
        )
        outcome.recovery = self._standstill(over, former)
        return outcome

    def _learns_again(self, since: float, former: int | None) -> bool:
        moment, pid, _ = self._training.last_commit()
        return moment > since + _AFTER_SECONDS and pid != former

    def _standstill(self, over: float, former: int | None) -> float:
        """Returns the seconds from the strike to the end of the longest time without a step."""
        last, gaps = self._struck, []
        for moment, pid, _ in self._training.commits():
            if moment > self._struck:
                gaps.append((moment - last, moment - self._struck))
                last = moment
                if moment > over + _AFTER_SECONDS and pid != former:
                    break
        return max(gaps)[1]

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._training.wait_for(lambda: time.monotonic() >= until, "a moment")

    def _signal(self, role: str, index: int, number: signal.Signals) -> int:
        """Sends a signal to a living process; the moment is noted."""
        while True:
            pid = self._training.pid(role, index)
            self._life = self._training.last_commit()[1]
            self._struck = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                return pid

    # What is killed and what is paused.

    def _kill(self, fault: Fault) -> str:
        role = fault.kind.partition(" ")[2]
        self._signal(role, fault.index, signal.SIGKILL)
        self._restarts = role != "worker"
        return ""

    def _pause(self, fault: Fault) -> str:
        pid = self._signal(fault.kind.partition(" ")[2], fault.index, signal.SIGSTOP)
        self._life = None
        self._wait(PAUSE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            return f"{PAUSE_SECONDS:g} s, then it went on"
        return f"{PAUSE_SECONDS:g} s; it was replaced meanwhile"

    def _kill_broker(self, fault: Fault) -> str:
        self._life = None
        self._broker.kill()
        away = 0.2 + 2.0 * fault.share
        self._wait(away)
        self._broker.start(timeout_seconds=300)
        return f"started again after {away:.1f} s"

    def _pause_broker(self, fault: Fault) -> str:
        del fault
        self._life = None
        process = self._broker._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            self._wait(PAUSE_SECONDS)
        finally:
            process.send_signal(signal.SIGCONT)
        return f"{PAUSE_SECONDS:g} s, then it went on"

    # What is done to checkpoints.

    def _truncate(self, fault: Fault) -> str:
        """Cuts a file of the newest checkpoint; whoever dies then is restored from one before."""
        training = self._training
        training.wait_for(
            lambda: len(list(training.checkpoints.glob("checkpoint-*"))) >= 2, "two checkpoints"
        )
        # Nothing is saved between the cut and the end.
        pid = self._signal("coordinator", 0, signal.SIGSTOP)
        newest = training.newest()
        assert newest is not None
        files = sorted(path for path in newest.iterdir() if path.stat().st_size)
        file = files[int(fault.share * 0.999 * len(files))]
        size = int(fault.share * file.stat().st_size)
        os.truncate(file, size)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._restarts = True
        seen = f"{newest} is damaged"
        training.wait_for(lambda: seen in training.log(), f"{seen!r} in the log")
        return f"{newest.name}/{file.name} cut to {size} bytes"

    def _fill_disk(self, fault: Fault) -> str:
        """Leaves room for a part of a checkpoint only, until a save has failed on it.

        Half of the times before the save begins, which sees it; half of the times while it writes.
        """
        training = self._training
        newest = training.wait_for(training.newest, "a checkpoint")
        size = sum(path.stat().st_size for path in newest.iterdir())
        left, within = int(fault.share * 0.9 * size), fault.number % 2 == 0
        failures = training.log().count(_NO_SPACE)
        self._life = None
        caught = within and self._caught_in_save()
        self._struck = time.monotonic()
        with self._full(left) as fill:

            def has_failed() -> bool:
                fill()  # again: a save that came through has made room, by removing the oldest
                return training.log().count(_NO_SPACE) > failures

            training.wait_for(has_failed, "a save that fails for want of space")
        when = "while it was written" if caught else "before it"
        return f"{left} of {size} bytes left, {when}"

    @contextlib.contextmanager
    def _full(self, left: int) -> Iterator[Callable[[], None]]:
        """Gives a function that leaves so many bytes; at the end there is room again."""
        if self._disk:
            filler = self._training.directory / "filler"

            def fill() -> None:
                free = shutil.disk_usage(self._training.directory).free
                if free > left + _PAGE_BYTES:
                    # It may be taken meanwhile by the save itself.
                    with contextlib.suppress(OSError), filler.open("ab") as file:
                        os.posix_fallocate(file.fileno(), file.tell(), free - left)

            try:
                fill()
                yield fill
            finally:
                filler.unlink(missing_ok=True)
            return
        pids = [self._training.pid("ps", index) for index in range(SERVERS)]
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (left // SERVERS, -1))
        try:
            yield lambda: None
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (-1, -1))

    def _terminate_in_save(self, fault: Fault) -> str:
        del fault
        training = self._training
        training.wait_for(training.whole, "all workers")
        self._caught = self._caught_in_save()
        assert training.launcher is not None
        self._struck = time.monotonic()
        self._life = training.last_commit()[1]
        training.launcher.terminate()
        training.wait_for(
            lambda: training.launcher.poll() is not None, "the end after SIGTERM", tend=False
        )
        if training.launcher.returncode != 0:
            raise DrillError(f"SIGTERM: ended with {training.launcher.returncode}; expected 0")
        self._restarts = True
        when = "while it was written" if self._caught else "no save was seen"
        return f"{when}; ended, started again"

    def _caught_in_save(self) -> bool:
        deadline = time.monotonic() + _MOMENT_SECONDS
        while time.monotonic() < deadline:
            if self._training.saving():
                return True
            self._training.tend()
        return False

    # What happens in the middle of a push.

    def _stop_in_push(self, fault: Fault) -> str:
        """Stops a server in the middle of a push, kills the pushing worker, lets it go on.

        TensorFlow then finishes what the server has begun: the push is not torn.
        """
        server, worker = self._held(fault)
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGSTOP)
        self._struck = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        time.sleep(0.5)
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGCONT)
        time.sleep(0.5)  # it learns that its client is gone, and only then goes on
        (self._training.faults / HELD).unlink(missing_ok=True)
        return f"process {server} in a push of {worker}"

    def _tear(self, fault: Fault) -> str:
        """Kills a worker in the middle of its push, and has the server fail there."""
        server, worker = self._held(fault)
        if self._restores:
            self._life, self._restarts = self._training.last_commit()[1], True
        self._struck = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        cut = self._training.faults / CUT
        cut.touch()
        (self._training.faults / HELD).unlink(missing_ok=True)
        self._training.wait_for(
            lambda: not cut.exists() or not alive(server), "the push to fail on the server"
        )
        cut.unlink(missing_ok=True)
        return f"process {server} failed in a push of {worker}"

    def _held(self, fault: Fault) -> tuple[int, int]:
        """Waits until a server is in the middle of a push; returns it and the pushing worker."""
        held = self._training.faults / HELD
        held.unlink(missing_ok=True)
        (self._training.faults / f"{fault.moment}-{fault.number}").touch()
        what = "a push that is held in the middle"
        pids = self._training.wait_for(lambda: _pids(held), what)
        self._life = None
        return pids


def _pids(held: Path) -> tuple[int, int] | None:
    try:
        server, worker = held.read_text().split()
    except FileNotFoundError:
        return None
    return int(server), int(worker)
