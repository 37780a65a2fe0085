"""
One run: the world is set up, the schedule performed under load, everything healed, the service stopped and started
once more, and the table judged against the book.

Must never end before the verdict because of what the system did: that is a complaint in the outcome.
"""
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from faults import until
from ledger import Verdict, judge
from processes import PATIENCE
from sandbox import Sandbox
from schedule import draw
from systems import STOP_TIMEOUT, SYSTEMS

TURN = 0.005
# The load goes on for that long after the last fault, and that long altogether.
AFTERWARDS, AT_LEAST = 0.4, 2.0
# Messages published after the service's last start: they come behind all that the broker may send again.
LAST_MESSAGES = 40
# A count that has not changed for this long is worth a look at the rows.
QUIET = 0.4


@dataclass
class Outcome:
    schedule: str
    faults: str
    name: str
    seed: int
    system: str
    verdict: Verdict = field(default_factory=Verdict)
    complaints: list = field(default_factory=list)
    seconds: float = 0.0
    kept: str = None

    @property
    def ok(self):
        return self.verdict.clean and not self.complaints


class _Stage:
    """Performs a schedule: all faults that are due take turns, one that is alone has the stage to itself."""

    def __init__(self, world, schedule):
        self.world = world
        self.waiting = list(schedule.entries)
        self.playing = []
        self.began = time.monotonic()

    def perform(self):
        while self.waiting or self.playing:
            self._begin_what_is_due()
            self.playing = [p for p in self.playing if self._go_on(p)]
            self.world.system.tend()
            time.sleep(TURN)

    def _begin_what_is_due(self):
        while self.waiting and time.monotonic() - self.began >= self.waiting[0].at:
            alone = self.waiting[0].kind.alone or any(p.entry.kind.alone for p in self.playing)
            if alone and self.playing:
                return
            entry = self.waiting.pop(0)
            self.world.note(f"-- {entry}")
            self.playing.append(_Playing(entry, entry.kind.harm(self.world, **entry.parameters)))

    def _go_on(self, playing):
        """False when it is over."""
        if not playing.may_go_on(self.world):
            return True
        try:
            playing.wait_for(next(playing.steps))
            return True
        except StopIteration:
            return False


class _Playing:
    def __init__(self, entry, steps):
        self.entry, self.steps = entry, steps
        self.wait_for(0)

    def wait_for(self, what):
        self.what = what
        seconds = what.seconds * (1 if what.at_most else PATIENCE) if isinstance(what, until) else what
        self.deadline = time.monotonic() + seconds

    def may_go_on(self, world):
        late = time.monotonic() >= self.deadline
        if not isinstance(self.what, until) or late and self.what.at_most:
            return late
        if late:
            world.complain(f"{self.entry}: {self.what.what}: not within {self.what.seconds * PATIENCE} s")
            return True
        return self.what.condition()


def _everything_is_there(world, patience):
    """Waits for it. False when, with nothing in its way, nothing new has come for the patience's seconds."""
    count, changed, looked = -1, time.monotonic(), False
    while True:
        world.system.tend()
        now, stored = time.monotonic(), world.system.stored()
        if stored != count:
            count, changed, looked = stored, now, False
        elif not looked and now - changed > QUIET:
            if judge(world.book, world.system.rows(), world.system.dead_letters()).lost == 0:
                return True
            looked = True
        if now - changed > patience * PATIENCE:
            world.note(f"nothing new for {patience} s, and not all is there")
            return False
        time.sleep(0.05)


def _stop(world):
    world.note("SIGTERM to the main process, the last")
    status = world.system.terminate()
    try:
        world.wait_until(lambda: status() is not None, STOP_TIMEOUT, "the end after SIGTERM")
    except AssertionError:
        world.complain(f"no end within {STOP_TIMEOUT} s of SIGTERM")
        world.system.kill()
    world.note(f"it ended with status {status()}")


def _play(world, schedule, rate):
    patience = schedule.patience or world.system.patience
    world.system.start()
    world.wait_until(world.system.is_ready, 40 * PATIENCE, "it is ready for the first time")
    world.note("ready")
    began = time.monotonic()
    if schedule.is_steady:
        world.load.steady(rate)
    _Stage(world, schedule).perform()
    if schedule.is_steady:
        time.sleep(max(AFTERWARDS, AT_LEAST - (time.monotonic() - began)))
        world.load.steady(0)
    world.heal()
    world.note("all is healed")
    world.wait_until(world.load.idle, 60 * PATIENCE, "the broker has acknowledged everything")
    complete = _everything_is_there(world, patience)
    _stop(world)
    if complete:
        # What a clean stop leaves at the broker, or in a file, would come now, and come too often.
        world.system.start()
        world.wait_until(world.system.is_ready, 40 * PATIENCE, "it is ready for the last time")
        world.load.publish(LAST_MESSAGES)
        world.wait_until(world.load.idle, 60 * PATIENCE, "the broker has acknowledged everything")
        _everything_is_there(world, patience)
        _stop(world)
    world.load.finish()
    world.system.check()


def _keep(world, schedule, outcome, directory):
    directory = Path(directory)
    world.save_logs(directory)
    (directory / "schedule.txt").write_text(outcome.schedule + "\n")
    (directory / "verdict.txt").write_text("\n".join([outcome.verdict.words(), *outcome.complaints]) + "\n")
    outcome.kept = str(directory)


def run(name, seed, system, home, template, rate, keep_in=None):
    """
    name and seed make the schedule, see schedule.draw(). home: a directory that does not exist yet, and does not any
    more afterwards. keep_in: where a failure's logs go.
    """
    began = time.monotonic()
    schedule = draw(name, seed, SYSTEMS[system])
    outcome = Outcome(str(schedule), schedule.in_short(), schedule.name, schedule.seed, system)
    with Sandbox(home, template, SYSTEMS[system], schedule.seed, schedule.commit_delay, schedule.options,
                 schedule.disk) as world:
        try:
            _play(world, schedule, rate)
        except Exception:
            world.complain(traceback.format_exc())
        outcome.complaints = [*world.complaints, *world.system.complaints]
        try:
            outcome.verdict = judge(world.book, world.system.rows(), world.system.dead_letters())
        except Exception:
            outcome.complaints.append(traceback.format_exc())
        if not outcome.ok and keep_in is not None:
            _keep(world, schedule, outcome, keep_in)
    outcome.seconds = time.monotonic() - began
    return outcome
