"""
The load of a run: publishes at a steady rate, or a number on demand, and writes everything into the book.

A thread. It goes on over every end of its connection; what was not acknowledged by then stays a `maybe` in the
book. Must never send a message again: the next one has a new id.
"""
import select
import struct
import threading
import time

from publisher import CHUNK, Publisher

WINDOW = 20000
TICK = 0.01
RECONNECT_EVERY = 0.05


class Load(threading.Thread):
    def __init__(self, port, messages, book, began):
        super().__init__(daemon=True)
        self.trouble = None
        self._port, self._messages, self._book, self._began = port, messages, book, began
        self._rate = self._owed = 0.0
        self._burst = 0
        self._lock = threading.Lock()
        self._reckoned = time.monotonic()
        self._waiting = 0
        self._ending = threading.Event()
        self.start()

    # For the one who directs it

    def steady(self, rate):
        """So many messages a second from now on."""
        with self._lock:
            self._rate, self._reckoned, self._owed = rate, time.monotonic(), 0.0

    def publish(self, n):
        """n more, as fast as the broker takes them."""
        with self._lock:
            self._burst += n

    def idle(self):
        """True when nothing is to be sent and nothing waits for its PUBACK."""
        with self._lock:
            return self._rate == 0 and self._burst == 0 and self._waiting == 0

    def finish(self, timeout=60):
        """Returns when all that was sent is acknowledged."""
        self._ending.set()
        self.join(timeout)
        assert not self.is_alive(), f"the broker has not acknowledged everything within {timeout} s"
        if self.trouble is not None:
            raise self.trouble

    # The thread

    def run(self):
        try:
            while not self._ending.is_set() or self._burst:
                connection = self._connect()
                if connection is None:
                    self._ending.wait(RECONNECT_EVERY)
                elif self._serve(connection):
                    return
        except Exception as e:
            self.trouble = e

    def _connect(self):
        try:
            return Publisher(self._port, "ledger")
        except (OSError, AssertionError):
            # It is away or on its way; while it is, there is nothing to be acknowledged either.
            self.steady(self._rate)
            return None

    def _serve(self, connection):
        """True when it is through, False when the connection has ended."""
        self._pending, self._rest = {}, b""
        try:
            self._serve_until_through(connection)
            connection.close()
            return True
        except OSError:
            return False
        finally:
            connection.socket.close()
            with self._lock:
                self._waiting = 0

    def _serve_until_through(self, connection):
        out = b""
        while True:
            ending = self._ending.is_set()
            out += self._encode_what_is_due(connection, ending)
            if ending and not out and not self._pending and not self._burst:
                return
            readable, writable, _ = select.select([connection.socket], [connection.socket] if out else [], [], TICK)
            if readable:
                self._take_acknowledgements(connection)
            if writable:
                out = out[connection.socket.send(out[:CHUNK]):]

    def _due(self, ending):
        with self._lock:
            now = time.monotonic()
            if not ending:
                self._owed += self._rate * (now - self._reckoned)
            self._reckoned = now
            room = WINDOW - len(self._pending)
            # What the window has no room for is not made up for later.
            n, self._owed = min(room, int(self._owed)), self._owed % 1
            # Small steps, so that acknowledgements are read in between.
            burst = min(room - n, self._burst, 500)
            self._burst -= burst
            self._waiting = len(self._pending) + n + burst
            return n + burst

    def _encode_what_is_due(self, connection, ending):
        n, at = self._due(ending), time.monotonic() - self._began
        parts = []
        for _ in range(n):
            message = self._messages.next()
            message.at = at
            self._book.write(message)
            parts.append(connection._encode(message.topic, message.payload, 1, False))
            self._pending[connection._next_id] = message.id
        return b"".join(parts)

    def _take_acknowledgements(self, connection):
        try:
            data = connection.socket.recv(CHUNK)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError("the broker closed the connection")
        data = self._rest + data
        whole = len(data) // 4 * 4
        self._rest = data[whole:]
        for first, length, packet_id in struct.iter_unpack("!BBH", data[:whole]):
            assert (first, length) == (0x40, 2), f"not a PUBACK: {first:#x}"
            self._book.acknowledge(self._pending.pop(packet_id))
        with self._lock:
            self._waiting -= whole // 4
