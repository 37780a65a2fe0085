"""What the broker has thrown away is seen in its own counter, and that costs nobody anything."""
import contextlib
import socket
import sqlite3
import struct
import time

import pytest

from fakebroker import FakeBroker
from fakebroker import publish as publish_packet
from processes import PATIENCE, wait_until
from publisher import numbered, packet, publish, text
from wire import Wire

COUNTER = "$SYS/broker/publish/messages/dropped"


def leave_a_session(broker, filter_="other/#", client_id="away"):
    """A client that subscribes and goes, and whose session the broker keeps."""
    with socket.create_connection(("127.0.0.1", broker.port), timeout=30) as s:
        s.sendall(packet(0x10, text("MQTT") + bytes([4, 0]) + struct.pack("!H", 0) + text(client_id)))
        assert s.recv(4)[:2] == b"\x20\x02"
        s.sendall(packet(0x82, b"\0\1" + text(filter_) + b"\1"))
        assert s.recv(5)[:2] == b"\x90\x03"
        s.sendall(b"\xe0\0")
        while s.recv(100):
            pass


@pytest.fixture
def short(make_broker):
    """A broker whose queue holds 100 messages a client, and a client that is away and has no room left."""
    broker = make_broker(extra=["max_queued_messages 100"])
    leave_a_session(broker)
    publish(broker, ((f"other/{i}", "x") for i in range(100)))
    return broker


def lose(broker, n):
    """The broker drops n messages, of somebody else, and acknowledges them."""
    publish(broker, ((f"other/{i}", "x") for i in range(n)), client_id="loser")


def told(daemon):
    return sum(int(e.get("dropped") or e["dropped_at_least"]) for e in daemon.events("broker_dropped_messages"))


def watched(daemon):
    """Until the first reading has come: what is dropped from now on is a rise."""
    return daemon.wait_log("drops_read", 20)


def counter_of(daemon):
    return max([int(e["counter"]) for e in daemon.events("drops_read")], default=0)


def lose_and_wait(daemon, broker, n):
    before = counter_of(daemon)
    lose(broker, n)
    wait_until(lambda: counter_of(daemon) >= before + n, 20, "the counter has risen")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_what_the_broker_drops_is_told_and_is_no_record(short, database, ingestd, protocol):
    daemon = ingestd(broker=short.url, protocol=protocol, log_level="debug").wait_ready()
    watched(daemon)
    lose_and_wait(daemon, short, 70)
    first = daemon.wait_log("broker_dropped_messages")
    assert first.level == "error" and "all clients" in first["reason"] and "max_queued_messages" in first["next"]
    assert first["since"].startswith("20") and str(short.port) in first["broker"]
    lose_and_wait(daemon, short, 30)
    publish(short, numbered(10))
    database.wait_for_rows(10)
    # Within a minute there is no second line; what it would have said comes with the stop.
    assert len(daemon.events("broker_dropped_messages")) == 1
    assert daemon.stop() == 0
    assert told(daemon) == 100
    assert daemon.totals()["received"] == 10 and database.count() == 10


def test_what_is_dropped_while_the_connection_is_lost_is_told_too(short, database, ingestd):
    wire = Wire(short.port)
    daemon = ingestd(broker=wire.url, log_level="debug").wait_ready()
    watched(daemon)
    wire.stall("down")
    wire.stall("up")
    lose(short, 25)
    # The broker has published it to nobody but itself: the retained message has it.
    wire.cut()
    wire.flow()
    wait_until(lambda: counter_of(daemon) >= 25, 20, "it is read on the new connection")
    daemon.wait_log("broker_dropped_messages")
    assert daemon.stop() == 0
    assert told(daemon) == 25
    wire.close()


def test_a_broker_that_denies_it_by_its_access_list_is_as_good_as_any(make_broker, database, ingestd, tmp_path):
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite t/#\ntopic readwrite other/#\n")
    acl.chmod(0o600)
    broker = make_broker(extra=[f"acl_file {acl}", "max_queued_messages 1"])
    leave_a_session(broker)
    daemon = ingestd(broker=broker.url).wait_ready()
    lose(broker, 10)
    publish(broker, numbered(10))
    database.wait_for_rows(10)
    assert daemon.stop() == 0
    assert [e for e in daemon.events() if e.level in ("warn", "error")] == []
    assert daemon.totals()["received"] == 10


@pytest.mark.parametrize("protocol, code", [("5", 0x87), ("3.1.1", 0x80)])
def test_a_broker_that_refuses_it_is_as_good_as_any(broker, database, ingestd, protocol, code):
    asked = set()

    def refuse(direction, packets):
        asked.update(p.raw[2:4] for p in packets if p.kind == "SUBSCRIBE" and COUNTER.encode() in p.raw)
        return b"".join(p.raw[:-1] + bytes([code]) if p.kind == "SUBACK" and p.raw[2:4] in asked else p.raw
                        for p in packets)

    wire = Wire(broker.port, refuse)
    daemon = ingestd(broker=wire.url, protocol=protocol, log_level="debug").wait_ready()
    daemon.wait_log("drops_not_watched")
    publish(broker, numbered(10))
    database.wait_for_rows(10)
    assert daemon.stop() == 0 and asked
    assert [e for e in daemon.events() if e.level in ("warn", "error")] == []
    assert [e.name for e in daemon.events() if e.level == "info" and "drop" in e.name] == []
    wire.close()


