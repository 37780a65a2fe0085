"""
The systems under test, each a small class: how to start, stop and kill it, which processes it has, what it stored.

A third is added by writing the class and a line in SYSTEMS; what it can not do it leaves out of `can`, and the
faults that need that are skipped for it. Must never help a system along: what it does not survive is its own.
"""
import contextlib
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import balance
from daemon import STOP, Ingestd as Daemon
from messages import FILTER
from processes import PATIENCE, ROOT, clean_environment, die_with_parent, end, is_running, wait_until

CLIENT_ID = "faults"
# SIGTERM to the end, at worst: what ingestd(8) promises, and some for a busy machine.
STOP_TIMEOUT = 40 * PATIENCE
# Of the state directory: it can not be written at the start; the spool could not be at the end.
EX_CANTCREAT, EX_IOERR = 73, 74


class System:
    name = None
    # What of the faults makes sense for it: "writers", "state directory", "spool", "poison rows".
    can = frozenset()
    # Whether what is no JSON is kept somewhere. Where it is not, none is published.
    has_dead_letters = False
    # A yardstick promises nothing: its losses are figures, not failures.
    is_yardstick = False
    # Seconds without a new row after which, with nothing in its way, what is missing is taken for lost.
    patience = 60

    def __init__(self, world):
        self.world = world
        self.complaints = []

    def start(self, **changed):
        """Starts the main process unless it runs. It does not wait until that is ready."""
        raise NotImplementedError

    def is_up(self):
        raise NotImplementedError

    def is_ready(self):
        """True when it has a subscription and can store."""
        raise NotImplementedError

    def terminate(self):
        """SIGTERM. Returns a function that gives the exit status, None before the end."""
        raise NotImplementedError

    def kill(self):
        """kill -9 of the main process, and of that only."""
        raise NotImplementedError

    def pids(self):
        """{"supervisor": pid, "writers": [pid, …]} of those that run; a writer keeps its place in the list."""
        raise NotImplementedError

    def start_second(self):
        """Another one with the same client id and database, on its own otherwise: a Popen."""
        raise NotImplementedError

    def tend(self):
        """Called again and again while faults go on."""

    def rows(self):
        """(topic, JSON text) in the order of insertion."""
        return self.world.ask("SELECT topic, payload::text FROM telemetry ORDER BY id")

    def dead_letters(self):
        """(topic, bytes)."""
        return []

    def stored(self):
        """How many rows and dead letters there are."""
        return self.world.count("telemetry")

    def check(self):
        """Adds to .complaints what its ends and logs show that must not be. After the last stop."""

    def clean_up(self):
        """Ends all of its processes, whatever their state."""

    def save_logs(self, directory):
        pass


