"""
The MQTT socket with its buffers and without: what a broker may do to a stream of bytes gives the same rows, the same
acknowledgements, the same reasons in the log and the same memory in three builds: with the buffers, without them, and
with buffers that libmosquitto does not find.
"""
import time

import pytest

from daemon import PROGRAM
from fakebroker import FakeBroker, publish
from mutants import PROGRAMS, copy_tree
from processes import BUILD, PATIENCE, ROOT, SANITIZED, cpu_seconds, make, run, wait_until
from publisher import numbered
from publisher import publish as publish_all
from wire import SwallowingAddress

pytestmark = pytest.mark.skipif(BUILD.name.endswith(".unbuffered"), reason="a build without buffers to compare with")

MIB = 1 << 20
BUFFERED, UNBUFFERED, NOT_FOUND = "buffered", "unbuffered", "buffered, not found"


@pytest.fixture(scope="session")
def without():
    """Made by `make check` before the tests; here for those who run this file alone."""
    make("MQTT_SOCKET_BUFFER=0", "all")
    return ROOT / "build.unbuffered/ingestd"


@pytest.fixture(scope="session")
def not_found(tmp_path_factory):
    """Its read and write are not among the symbols that the dynamic linker sees."""
    home = tmp_path_factory.mktemp("not_found")
    copy_tree(home)
    (home / "build/supervisor/mqtt_socket.o").unlink(missing_ok=True)
    run("make", "-s", "-C", home, *PROGRAMS, "CFLAGS=-O1 -fvisibility=hidden", timeout=300)
    return home / "build/ingestd"


@pytest.fixture(params=[BUFFERED, UNBUFFERED, NOT_FOUND])
def program(request):
    if request.param == BUFFERED:
        return PROGRAM
    if SANITIZED:
        pytest.skip("they are compared in another build")
    return request.getfixturevalue("without" if request.param == UNBUFFERED else "not_found")


@pytest.fixture
def fake():
    broker = FakeBroker()
    yield broker
    broker.close()
    broker.close()


@pytest.fixture
def start(ingestd, table, program, fake):
    """Starts this build against the fake broker, subscribed."""
    def go(**options):
        daemon = ingestd(**{"broker": fake.url, "writers": 1, "client_id": "odd", "program": program, **options})
        fake.accept()
        daemon.wait_log("mqtt_subscribed")
        daemon.wait_log("writer_ready")
        return daemon

    return go


def numbers(table):
    return [n for (n,) in table.query("SELECT (payload->>'n')::int FROM telemetry ORDER BY id")]


def some(first, last, dup=False):
    return [publish("t/x", b'{"n": %d}' % n, n, dup) for n in range(first, last + 1)]


def finish(daemon, fake, expected):
    """Everything is acknowledged in its order, and the stop is a clean one."""
    assert fake.acknowledged(0.3) == expected
    assert daemon.stop() == 0


def test_the_debug_log_says_when_the_socket_is_not_buffered(database, broker, ingestd, program):
    daemon = ingestd(program=program, log_level="debug").wait_ready()
    assert bool(daemon.events("mqtt_socket_unbuffered")) == (program != PROGRAM)
    assert daemon.stop() == 0


def test_one_byte_at_a_time_is_as_good_as_any(start, fake, table):
    daemon = start()
    fake.send_bytewise(b"".join(some(1, 50)))
    table.wait_for_rows(50)
    assert numbers(table) == list(range(1, 51))
    finish(daemon, fake, list(range(1, 51)))


def test_a_thousand_packets_in_one_segment_come_in_order(start, fake, table):
    daemon = start()
    # More than are read in a turn, and few enough for the buffer: poll(2) will not tell of the rest.
    fake.send(b"".join(some(1, 2000)))
    table.wait_for_rows(2000)
    assert numbers(table) == list(range(1, 2001))
    finish(daemon, fake, list(range(1, 2001)))


def test_payloads_around_the_size_of_a_buffer_are_stored_as_they_are(start, fake, table):
    sizes = [1, 65500, 65535, 65536, 65537, 131072, 200_000, 3, 1_000_000, 70_000]
    payloads = [b'"%s"' % (b"%d " % size * size)[:size] for size in sizes]
    daemon = start()
    fake.send(b"".join(publish("t/x", p, i) for i, p in enumerate(payloads, 1)))
    table.wait_for_rows(len(payloads))
    assert [p for (p,) in table.query("SELECT payload::text FROM telemetry ORDER BY id")] == [
        p.decode() for p in payloads]
    finish(daemon, fake, list(range(1, len(payloads) + 1)))


@pytest.mark.parametrize("ends", ["eof", "reset"])
@pytest.mark.parametrize("cut", [1, 2, 12], ids=lambda n: f"after {n} bytes of a packet")
def test_an_end_in_the_middle_of_a_packet_is_one_end_and_no_row(start, fake, table, cut, ends):
    daemon = start()
    whole = some(1, 20)
    fake.send(b"".join(whole) + some(21, 21)[0][:cut])
    table.wait_for_rows(20)
    assert fake.acknowledged(0.3) == list(range(1, 21))
    fake.client.close() if ends == "eof" else fake.reset()
    lost = daemon.wait_log("mqtt_connection_lost")
    assert lost["reason"] == "the broker closed the connection"
    assert lost["unacknowledged"] == "0"
    fake.accept(session_present=True)
    fake.send(b"".join(some(21, 21, True) + some(22, 30)))
    table.wait_for_rows(30)
    assert numbers(table) == list(range(1, 31))
    finish(daemon, fake, list(range(21, 31)))
    assert len(daemon.events("mqtt_connection_lost")) == 1


