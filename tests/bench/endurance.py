"""
Many messages through one ingestd, in blocks: before each its session is taken from it for a moment, so that it has to
connect again, and in each a writer is killed. After every block all rows of it are counted, and the memory weighed.

After some of the blocks a backlog of one size is drained by the same process, some times and each time beside COPY of
the same rows, for the rate and the CPU of a record then: what grows with the number of messages would show.
"""

import os
import signal
import socket
import statistics
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

import drain
from processes import wait_until
from publisher import publish
from publisher import packet, text
from service import MIB, Service, ingestd_command
from workload import FILTER, USUAL

CLIENT = "bench"
# Of which a mark is the median.
TRIES = 3


@dataclass
class Endurance:
    """blocks: (messages so far, MiB resident, MiB proportional). marks: (messages so far, rows/s, of COPY, µs a record)."""

    blocks: list = field(default_factory=list)
    marks: list = field(default_factory=list)
    connections: int = 0
    writers: int = 0


class Endured:
    def __init__(self, bench, service, broker, window):
        self.bench, self.service, self.broker, self.window = bench, service, broker, window
        self.passed, self.found = 0, Endurance()

    def _all_stored(self, count):
        """Every message since the last call is a row, once."""
        database = self.bench.database
        drain.wait_for_rows(self.service, database, count)
        database.query("TRUNCATE telemetry")
        self.passed += count

    def _reconnect(self):
        before = self.service.count("mqtt_connected")
        with socket.create_connection(("127.0.0.1", self.broker.port)) as s:
            s.sendall(packet(0x10, text("MQTT") + bytes([4, 0]) + struct.pack("!H", 0) + text(CLIENT)))
            s.recv(4)
        wait_until(lambda: self.service.count("mqtt_connected") > before, 30, "it is connected again")

    def block(self, count):
        self._reconnect()
        half = count // 2
        publish(self.broker, USUAL.messages(half))
        os.kill(self.service.writers()[0], signal.SIGKILL)
        publish(self.broker, USUAL.messages(count - half, half))
        self._all_stored(count)
        self.service.sample_memory()
        self.found.blocks.append((self.passed, self.service.resident() / MIB, self.service.last_pss / MIB))

    def mark(self):
        tries = [self._drain() for _ in range(TRIES)]
        self.found.marks.append((self.passed, *(statistics.median(one[i] for one in tries) for i in range(3))))

    def _copy(self):
        file = self.bench.home / "endurance.copy"
        USUAL.write_copy_file(file, self.window)
        result = drain.copy(self.bench.database, file, self.window)
        file.unlink()
        self.bench.database.query("TRUNCATE telemetry")
        return result.rows / result.seconds

    def _drain(self):
        """Stopped, it leaves all of it to the broker: a backlog as after a reconnect, without one."""
        yardstick, pid = self._copy(), self.service.pid
        os.kill(pid, signal.SIGSTOP)
        publish(self.broker, USUAL.messages(self.window))
        before = self.service.cpu_now()
        began = time.time()
        os.kill(pid, signal.SIGCONT)
        drain.wait_for_rows(self.service, self.bench.database, self.window)
        rate = self.window / (drain.last_commit(self.bench.database) - began)
        cpu = (self.service.cpu_now() - before) / self.window * 1e6
        self.bench.database.query("TRUNCATE telemetry")
        self.passed += self.window
        return rate, rate / yardstick, cpu


def endure(bench, first, block, blocks, window):
    """first messages, then blocks of so many; marks after the first, after one block and after the last."""
    broker = bench.broker()
    drain.fresh_table(bench.database)
    try:
        with Service(ingestd_command(broker, bench.uri, FILTER, Path(bench.home) / "endurance")) as service:
            service.wait_event("mqtt_subscribed")
            service.wait_event("writer_ready")
            run = Endured(bench, service, broker, window)
            run.block(first)
            run.mark()
            for number in range(blocks):
                run.block(block)
                if number in (0, blocks - 1):
                    run.mark()
            run.found.connections = service.count("mqtt_connected")
            run.found.writers = service.count("writer_started")
            service.stop()
        return run.found
    finally:
        broker.kill()
