"""
A publisher that is faster than what it tests: MQTT 3.1.1 packets by hand, many to one send, one window of
unacknowledged messages. paho makes some thousand QoS 1 messages a second, this some hundred thousand.
"""
import select
import socket
import struct

CHUNK = 1 << 17


def remaining_length(n):
    out = bytearray()
    while True:
        n, digit = divmod(n, 128)
        out.append(digit | (0x80 if n else 0))
        if not n:
            return bytes(out)


def text(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(raw)) + raw


def packet(first, body):
    return bytes([first]) + remaining_length(len(body)) + body


class Publisher:
    """Connects at once. publish() returns when the broker has acknowledged all (QoS 1) or taken all (QoS 0)."""

    def __init__(self, port, client_id="publisher", window=20000, user=None, password=None):
        self.window = window
        self.acknowledged = 0
        self._next_id = 0
        self._rest = b""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flags = 0x02 | (0x80 if user else 0) | (0x40 if password else 0)
        body = text("MQTT") + bytes([4, flags]) + struct.pack("!H", 0) + text(client_id)
        if user:
            body += text(user)
        if password:
            body += text(password)
        self.socket.sendall(packet(0x10, body))
        answer = b""
        while len(answer) < 4:
            part = self.socket.recv(4 - len(answer))
            assert part, "the broker closed the connection"
            answer += part
        assert answer[0] == 0x20 and answer[3] == 0, f"the broker refused: {answer!r}"
        self.socket.setblocking(False)

    def _encode(self, topic, payload, qos, retain):
        if isinstance(payload, str):
            payload = payload.encode()
        body = text(topic)
        if qos:
            self._next_id = self._next_id % 65535 + 1
            body += struct.pack("!H", self._next_id)
        return packet(0x30 | qos << 1 | retain, body + payload)

    def _take_acknowledgements(self):
        try:
            data = self.socket.recv(CHUNK)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError("the broker closed the connection")
        data = self._rest + data
        whole = len(data) // 4 * 4
        self._rest = data[whole:]
        for at in range(0, whole, 4):
            assert data[at] == 0x40, f"not a PUBACK: {data[at:at + 4]!r}"
        self.acknowledged += whole // 4

    def publish(self, messages, qos=1, retain=False, timeout=60):
        """messages: (topic, payload) each, str or bytes."""
        messages = iter(messages)
        sent = self.acknowledged
        out, finished = b"", False
        while True:
            parts, size = [out], len(out)
            while not finished and size < CHUNK and (not qos or sent - self.acknowledged < self.window):
                one = next(messages, None)
                if one is None:
                    finished = True
                    break
                parts.append(self._encode(*one, qos, retain))
                size += len(parts[-1])
                sent += bool(qos)
            out = b"".join(parts)
            if finished and not out and self.acknowledged == sent:
                return
            readable, writable, _ = select.select([self.socket], [self.socket] if out else [], [], timeout)
            assert readable or writable, f"the broker took nothing for {timeout} s"
            if readable:
                self._take_acknowledgements()
            if writable:
                out = out[self.socket.send(out[:CHUNK * 4]):]

    def close(self):
        """Says good-bye and waits for the broker's end, so that everything sent has been read."""
        self.socket.settimeout(30)
        self.socket.sendall(b"\xe0\x00")
        try:
            while self.socket.recv(CHUNK):
                pass
        except ConnectionError:
            pass
        self.socket.close()


def publish(broker, messages, qos=1, retain=False, **kwargs):
    """Connects, publishes, leaves."""
    publisher = Publisher(broker.port, **kwargs)
    publisher.publish(messages, qos, retain)
    publisher.close()


def numbered(n, topics=50, start=0, prefix="t/", pad=""):
    """n messages {"n": i} round and round over the topics."""
    for i in range(start, start + n):
        yield f"{prefix}{i % topics}", f'{{"n": {i}, "pad": "{pad}"}}' if pad else f'{{"n": {i}}}'