def test_what_came_before_an_end_of_file_is_read_before_it(start, fake, table):
    daemon = start()
    fake.client.sendall(b"".join(some(1, 400)))
    fake.client.close()
    assert daemon.wait_log("mqtt_connection_lost")["reason"] == "the broker closed the connection"
    fake.accept(session_present=True)
    fake.send(b"".join(some(1, 400, True)))
    table.wait_for_rows(400)
    assert daemon.wait_log("session_resumed")["recognised"] == "400"
    assert numbers(table) == list(range(1, 401))
    finish(daemon, fake, list(range(1, 401)))


def test_bytes_that_are_no_mqtt_end_the_connection_with_its_reason(start, fake, table):
    daemon = start()
    fake.send(b"".join(some(1, 5)) + b"\x00\x00" + b"".join(some(6, 6)))
    lost = daemon.wait_log("mqtt_connection_lost")
    assert "protocol" in lost["reason"].lower()
    fake.accept(session_present=True)
    fake.send(b"".join(some(1, 6, True)))
    table.wait_for_rows(6)
    assert sorted(numbers(table)) == list(range(1, 7))
    finish(daemon, fake, list(range(1, 7)))


def test_a_packet_of_256_mib_that_is_only_announced_takes_no_memory(start, fake, table):
    daemon = start()
    before = daemon.rss()
    fake.send(b"".join(some(1, 3)) + b"\x32\xff\xff\xff\x7f" + bytes(MIB))
    table.wait_for_rows(3)
    wait_until(lambda: fake.unread() == 0, what="all is read")
    if not SANITIZED:
        assert daemon.rss() - before < 8 * MIB
    fake.client.close()
    assert daemon.wait_log("mqtt_connection_lost")["reason"] == "the broker closed the connection"
    fake.accept(session_present=True)
    fake.send(b"".join(some(1, 3, True) + some(4, 4)))
    table.wait_for_rows(4)
    finish(daemon, fake, [1, 2, 3, 4])


def test_a_broker_that_takes_a_few_bytes_at_a_time_gets_every_acknowledgement_once(table, program, ingestd):
    slow = FakeBroker(receive_buffer=2048, segment=88)
    daemon = ingestd(broker=slow.url, writers=1, client_id="odd", program=program, receive_maximum=65535,
                     ack_interval="60s")
    slow.accept()
    slow.send(b"".join(some(1, 30_000)))
    table.wait_for_rows(30_000)
    # More than its buffer and the kernels hold: some has to wait with libmosquitto.
    assert slow.acknowledged(3) == list(range(1, 30_001))
    assert daemon.stop() == 0
    slow.close()


def test_over_tls_the_bytes_go_the_same_way(make_broker, database, ingestd, program):
    broker = make_broker(tls=True)
    port = broker.also_plain()
    daemon = ingestd(broker=f"mqtts://localhost:{broker.port}", program=program, log_level="debug",
                     env={"SSL_CERT_FILE": broker.certificate}).wait_ready()
    assert bool(daemon.events("mqtt_socket_unbuffered")) == (program != PROGRAM)
    broker.port = port
    publish_all(broker, numbered(2000))
    publish_all(broker, [("t/large", '"' + "x" * 300_000 + '"')])
    database.wait_for_rows(2001)
    assert database.query("SELECT length(payload::text) FROM telemetry WHERE topic = 't/large'") == [(300_002,)]
    assert daemon.stop() == 0


def test_a_stop_with_a_question_half_out_leaves_no_hole_in_it(table, ingestd, program):
    slow = FakeBroker(receive_buffer=2048, segment=536)
    filters = [f"f{i:05}/" + "x" * 200 for i in range(1500)]
    daemon = ingestd(broker=slow.url, writers=1, client_id="odd", subscribe=filters, program=program)
    slow.connect()
    daemon.wait_log("mqtt_connected")
    slow.wait_readable()
    daemon.signal()
    daemon.wait_log("shutdown_initiated")
    came = slow.rest()
    assert daemon.wait() == 0
    assert [f for f in filters if f.encode() not in came] == []
    slow.close()


def test_a_handshake_that_waits_for_its_peer_is_no_busy_loop(database, ingestd):
    address = SwallowingAddress()
    daemon = ingestd(broker=f"mqtts://127.0.0.1:{address.port}", writers=1)
    # It is on its way already. The connection comes about late, and nobody answers on it.
    daemon.wait_log("broker_unreachable")
    address.take()
    before = cpu_seconds(daemon.pid)
    time.sleep(2)
    assert cpu_seconds(daemon.pid) - before < 0.3 * PATIENCE
    assert daemon.stop() == 0
    address.close()
