"""The proxy does what it says, to the byte."""
import contextlib
import socket
import threading

import pytest

from processes import wait_until
from toxic import Toxic


class Peer:
    """A server that keeps what it reads and sends what it is told to."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.connections, self.received, self.ends = [], [], []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                self.received.append(bytearray())
                threading.Thread(target=self._read, args=(connection, self.received[-1]), daemon=True).start()

    def _read(self, connection, received):
        try:
            while data := connection.recv(1 << 16):
                received += data
            self.ends.append("FIN")
        except ConnectionResetError:
            self.ends.append("RST")
        except OSError:
            pass

    def close(self):
        self.listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def peer():
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def toxic(peer):
    toxic = Toxic(peer.port)
    yield toxic
    toxic.close()


@pytest.fixture
def connect(toxic, peer):
    made = []

    def connection():
        made.append(socket.create_connection(("127.0.0.1", toxic.port), timeout=10))
        wait_until(lambda: len(peer.connections) == len(made), what="it is through")
        return made[-1]

    yield connection
    for one in made:
        one.close()


def read_to_the_end(connection):
    data = b""
    try:
        while part := connection.recv(1 << 16):
            data += part
        return data, "FIN"
    except ConnectionResetError:
        return data, "RST"


def test_it_passes_on_every_byte_in_both_directions(toxic, peer, connect):
    client, data = connect(), bytes(range(256)) * 40_000
    threading.Thread(target=client.sendall, args=(data,), daemon=True).start()
    wait_until(lambda: len(peer.received[0]) == len(data), what="all is there")
    assert peer.received[0] == data
    threading.Thread(target=peer.connections[0].sendall, args=(data,), daemon=True).start()
    back = bytearray()
    while len(back) < len(data):
        back += client.recv(1 << 16)
    assert back == data
    wait_until(lambda: toxic.passed == {"up": len(data), "down": len(data)}, what="it has counted them")


def test_an_orderly_end_is_passed_on_and_the_other_direction_goes_on(toxic, peer, connect):
    client = connect()
    client.sendall(b"last")
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: peer.ends == ["FIN"], what="the end is there")
    peer.connections[0].sendall(b"answer")
    peer.connections[0].shutdown(socket.SHUT_WR)
    assert read_to_the_end(client) == (b"answer", "FIN")
    wait_until(lambda: toxic.links() == 0, what="it has forgotten the connection")


@pytest.mark.parametrize("abruptly, end", [(True, "RST"), (False, "FIN")])
def test_a_cut_ends_all_connections_and_new_ones_are_welcome(toxic, peer, connect, abruptly, end):
    clients = [connect(), connect()]
    assert toxic.cut(abruptly) == 2
    assert [read_to_the_end(c) for c in clients] == [(b"", end)] * 2
    wait_until(lambda: len(peer.ends) == 2, what="the server has noticed")
    assert peer.ends == [end] * 2
    connect().sendall(b"new")
    wait_until(lambda: peer.received[2] == b"new", what="it goes on")


@pytest.mark.parametrize("abruptly", [True, False])
@pytest.mark.parametrize("n", [1, 7, 1000, 300_001])
def test_it_cuts_right_behind_a_byte_on_the_way_up(toxic, peer, connect, n, abruptly):
    client, data = connect(), b"abc" * 200_000
    client.sendall(b"before")
    wait_until(lambda: peer.received[0] == b"before", what="all before is there")
    toxic.cut_after("up", n, abruptly)
    with contextlib.suppress(OSError):
        client.sendall(data)
    wait_until(lambda: peer.ends, what="it is cut")
    assert peer.received[0] == b"before" + data[:n]
    assert peer.ends == ["RST" if abruptly else "FIN"]
    assert not toxic.armed


@pytest.mark.parametrize("n", [1, 1000, 300_001])
def test_it_cuts_right_behind_a_byte_on_the_way_down_and_leaves_the_other_connection(toxic, peer, connect, n):
    client, other = connect(), connect()
    toxic.cut_after("down", n)
    with contextlib.suppress(OSError):
        peer.connections[0].sendall(b"abc" * 200_000)
    assert read_to_the_end(client)[0] == (b"abc" * 200_000)[:n]
    peer.connections[1].sendall(b"here")
    assert other.recv(10) == b"here"


def test_a_cut_that_was_called_off_does_not_happen(toxic, peer, connect):
    client = connect()
    toxic.cut_after("up", 3)
    toxic.disarm()
    client.sendall(b"abcdef")
    wait_until(lambda: peer.received[0] == b"abcdef", what="all is there")


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_stalled_direction_loses_nothing_and_the_other_goes_on(toxic, peer, connect, direction):
    client = connect()
    toxic.stall(direction)
    client.sendall(b"up")
    peer.connections[0].sendall(b"down")
    if direction == "down":
        wait_until(lambda: peer.received[0] == b"up", what="it goes on upwards")
        assert toxic.passed["down"] == 0
    else:
        assert client.recv(10) == b"down"
        assert peer.received[0] == b""
    toxic.flow(direction)
    wait_until(lambda: peer.received[0] == b"up", what="it goes on upwards")
    if direction == "down":
        assert client.recv(10) == b"down"


def test_a_stalled_connection_can_be_cut(toxic, peer, connect):
    client = connect()
    toxic.stall()
    client.sendall(b"never")
    assert toxic.cut() == 1
    assert read_to_the_end(client) == (b"", "RST")
    toxic.flow()
    assert peer.received[0] == b""


def test_it_refuses_for_a_time_and_leaves_what_stands(toxic, peer, connect):
    client = connect()
    toxic.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", toxic.port), timeout=10)
    client.sendall(b"still")
    wait_until(lambda: peer.received[0] == b"still", what="what stood goes on")
    toxic.accept()
    connect().sendall(b"again")
    wait_until(lambda: peer.received[1] == b"again", what="new ones are welcome")


def test_a_server_that_is_away_is_a_closed_connection(toxic, peer):
    peer.listener.shutdown(socket.SHUT_RDWR)
    peer.close()
    client = socket.create_connection(("127.0.0.1", toxic.port), timeout=10)
    assert read_to_the_end(client)[0] == b""


def test_it_knows_when_the_client_has_read_everything(toxic, peer, connect):
    client = connect()
    assert toxic.client_has_read_all()
    peer.connections[0].sendall(b"12345")
    wait_until(lambda: toxic.passed["down"] == 5, what="it is passed on")
    wait_until(lambda: not toxic.client_has_read_all(), what="it lies with the client's kernel")
    client.recv(3)
    assert not toxic.client_has_read_all()
    client.recv(3)
    assert toxic.client_has_read_all()
