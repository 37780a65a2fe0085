"""`ingestd dead-letters` as the tests see it: a run of it, with a terminal or without, and letters for it."""
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

from daemon import PROGRAM, options
from processes import PATIENCE, clean_environment, die_with_parent

T0 = "2026-11-22 17:03:01.123456+00"
DONE, STAYED, USAGE, TEMPORARY, CONFIGURATION = 0, 65, 64, 75, 78


class Command:
    """A run of the command. With terminal=True its standard input and error are a terminal of this test's."""

    def __init__(self, *words, terminal=False, env=None, stdin=subprocess.DEVNULL, width=100, **named):
        self.screen = b""
        self._master = slave = None
        if terminal:
            self._master, slave = pty.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        self.process = subprocess.Popen(
            [str(PROGRAM), "dead-letters", *map(str, words), *options(**named)],
            stdin=slave if terminal else stdin, stdout=subprocess.PIPE,
            stderr=slave if terminal else subprocess.PIPE, env=clean_environment(**(env or {})),
            preexec_fn=die_with_parent())
        if terminal:
            os.close(slave)

    def look(self, text=None, timeout=20):
        """Reads the terminal until it shows the text, or has closed."""
        deadline = time.monotonic() + timeout * PATIENCE
        while text is None or text.encode() not in self.screen:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"not on the terminal: {text!r}; it shows {self.screen!r}"
            try:
                data = os.read(self._master, 4096)
            except OSError:
                break
            if not data:
                break
            self.screen += data
        return self.screen.decode()

    def type(self, text):
        os.write(self._master, text.encode())

    def end(self, timeout=60):
        """(status, output, errors)"""
        if self._master is not None:
            self.look()
        out, err = self.process.communicate(timeout=timeout * PATIENCE)
        if self._master is not None:
            os.close(self._master)
            err = self.screen
        return self.process.returncode, out.decode(), err.decode()

    def kill(self):
        self.process.kill()
        self.process.communicate()


def add(database, payload=b'{"a": 1}', topic="t/1", received=T0, reason="made by the test", **more):
    """One dead letter; returns its id."""
    columns = {"received": received, "topic": topic, "payload": payload, "qos": 1, "retain": False, "lane": 0,
               "reason": reason, **more}
    return database.value(f"INSERT INTO ingestd.dead_letter ({', '.join(columns)}) "
                          f"VALUES ({', '.join(['%s'] * len(columns))}) RETURNING id", *columns.values())


def add_many(database, n, start=0, topics=10):
    """n of them with the payloads {"n": i}, all good."""
    database.query("INSERT INTO ingestd.dead_letter (received, topic, payload, qos, retain, lane, reason) "
                   "SELECT %s::timestamptz + i * interval '1 second', 't/' || i %% %s, "
                   "convert_to(format('{\"n\": %%s}', i), 'UTF8'), 1, false, 0, 'made by the test' "
                   "FROM generate_series(%s::int, %s::int) i", T0, topics, start, start + n - 1)


def left(database):
    """The ids that are there."""
    return [row[0] for row in database.query("SELECT id FROM ingestd.dead_letter ORDER BY id")]


def numbers(database, table="telemetry"):
    return sorted(row[0] for row in database.query(f"SELECT (payload->>'n')::int FROM {table}"))


def letter_numbers(database):
    return sorted(row[0] for row in database.query(
        "SELECT (convert_from(payload, 'UTF8')::jsonb->>'n')::int FROM ingestd.dead_letter"))
