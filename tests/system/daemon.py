"""ingestd as the tests see it: its options, its log, its processes and its end."""
import fcntl
import os
import re
import signal
import subprocess
import threading
import time

import logfmt
from processes import (BUILD, PATIENCE, children_of, clean_environment, die_with_parent, is_running, memory_of,
                       read_proc, wait_until)

PROGRAM = BUILD / "ingestd"
WRITER = BUILD / "ingestd-writer"

STOP = ["signal_received", "shutdown_initiated", "mqtt_disconnected", "queue_drained", "workers_stopped",
        "batch_writer_flushed", "db_pool_closed", "shutdown_complete"]

# What the leak detector says when the process is gone before it has looked at it: no finding.
_NOISE = re.compile(r"==\d+==Unable to get registers from thread \d+\.")


def options(**named):
    """{'batch_size': 5, 'subscribe': ['a', 'b']} as a command line; None leaves an option out."""
    line = []
    for name, value in named.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if one is not None:
                line += ["--" + name.replace("_", "-"), str(one)]
    return line


class Ingestd:
    """
    A running ingestd. wait_log() and events() look at what it has written to standard error so far.
    A line that is no log line ends up in .strange and fails the test at its end: a sanitizer's report,
    a library's own words, a torn line.
    """

    def __init__(self, *arguments, env=None, read_log=True, prefix=(), program=None, **named):
        if "batch_size" in named:
            # A test that gives a size means transactions of that size.
            named.setdefault("batch_limit", named["batch_size"])
        command = [*prefix, str(program or PROGRAM), *arguments, *options(**named)]
        self.arguments = command
        self.strange = []
        self._events = []
        self._lines = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, env=clean_environment(**(env or {})),
                                        preexec_fn=die_with_parent())
        self.pid = self.process.pid
        self._reader = None
        if read_log:
            self.read_log()
        else:
            # As small as a pipe can be, so that nobody has to write much to fill it.
            fcntl.fcntl(self.process.stderr, fcntl.F_SETPIPE_SZ, 4096)

    def read_log(self):
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for raw in self.process.stderr:
            line = raw.decode(errors="surrogateescape").rstrip("\n")
            event = logfmt.parse(line)
            with self._changed:
                self._lines.append(line)
                if event is not None:
                    self._events.append(event)
                elif not _NOISE.fullmatch(line):
                    self.strange.append(line)
                self._changed.notify_all()

    # The log

    def events(self, name=None, **fields):
        with self._changed:
            return [e for e in self._events if name is None or e.matches(name, fields)]

    def mark(self):
        """For wait_log(after=…): where the log stands now."""
        with self._changed:
            return len(self._events)

    def wait_log(self, name, timeout=15, after=0, **fields):
        """The first event of this name and with these fields, waited for."""
        deadline = time.monotonic() + timeout * PATIENCE
        with self._changed:
            while True:
                for event in self._events[after:]:
                    if event.matches(name, fields):
                        return event
                left = deadline - time.monotonic()
                if left <= 0 or (not self._reader.is_alive() and self.process.poll() is not None):
                    raise AssertionError(f"no {name} {fields} within {timeout * PATIENCE} s\n{self.log()}")
                self._changed.wait(min(left, 0.2))

    def wait_ready(self, writers=2):
        """Until it is subscribed and every writer has reached the database."""
        # Under 3.1.1 a session that is kept keeps its subscription, and says so.
        wait_until(lambda: self.events("mqtt_subscribed") or self.events("mqtt_subscription_kept") or
                   self.process.poll() is not None, what="it is subscribed")
        if not self.events("mqtt_subscription_kept"):
            self.wait_log("mqtt_subscribed")
        for lane in range(writers):
            self.wait_log("writer_ready", lane=lane)
        return self

    def log(self):
        with self._changed:
            lines = self._lines if len(self._lines) < 120 else [*self._lines[:40], "…", *self._lines[-80:]]
            return "\n".join(lines)

    # Its processes

    def writers(self):
        """{lane: pid} of the writers that run."""
        found = {}
        for event in self.events("writer_started"):
            found[int(event["lane"])] = int(event["pid"])
        return {lane: pid for lane, pid in found.items() if is_running(pid)}

    def children(self):
        return children_of(self.pid)

    def title(self, pid):
        return (read_proc(pid, "cmdline") or "").replace("\0", " ").strip()

    def rss(self):
        """Bytes of memory that supervisor and writers use together."""
        return sum(memory_of(pid) for pid in [self.pid, *self.writers().values()])

    # Its end

    def signal(self, signum=signal.SIGTERM):
        self.process.send_signal(signum)

    def wait(self, timeout=35):
        """The exit status. The log is complete then."""
        status = self.process.wait(timeout * PATIENCE)
        if self._reader is not None:
            self._reader.join(5 * PATIENCE)
        return status

    def stop(self, timeout=35):
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self):
        """kill -9. Its writers notice and end by themselves."""
        writers = self.writers()
        self.process.kill()
        self.process.wait()
        for pid in writers.values():
            wait_until(lambda: not is_running(pid), 30, f"writer {pid} ends after its supervisor")

    def stop_events(self):
        """The supervisor's events from the signal on, as a list of names."""
        names = [e.name for e in self.events() if "lane" not in e]
        return names[names.index("signal_received"):] if "signal_received" in names else []

    def totals(self):
        """The numbers of shutdown_complete."""
        return {k: int(v) for k, v in self.events("shutdown_complete")[0].items() if v.isdigit()}

    def clean_up(self):
        """Leaves nothing behind, whatever the test has left. Returns the pids that should not have been there."""
        writers = [int(e["pid"]) for e in self.events("writer_started")]
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        left = [pid for pid in writers if is_running(pid) and self._is_writer(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.process.stderr.close() if self._reader is None else self._reader.join(5)
        return left

    @staticmethod
    def _is_writer(pid):
        # The number may have been given to somebody else by now.
        try:
            return os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith(WRITER.name)
        except OSError:
            return False
