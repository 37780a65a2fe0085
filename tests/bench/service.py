"""A service under measurement, ingestd or the plain Python one: started, read, weighed, stopped.

Both are treated alike, from outside: their log lines, /proc, and what the kernel says they have used.
Must never count what the benchmark itself does as the service's.
"""

import datetime
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import logfmt
from processes import BUILD, children_of, clean_environment, die_with_parent, read_proc, wait_until

MIB = 1 << 20


def ingestd_command(broker, database_uri, topic_filter, state_dir, *options, build=BUILD):
    return [str(build / "ingestd"), "--broker", broker.url, "--database", database_uri, "--subscribe",
            topic_filter, "--client-id", "bench", "--state-dir", str(state_dir), *options]


def python_command(broker, database_uri, topic_filter, _state_dir):
    script = Path(__file__).with_name("plain_python.py")
    return [sys.executable, str(script), str(broker.port), database_uri, topic_filter, "bench"]


def _children_cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Service:
    """From its start on. Only one may run at a time, and no other process be waited for meanwhile:
    cpu_seconds is the difference in what all ended children, and theirs, have used."""

    def __init__(self, command):
        self.cpu_seconds = None
        self.peak_pss = self.last_pss = 0
        self.lines = []
        self._events, self._counts, self._writers = {}, {}, {}
        self._cpu_before = _children_cpu()
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                         text=True, env=clean_environment(),
                                         preexec_fn=die_with_parent())
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _read(self):
        for line in self._process.stderr:
            self.lines.append(line)
            event = logfmt.parse(line.rstrip("\n"))
            if event is not None:
                self._events.setdefault(event.name, event)
                self._counts[event.name] = self._counts.get(event.name, 0) + 1
                if event.name == "writer_started":
                    self._writers[int(event["lane"])] = int(event["pid"])

    @property
    def pid(self):
        return self._process.pid

    def count(self, name):
        """How often an event of that name has been logged."""
        return self._counts.get(name, 0)

    def writers(self):
        """{lane: pid}, as the log has it."""
        return dict(self._writers)

    def wait_event(self, name):
        """Waits for the first event of that name and returns when it was, in seconds since 1970."""
        def arrived():
            if name not in self._events and self._process.poll() is not None:
                raise RuntimeError("the service has ended:\n" + "".join(self.lines[-20:]))
            return name in self._events
        wait_until(arrived, 20, f"{name} in the service's log")
        return datetime.datetime.fromisoformat(self._events[name].time).timestamp()

    def _pids(self):
        return [self._process.pid, *children_of(self._process.pid)]

    def sample_memory(self):
        """Proportional set size of all its processes: shared pages count once."""
        texts = [read_proc(pid, "smaps_rollup") or "" for pid in self._pids()]
        self.last_pss = sum(_kib(t, "Pss") for t in texts) * 1024
        self.peak_pss = max(self.peak_pss, self.last_pss)

    def resident(self):
        """What its processes have now: shared pages count once for each."""
        return sum(_kib(read_proc(pid, "status") or "", "VmRSS") for pid in self._pids()) * 1024

    def cpu_now(self):
        """Seconds on a CPU of all processes that run now, since their starts."""
        return sum(int((read_proc(pid, "schedstat") or "0").split()[0]) for pid in self._pids()) / 1e9

    def peak_resident(self):
        """Sum of every process's own peak: shared pages count once for each, so an upper bound."""
        return sum(_kib(read_proc(pid, "status") or "", "VmHWM") for pid in self._pids()) * 1024

    def stop(self):
        """SIGTERM; afterwards cpu_seconds holds all it has used, start and stop included."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(40)
        self._reader.join()
        self.cpu_seconds = _children_cpu() - self._cpu_before
        if status != 0:
            raise RuntimeError(f"the service exited {status}:\n" + "".join(self.lines[-20:]))


def _kib(text, name):
    for line in text.splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    return 0