class Ingestd(System):
    name = "ingestd"
    can = frozenset(["writers", "state directory", "spool", "poison rows"])
    has_dead_letters = True

    def __init__(self, world, **options):
        super().__init__(world)
        self._options = {"broker": f"mqtt://127.0.0.1:{world.broker_link.port}",
                         "database": f"host=127.0.0.1 port={world.database_link.port}"
                                     f" dbname={world.database.name} user=postgres",
                         "subscribe": FILTER, "client_id": CLIENT_ID, "writers": 2,
                         "state_dir": world.disk.state_dir if world.disk else world.home / "state", **options}
        self._all, self._told, self._seconds = [], [], []

    @property
    def current(self):
        return self._all[-1]

    def start(self, **changed):
        if not self.is_up():
            self._options.update({k: v for k, v in changed.items() if v is not None})
            self._all.append(Daemon(**self._options))

    def is_up(self):
        return bool(self._all) and self.current.process.poll() is None

    def is_ready(self):
        return (self.is_up() and bool(self.current.events("mqtt_subscribed")) and
                len({e["lane"] for e in self.current.events("writer_ready")}) == self._options["writers"])

    def is_spooling(self):
        """The current process puts records into its spool, or has found some there."""
        phases = [e["phase"] for e in self.current.events("spooling")] if self._all else []
        return phases[-1:] == ["begins"] or (phases == [] and bool(self.current.events("spool_found")))

    def has_logged(self, event):
        """The current process."""
        return bool(self.current.events(event))

    def _has_a_full_disk(self, daemon):
        """It found no room at its start: as ingestd(8) says, and somebody starts it again."""
        return self.world.disk is not None and self.world.disk.is_small and daemon.process.returncode == EX_CANTCREAT

    def tend(self):
        if not self.is_up() and self.current not in self._told:
            if self._has_a_full_disk(self.current):
                if not self.world.disk.is_full:
                    self.world.note("the disk was full at the start; start")
                    self.start()
                return
            self._told.append(self.current)
            self.complaints.append(f"it ended by itself, with status {self.current.process.returncode}")

    def is_stopping(self):
        return "shutdown_initiated" in self.current.stop_events()

    def has_drained(self):
        """After SIGTERM: the supervisor has handed all over and told its writers to end."""
        return any(e in self.current.stop_events() for e in ("queue_drained", "queue_drain_timeout"))

    def terminate(self):
        daemon = self.current
        self._told.append(daemon)
        if self.is_up():
            daemon.signal(signal.SIGTERM)
        return daemon.process.poll

    def kill(self):
        self._told.append(self.current)
        self.current.process.kill()
        self.current.process.wait()

    def pids(self):
        writers = self.current.writers() if self._all else {}
        return {"supervisor": self.current.pid if self.is_up() else None,
                "writers": [writers.get(lane) for lane in range(self._options["writers"])]}

    def start_second(self, own_state_directory=True):
        options = {**self._options, "state_dir": self.world.home / "second"} if own_state_directory else self._options
        self._seconds.append(Daemon(**options))
        return self._seconds[-1].process

    def dead_letters(self):
        try:
            return [(topic, bytes(payload)) for topic, payload in
                    self.world.ask("SELECT topic, payload FROM ingestd.dead_letter ORDER BY id")]
        except self.world.undefined:
            return []

    def stored(self):
        return super().stored() + self.world.count("ingestd.dead_letter")

    def check(self):
        for number, daemon in enumerate(self._all):
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            for complaint in self._complaints_about(daemon, last=daemon is self.current):
                self.complaints.append(f"ingestd-{number}: {complaint}")
        for number, (before, after) in enumerate(itertools.pairwise(self._all), 1):
            self.complaints += [f"ingestd-{number}: {complaint}"
                                for complaint in balance.of_two_runs(before.events(), after.events())]

    def _complaints_about(self, daemon, last):
        """A kill -9 leaves no end to look at; a SIGTERM does, and its balance must hold, whatever else went on."""
        status = daemon.process.poll()
        if daemon.strange:
            yield f"lines that are no log lines: {daemon.strange[:3]}"
        if last and status != 0:
            yield f"the last stop's exit status is {status}"
        if status not in (0, 75, -signal.SIGKILL) and not self._may_end_with(status):
            yield f"exit status {status}"
        if status in (0, 74, 75):
            events = daemon.stop_events()
            if events[-1:] != ["shutdown_complete"] or (last and [e for e in events if e in STOP] != STOP):
                yield f"its shutdown was {events}"
            else:
                yield from balance.of_the_end(daemon.events(), status)
        yield from balance.of_the_lines(daemon.events())
        try:
            wait_until(lambda: not self._writers_of(daemon), 20)
        except AssertionError:
            yield f"writers outlived it: {self._writers_of(daemon)}"

    @staticmethod
    def _writers_of(daemon):
        return [int(e["pid"]) for e in daemon.events("writer_started")
                if is_running(int(e["pid"])) and daemon._is_writer(int(e["pid"]))]

    def _may_end_with(self, status):
        disk = self.world.disk
        return disk is not None and disk.is_small and status in (EX_CANTCREAT, EX_IOERR)

    def clean_up(self):
        for daemon in [*self._all, *self._seconds]:
            daemon.clean_up()

    def save_logs(self, directory):
        for kind, daemons in (("ingestd", self._all), ("second", self._seconds)):
            for number, daemon in enumerate(daemons):
                (directory / f"{kind}-{number}.log").write_text(
                    " ".join(daemon.arguments) + "\n" + "\n".join(daemon._lines) + "\n", errors="surrogateescape")


class PlainPython(System):
    """The service one would write in an afternoon, started again when it ends by itself, as systemd would."""
    name = "python"
    is_yardstick = True
    patience = 6

    def __init__(self, world, **_options):
        super().__init__(world)
        uri = f"postgresql://postgres@127.0.0.1:{world.database_link.port}/{world.database.name}"
        self._command = [sys.executable, "-B", str(ROOT / "tests/bench/plain_python.py"),
                         str(world.broker_link.port), uri, FILTER, CLIENT_ID]
        self._log = world.home / "python.log"
        self._process, self._seconds, self._wanted = None, [], False

    def _spawn(self):
        with open(self._log, "ab") as log:
            self._from = log.tell()
            return subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    env=clean_environment(), preexec_fn=die_with_parent())

    def start(self, **_changed):
        self._wanted = True
        if not self.is_up():
            self._process = self._spawn()

    def is_up(self):
        return self._process is not None and self._process.poll() is None

    def is_ready(self):
        return self.is_up() and b"mqtt_subscribed" in self._log.read_bytes()[self._from:]

    def tend(self):
        if self._wanted:
            self.start()

    def terminate(self):
        self._wanted = False
        if self.is_up():
            self._process.send_signal(signal.SIGTERM)
        return self._process.poll

    def kill(self):
        self._wanted = False
        self._process.kill()
        self._process.wait()

    def pids(self):
        return {"supervisor": self._process.pid if self.is_up() else None, "writers": []}

    def start_second(self):
        self._seconds.append(self._spawn())
        return self._seconds[-1]

    def clean_up(self):
        for process in [self._process, *self._seconds]:
            if process is not None:
                with contextlib.suppress(OSError):
                    os.kill(process.pid, signal.SIGCONT)
                end(process, signal.SIGKILL)

    def save_logs(self, directory):
        if self._log.exists():
            (directory / Path(self._log).name).write_bytes(self._log.read_bytes())


SYSTEMS = {c.name: c for c in (Ingestd, PlainPython)}
