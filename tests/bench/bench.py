"""
The servers of a benchmark, and one measurement on them: every service is given the same backlog and a broker and a
table of its own.
"""

import functools
import os
import sys
import time
from pathlib import Path

import drain
import latency
import outage
from broker import Broker
from postgres import Database
from processes import BUILD
from service import Service, ingestd_command, python_command
from workload import FILTER, USUAL

YARDSTICK = r"psql \copy"
WINDOWS = (500, 5000, 65535)
# Of one measurement with large payloads; COPY needs a file of that size too.
BYTES_MOST = 64 << 20
ROWS_LEAST = 16


class Bench:
    """baseline: the build directory of another version, or None. results: {row: [a Result a round]}."""

    def __init__(self, home, server, messages, baseline=None):
        self.home, self.server, self.usual_rows = home, server, messages
        self.builds = {"ingestd": BUILD, **({"baseline": Path(baseline)} if baseline else {})}
        self.results = {}
        self.disturbance, self.fsyncs, self.brokers = 0.0, [], 0
        self.database = Database(server)
        # asyncpg knows no keywords, libpq both.
        self.uri = f"postgresql://postgres@127.0.0.1:{server.port}/{self.database.name}"

    def broker(self):
        """
        A new one for every measurement. It logs nothing and writes nothing to disk, which would be
        measured too, and leaves Nagle's algorithm on, as Mosquitto does unless it is told otherwise.
        """
        self.brokers += 1
        return Broker(self.home / f"broker{self.brokers}",
                      extra=["log_type none", "persistence false", "set_tcp_nodelay false"])

    def note(self, name, result):
        self.results.setdefault(name, []).append(result)
        print(f"  {name}: {result.rows / result.seconds:,.0f} rows/s", file=sys.stderr, flush=True)

    def rows(self, workload):
        """How many messages a measurement has."""
        return max(ROWS_LEAST, min(self.usual_rows, BYTES_MOST // workload.size))

    def yardstick(self, workload):
        """What the rate of COPY is called, for this workload."""
        return YARDSTICK if workload == USUAL else f"{YARDSTICK}, {workload.size} bytes, {workload.topics} topics"

    def copy(self, workload=USUAL):
        file = self.home / "rows.copy"
        workload.write_copy_file(file, self.rows(workload))
        drain.fresh_table(self.database)
        self.note(self.yardstick(workload), drain.copy(self.database, file, self.rows(workload)))
        file.unlink()

    def drain(self, name, options=(), workload=USUAL, command=ingestd_command, rows=None):
        broker = self.broker()
        try:
            # A state directory of its own: a version may not read what another has written.
            arguments = command(broker, self.uri, FILTER, self.home / name.split(",")[0], *options)
            rows = rows or self.rows(workload)
            self.note(name, drain.drain(broker, self.database, arguments, workload.messages(rows), rows))
        finally:
            broker.kill()

    def outage(self):
        broker = self.broker()
        try:
            command = ingestd_command(broker, self.uri, FILTER, self.home / "outage")
            into, out = outage.spool(broker, self.database, command, self.home / "outage", self.usual_rows)
            self.note("ingestd, into the spool", into)
            self.note("ingestd, out of the spool", out)
        finally:
            broker.kill()

    def round(self):
        """The comparison: each window, with each build by turns, so that neither always finds what the other left."""
        self.disturbance = max(self.disturbance, busy_share())
        self.fsyncs.append(fsync_milliseconds(self.server.home))
        self.copy()
        order = list(self.builds.items())[::1 if len(self.fsyncs) % 2 else -1]
        for window in WINDOWS:
            for name, build in order:
                self.drain(f"{name}, receive maximum {window:,}", ("--receive-maximum", str(window)),
                           command=functools.partial(ingestd_command, build=build))
        self.outage()
        self.drain("asyncio, paho, asyncpg", command=python_command, rows=self.usual_rows // 5)

    def latency(self, count, rate):
        broker = self.broker()
        drain.fresh_table(self.database)
        try:
            with Service(ingestd_command(broker, self.uri, FILTER, self.home / "state")) as service:
                service.wait_event("mqtt_subscribed")
                service.wait_event("writer_ready")
                found = latency.measure(broker, self.database, count, rate)
                service.stop()
            return found
        finally:
            broker.kill()


def busy_share():
    """How much of the machine others use at the moment, from 0 to 1, looked at for a second."""
    def ticks():
        numbers = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return numbers[3] + numbers[4], sum(numbers)
    idle, total = ticks()
    time.sleep(1)
    idle_now, total_now = ticks()
    return 1 - (idle_now - idle) / (total_now - total)


def fsync_milliseconds(directory):
    """What one fdatasync takes at the moment where the database lies: a small window waits for many."""
    path = Path(directory) / "fsync"
    times = []
    with open(path, "wb", buffering=0) as f:
        for _ in range(101):
            f.write(bytes(8192))
            begin = time.perf_counter()
            os.fdatasync(f.fileno())
            times.append((time.perf_counter() - begin) * 1000)
    path.unlink()
    return sorted(times)[len(times) // 2]
