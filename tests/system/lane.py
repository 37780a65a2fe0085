"""The supervisor's end of the channel: a writer with nobody but the test before it."""
import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
import uuid

import msgpack

import logfmt
from daemon import WRITER
from processes import PATIENCE, clean_environment, end, unsent_bytes, wait_until

CONFIG, RECORD, FLUSH, CLOSE, FORGET, CONDEMN = 1, 2, 3, 4, 5, 6
READY, COMMITTED, TROUBLE, DRAINED, CLOSED, FORGOTTEN = 16, 17, 18, 19, 20, 21
VERSION = 3
NAMES = {READY: "READY", COMMITTED: "COMMITTED", TROUBLE: "TROUBLE", DRAINED: "DRAINED", CLOSED: "CLOSED",
         FORGOTTEN: "FORGOTTEN"}
DATA_ERROR, TEMPORARY_FAILURE, CONFIGURATION_ERROR = 65, 75, 78

_libc = ctypes.CDLL(None)


def record(seq, topic="t/1", payload=b"{}", *, size=None, time_us=1_700_000_000_000_000, qos=1, retain=0,
           packet_id=1, content_type=None, properties=()):
    """An encoded RECORD. topic and the properties may be bytes, to hold what MQTT would not let pass."""
    packer = msgpack.Packer(use_bin_type=False, autoreset=False)

    def text(value):
        packer.pack(value if isinstance(value, str) else bytes(value))

    packer.pack_array_header(11)
    packer.pack(RECORD)
    packer.pack(seq)
    packer.pack(time_us)
    text(topic)
    out = packer.bytes() + msgpack.packb(bytes(payload), use_bin_type=True)
    packer.reset()
    for number in (len(payload) if size is None else size, qos, retain, packet_id):
        packer.pack(number)
    packer.pack(None) if content_type is None else text(content_type)
    packer.pack_array_header(2 * len(properties))
    for name, value in properties:
        text(name)
        text(value)
    return out + packer.bytes()


def message(*fields):
    return msgpack.packb(list(fields))


class Lane:
    """A running writer. messages is what it has said so far, events() what it has logged."""

    def __init__(self, dsn, *, configure=True, lane=0, stream=None, committed=0, instance=1, claimed=0, env=None, prefix=(),
                 log_level=1, **options):
        self.stream = stream or str(uuid.uuid4())
        self.committed, self.instance, self.claimed = committed, instance, claimed
        self.options = {"database": dsn, "log-level": log_level,
                        # Transactions of the size that a test gives, unless it gives both.
                        "batch-limit": options.get("batch_size", 500),
                        **{k.replace("_", "-"): v for k, v in options.items()}}
        ours, theirs = socket.socketpair()
        self.socket = ours
        self.lane = lane
        self.seq = 0
        self.messages = []
        self._changed = threading.Condition()
        self._log = []

        def prepare():
            # The descriptor's number is part of the protocol; pytest's own 3 lives on in the parent.
            os.dup2(theirs.fileno(), 3)
            os.set_inheritable(3, True)
            _libc.prctl(1, signal.SIGKILL)

        self.process = subprocess.Popen([*prefix, str(WRITER)], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, close_fds=False,
                                        env=clean_environment(**(env or {})), preexec_fn=prepare)
        theirs.close()
        self.pid = self.process.pid
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._hear, self._read_log)]
        for thread in self._threads:
            thread.start()
        if configure:
            self.configure()

    def _hear(self):
        unpacker = msgpack.Unpacker(raw=False)
        while True:
            try:
                data = self.socket.recv(65536)
            except OSError:
                return
            if not data:
                return
            unpacker.feed(data)
            with self._changed:
                self.messages += [(time.monotonic(), m) for m in unpacker]
                self._changed.notify_all()

    def _read_log(self):
        for raw in self.process.stderr:
            self._log.append(raw.decode(errors="surrogateescape").rstrip("\n"))

    def configure(self, version=VERSION):
        text = "".join(f"{k}={v}\n" for k, v in self.options.items())
        self.send(message(CONFIG, version, self.lane, self.stream, text, self.committed, 0, 1, self.instance,
                          self.claimed))

    def send(self, data):
        self.socket.sendall(data)

    def publish(self, payload, topic="t/1", **fields):
        """Sends one record and returns its seq."""
        self.seq += 1
        self.send(record(self.seq, topic, payload, **fields))
        return self.seq

    def wait_read(self):
        """Until the writer has read all that was sent."""
        wait_until(lambda: unsent_bytes(self.socket) == 0, what="the writer has read all")

    def flush(self):
        self.send(message(FLUSH))

    def said(self, kind):
        with self._changed:
            return [m[1:] for _, m in self.messages if m[0] == kind]

    def wait_for(self, kind, condition=lambda m: True, timeout=20):
        """The first message of this kind for which condition holds: its fields without the type."""
        def look():
            if self.process.poll() is not None:
                self._threads[0].join(5)
            found = next((m[1:] for _, m in list(self.messages) if m[0] == kind and condition(m[1:])), None)
            assert found or self.process.poll() is None, (
                f"the writer ended with {self.process.returncode} before {NAMES[kind]}: {self.log()}")
            return found

        return wait_until(look, timeout, f"{NAMES[kind]}; so far {self.messages[-5:]}, {self.log()}")

    def wait_ready(self, timeout=20):
        return self.wait_for(READY, timeout=timeout)

    def wait_committed(self, seq=None, timeout=30):
        seq = self.seq if seq is None else seq
        return self.wait_for(COMMITTED, lambda m: m[0] >= seq, timeout)

    def wait_trouble(self, condition=lambda m: True, timeout=20):
        """(class, SQLSTATE, text)"""
        return self.wait_for(TROUBLE, condition, timeout)

    def end_of_file(self):
        self.socket.shutdown(socket.SHUT_WR)

    def wait_exit(self, timeout=30):
        status = self.process.wait(timeout * PATIENCE)
        for thread in self._threads:
            thread.join(5)
        return status

    def log(self):
        return "\n".join(self._log)

    def events(self, name=None):
        parsed = [logfmt.parse(line) for line in list(self._log)]
        strange = [line for line, event in zip(self._log, parsed) if event is None]
        assert not strange, f"lines that are no log lines: {strange}"
        return [e for e in parsed if name in (None, e.name)]

    def clean_up(self):
        self.socket.close()
        end(self.process, signal.SIGKILL)
        for thread in self._threads:
            thread.join(5)
        self.process.stderr.close()
