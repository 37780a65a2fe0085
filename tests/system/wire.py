"""
The wire between ingestd and the broker: a TCP proxy that reads MQTT packets in both directions and lets a
test look at them, hold them, change them, stall or cut; and an address that swallows connections.
"""
import select
import socket
import struct
import threading

TYPES = {1: "CONNECT", 2: "CONNACK", 3: "PUBLISH", 4: "PUBACK", 8: "SUBSCRIBE", 9: "SUBACK", 10: "UNSUBSCRIBE",
         11: "UNSUBACK", 12: "PINGREQ", 13: "PINGRESP", 14: "DISCONNECT"}


class Packet:
    """raw: the packet's bytes. body: what follows the fixed header."""

    __slots__ = ("kind", "raw", "body", "version")

    def __init__(self, raw, body, version):
        self.kind = TYPES.get(raw[0] >> 4, str(raw[0] >> 4))
        self.raw, self.body, self.version = raw, body, version

    @property
    def qos(self):
        return self.raw[0] >> 1 & 3

    @property
    def topic(self):
        return self.body[2:2 + struct.unpack_from("!H", self.body)[0]].decode()

    @property
    def packet_id(self):
        at = 2 + struct.unpack_from("!H", self.body)[0] if self.kind == "PUBLISH" else 0
        return struct.unpack_from("!H", self.body, at)[0]

    @property
    def payload(self):
        at = 2 + struct.unpack_from("!H", self.body)[0] + (2 if self.qos else 0)
        if self.version == 5:
            length, used = _variable(self.body, at)
            at += used + length
        return self.body[at:]

    @property
    def client_id(self):
        """Of a CONNECT."""
        at = 10
        if self.version == 5:
            length, used = _variable(self.body, at)
            at += used + length
        return self.body[at + 2:at + 2 + struct.unpack_from("!H", self.body, at)[0]].decode()

    def __repr__(self):
        return f"{self.kind}({self.raw[:24].hex()})"


def _variable(data, at):
    """The variable byte integer at data[at], and how many bytes it takes; (None, 0) if it is not all there."""
    value = 0
    for i in range(4):
        if at + i >= len(data):
            return None, 0
        value |= (data[at + i] & 0x7F) << 7 * i
        if not data[at + i] & 0x80:
            return value, i + 1
    raise ValueError("malformed length")


class _Link:
    """One connection through the proxy."""

    def __init__(self, wire, client):
        self.wire, self.client, self.version = wire, client, 4
        self.broker = socket.create_connection(("127.0.0.1", wire.upstream), timeout=10)
        for s in (client, self.broker):
            s.settimeout(None)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, target, direction in ((client, self.broker, "up"), (self.broker, client, "down")):
            threading.Thread(target=self._pump, args=(source, target, direction), daemon=True).start()

    def _split(self, data):
        """Whole packets at the start of data, and the rest."""
        packets, at = [], 0
        while at + 2 <= len(data):
            length, used = _variable(data, at + 1)
            if length is None or at + 1 + used + length > len(data):
                break
            end = at + 1 + used + length
            raw, body = bytes(data[at:end]), bytes(data[at + 1 + used:end])
            if raw[0] >> 4 == 1:
                self.version = body[6]
            packets.append(Packet(raw, body, self.version))
            at = end
        return packets, data[at:]

    def _pump(self, source, target, direction):
        rest = bytearray()
        try:
            while True:
                self.wire.flowing[direction].wait()
                data = source.recv(1 << 18)
                if not data:
                    break
                self.wire.flowing[direction].wait()
                packets, rest = self._split(rest + data)
                if not packets:
                    continue
                self.wire.seen(direction, packets)
                replaced = self.wire.on_packets(direction, packets) if self.wire.on_packets else None
                target.sendall(b"".join(p.raw for p in packets) if replaced is None else replaced)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()

    def close(self, abruptly=False):
        for s in (self.client, self.broker):
            try:
                if abruptly:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()


class Wire:
    """
    on_packets(direction, packets) is called with whole packets before they are passed on, direction "up" towards
    the broker or "down"; it may block, which holds them, and may return other bytes to pass on instead.
    .packets has counts by (direction, kind), .connects the CONNECT packets.
    """

    def __init__(self, upstream, on_packets=None):
        self.upstream, self.on_packets = upstream, on_packets
        self.flowing = {"up": threading.Event(), "down": threading.Event()}
        self.flow()
        self.packets, self.connects, self._links = {}, [], []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"mqtt://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                self._links.append(_Link(self, client))
            except OSError:
                client.close()

    def seen(self, direction, packets):
        for p in packets:
            key = direction, p.kind
            self.packets[key] = self.packets.get(key, 0) + 1
            if p.kind == "CONNECT":
                self.connects.append(p)

    def count(self, direction, kind):
        return self.packets.get((direction, kind), 0)

    def stall(self, direction="down"):
        self.flowing[direction].clear()

    def flow(self):
        for event in self.flowing.values():
            event.set()

    def cut(self):
        """Resets every connection of now; new ones are welcome."""
        links, self._links = self._links, []
        for link in links:
            link.close(abruptly=True)

    def close(self):
        # shutdown() is what wakes a thread that waits in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.flow()
        self.cut()


class SwallowingAddress:
    """A port whose connection requests get no answer at all: a listening socket with a full accept queue."""

    def __init__(self):
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port = self._listener.getsockname()[1]
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._fillers = []
        while True:
            s = socket.socket()
            s.setblocking(False)
            s.connect_ex(("127.0.0.1", self.port))
            self._fillers.append(s)
            # On the loopback an answer comes at once or not at all.
            if not select.select([], [s], [], 0.2)[1]:
                break

    def take(self, timeout=30):
        """Takes connections after all, until one has sent something; its peer gets no answer."""
        for s in self._fillers:
            s.close()
        self._fillers = []
        self._listener.settimeout(timeout)
        while True:
            s, _ = self._listener.accept()
            self._fillers.append(s)
            s.settimeout(timeout)
            try:
                if s.recv(1):
                    return
            except ConnectionError:
                continue

    def close(self):
        for s in [self._listener, *self._fillers]:
            s.close()
