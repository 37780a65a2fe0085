"""A broker that does what Mosquitto would not: it sends what it is told to, and reads when it is told to."""
import select
import socket
import struct

from processes import unread_bytes, unsent_bytes, wait_until


def variable_length(n):
    out = b""
    while True:
        n, byte = divmod(n, 128)
        out += bytes([byte | (128 if n else 0)])
        if not n:
            return out


def publish(topic, payload, packet_id, dup=False):
    """A PUBLISH of QoS 1, MQTT 5."""
    body = struct.pack("!H", len(topic)) + topic.encode() + struct.pack("!H", packet_id) + b"\0" + payload
    return (b"\x3a" if dup else b"\x32") + variable_length(len(body)) + body


class FakeBroker:
    def __init__(self, receive_buffer=None, segment=None):
        self.listener = socket.socket()
        if receive_buffer is not None:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if segment is not None:
            self.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(5)
        self.url = f"mqtt://127.0.0.1:{self.listener.getsockname()[1]}"
        self.buffer = b""

    def connect(self, session_present=False):
        """Takes the connection, up to the CONNACK."""
        self.listener.settimeout(30)
        self.buffer = b""
        self.client, _ = self.listener.accept()
        assert self.packet(30)[0] >> 4 == 1
        self.client.sendall(b"\x20\x03" + bytes([session_present]) + b"\0\0")

    def accept(self, session_present=False):
        """Takes the connection, up to the SUBACK."""
        self.connect(session_present)
        subscribe = self.packet(30)
        assert subscribe[0] >> 4 == 8
        self.client.sendall(b"\x90\x04" + subscribe[2:4] + b"\0\x01")

    def acknowledged(self, timeout, answer=True):
        """
        Packet ids of the PUBACKs that come, until none has come for that long. An UNSUBSCRIBE, which asks whether
        they have come, is answered if that is wanted.
        """
        return self.acknowledgements(None, timeout, answer)

    def acknowledgements(self, count, timeout=30, answer=True):
        """The next count of them, or those that come until none has come for that long."""
        found = []
        try:
            while len(found) != count:
                packet = self.packet(timeout)
                if packet[0] >> 4 == 4:
                    found.append(struct.unpack("!H", packet[2:4])[0])
                elif packet[0] >> 4 == 10 and answer:
                    self.client.sendall(b"\xb0\x04" + packet[2:4] + b"\0\x11")
        except TimeoutError:
            pass
        return found

    def packet(self, timeout):
        """The next packet, of less than 128 bytes or the CONNECT; TimeoutError when none comes."""
        self.client.settimeout(timeout)
        while len(self.buffer) < 2 or len(self.buffer) < 2 + self.buffer[1]:
            data = self.client.recv(65536)
            assert data, "ingestd closed the connection"
            self.buffer += data
        length = 2 + self.buffer[1]
        packet, self.buffer = self.buffer[:length], self.buffer[length:]
        return packet

    def wait_readable(self):
        assert select.select([self.client], [], [], 30)[0], "nothing comes from ingestd"

    def rest(self, timeout=30):
        """All that comes until ingestd has nothing more to send on this connection."""
        self.client.settimeout(timeout)
        came, self.buffer = self.buffer, b""
        while data := self.client.recv(65536):
            came += data
        return came

    def send(self, data):
        """Returns when ingestd's side has all of it."""
        self.client.settimeout(60)
        self.client.sendall(data)
        wait_until(lambda: unsent_bytes(self.client) == 0, 60, "all is sent")

    def unread(self):
        """Bytes that ingestd's kernel has and ingestd has not read."""
        ports = self.client.getpeername()[1], self.client.getsockname()[1]
        return unread_bytes().get(ports, 0)

    def send_bytewise(self, data):
        """Every byte in a segment of its own, each read before the next is sent or not."""
        self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(data)):
            self.client.sendall(data[i:i + 1])

    def reset(self):
        """Ends the connection by RST."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()

    def close(self):
        self.client.close()
        self.listener.close()