def test_a_broker_that_ends_the_connection_over_it_is_not_asked_for_ever(broker, database, ingestd):
    asked = []

    def cut(direction, packets):
        if direction == "up" and any(p.kind == "SUBSCRIBE" and COUNTER.encode() in p.raw for p in packets):
            asked.append(1)
            # To the proxy it is as if a peer had ended this connection.
            raise ConnectionError

    wire = Wire(broker.port, cut)
    daemon = ingestd(broker=wire.url)
    wait_until(lambda: len(daemon.events("mqtt_connected")) == 3, 30, "it has tried twice, and once more")
    daemon.wait_log("mqtt_subscribed")
    publish(broker, numbered(10))
    database.wait_for_rows(10)
    assert len(asked) == 2
    wire.close()


def filters_noted(state_dir):
    with contextlib.closing(sqlite3.connect(state_dir / "state.db")) as c:
        return c.execute("SELECT filters FROM session").fetchone()[0]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_it_is_in_no_note_and_no_earlier_filter_takes_it_away(short, database, ingestd, tmp_path, protocol):
    """The run before had the very same filter as its own, which is unsubscribed from."""
    first = ingestd(broker=short.url, protocol=protocol, subscribe=[COUNTER, "u/#"]).wait_ready()
    assert first.stop() == 0
    assert COUNTER in filters_noted(tmp_path / "state")
    second = ingestd(broker=short.url, protocol=protocol, log_level="debug")
    second.wait_log("mqtt_unsubscribed", filter=COUNTER)
    second.wait_log("mqtt_unsubscribed", filter="u/#")
    watched(second)
    lose_and_wait(second, short, 20)
    assert second.stop() == 0
    assert told(second) == 20
    assert "$SYS" not in filters_noted(tmp_path / "state")
    # Nothing is unsubscribed from that the user never had.
    third = ingestd(broker=short.url, protocol=protocol, subscribe="v/#", log_level="debug")
    third.wait_log("mqtt_unsubscribed", filter="t/#")
    watched(third)
    assert third.stop() == 0
    assert len(third.events("mqtt_unsubscribed")) == 1 and third.totals()["received"] == 0


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("filter_", ["$SYS/#", "$SYS/broker/publish/+/dropped", COUNTER])
def test_who_subscribes_to_it_gets_it_once_as_before(short, database, ingestd, protocol, filter_):
    # A run before, whose own subscription is still in the session.
    assert ingestd(broker=short.url, protocol=protocol).wait_ready().stop() == 0
    daemon = ingestd(broker=short.url, protocol=protocol, subscribe=["t/#", filter_], log_level="debug").wait_ready()
    again = protocol == "5" and filter_ == COUNTER
    if not again:
        watched(daemon)
    lose_and_wait(daemon, short, 50)

    def rows():
        return [int(p) for p, in database.query("SELECT payload FROM telemetry WHERE topic = %s ORDER BY time", COUNTER)]

    wait_until(lambda: rows() and rows()[-1] == counter_of(daemon), what="it is stored")
    assert len(rows()) == len(set(rows())), "stored twice"
    assert daemon.stop() == 0
    if again:
        # That subscription is not a new one, and brings no retained message: the first reading is a rise by so many.
        assert "dropped_at_least" in daemon.events("broker_dropped_messages")[0]
    else:
        assert told(daemon) == 50


def with_property(raw, extra):
    """A CONNACK of MQTT 5 with more properties."""
    body = raw[2:4] + bytes([raw[4] + len(extra)]) + extra + raw[5:]
    return bytes([raw[0], len(body)]) + body


@pytest.mark.parametrize("extra, event, level, words", [
    (b"\x24\x00", "mqtt_maximum_qos", "warn", {"maximum": "0", "asked": "1"}),
    (b"\x27\x00\x00\x10\x00", "mqtt_maximum_packet_size", "info", {"bytes": "4096"}),
    (b"\x24\x01\x27\x10\x00\x00\x00", None, None, {}),
], ids=["a quality of service", "a packet size", "nothing that matters"])
def test_limits_of_the_broker_that_keep_messages_away_are_told(broker, database, ingestd, extra, event, level, words):
    wire = Wire(broker.port, lambda direction, packets: b"".join(
        with_property(p.raw, extra) if p.kind == "CONNACK" else p.raw for p in packets))
    daemon = ingestd(broker=wire.url).wait_ready()
    said = [e for e in daemon.events() if e.name.startswith("mqtt_maximum")]
    assert [e.name for e in said] == ([event] if event else [])
    for e in said:
        assert e.level == level and words.items() <= e.items()
    wire.close()


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0, 0.02], ids=["more at once", "more after a pause"])
def test_a_limit_of_messages_in_flight_that_bounds_the_throughput_is_told_with_what_to_change(database, ingestd, pause):
    """Mosquitto 2.0.11 keeps to its limit up to the first PUBACK only; others keep to theirs."""
    broker = FakeBroker()
    daemon = ingestd(broker=broker.url, client_id="capped")
    broker.accept()
    daemon.wait_log("mqtt_subscribed")
    end = time.monotonic() + (60 if not pause else 5) * PATIENCE
    rounds = 0
    while time.monotonic() < end and not daemon.events("mqtt_window_small"):
        broker.client.sendall(b"".join(publish_packet("t/x", b"1", 32 * (rounds % 2000) + i) for i in range(1, 33)))
        assert len(broker.acknowledgements(32)) == 32
        time.sleep(pause)
        rounds += 1
    said = daemon.events("mqtt_window_small")
    assert [(e["messages"], e["receive_maximum"]) for e in said] == ([] if pause else [("32", "65534")])
    assert all("messages in flight" in e["next"] for e in said)
    assert rounds > 100
    broker.close()
