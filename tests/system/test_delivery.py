"""Messages become rows: all of them, in order, and acknowledged no sooner than that."""
import json
import os
import signal
import threading

import pytest

from processes import PATIENCE, SANITIZED, wait_until
from publisher import Publisher, numbered, publish
from wire import Wire

MANY = 20_000 if SANITIZED else 100_000


def numbers_by_topic(database, table="telemetry"):
    """{topic: [n, …]} in the order of insertion; the table must have been made by create_numbered_table()."""
    found = {}
    for topic, n in database.query(f"SELECT topic, (payload->>'n')::int FROM {table} ORDER BY id"):
        found.setdefault(topic, []).append(n)
    return found


def assert_all_once_in_order(database, n, topics=50):
    found = numbers_by_topic(database)
    expected = {f"t/{t}": list(range(t, n, topics)) for t in range(topics)}
    assert found.keys() == expected.keys()
    for topic, numbers in found.items():
        assert numbers == expected[topic], f"{topic} is not what was published"


def test_a_message_becomes_a_row_with_time_topic_and_payload(broker, database, ingestd):
    ingestd(subscribe="sensors/#").wait_ready()
    publish(broker, [("sensors/kitchen", '{"temperature": 21.10}')])
    database.wait_for_rows(1)
    topic, payload, age = database.query(
        "SELECT topic, payload::text, extract(epoch FROM now() - time)::float FROM telemetry")[0]
    assert (topic, payload) == ("sensors/kitchen", '{"temperature": 21.10}')
    assert 0 <= age < 30 * PATIENCE


@pytest.mark.slow
def test_no_message_of_a_hundred_thousand_is_lost_doubled_or_reordered(broker, database, ingestd):
    database.create_numbered_table()
    daemon = ingestd().wait_ready()
    # One lane stands still for a moment: what belongs together must not overtake it in the other one.
    slow = daemon.writers()[0]
    os.kill(slow, signal.SIGSTOP)
    publish(broker, numbered(2000))
    database.wait_for_rows(400)
    os.kill(slow, signal.SIGCONT)
    publish(broker, numbered(MANY - 2000, start=2000))
    database.wait_for_rows(MANY, 120)
    assert_all_once_in_order(database, MANY)
    assert daemon.stop() == 0
    totals = daemon.totals()
    assert (totals["received"], totals["committed"], totals["unacknowledged"]) == (MANY, MANY, 0)


@pytest.mark.slow
@pytest.mark.parametrize("protocol, window", [("5", 500), ("3.1.1", 65535), ("5", 1)])
def test_a_waiting_backlog_arrives_whole_and_in_order(broker, database, ingestd, protocol, window):
    n = 300 if window == 1 else MANY // 5
    database.create_numbered_table()
    first = ingestd(protocol=protocol).wait_ready()
    assert first.stop() == 0
    publish(broker, numbered(n))
    assert database.count() == 0
    ingestd(protocol=protocol, receive_maximum=window)
    database.wait_for_rows(n, 120)
    assert_all_once_in_order(database, n)


@pytest.mark.parametrize("writers", [1, 2, 5])
def test_every_number_of_writers_keeps_the_order_of_a_topic(broker, database, ingestd, writers):
    database.create_numbered_table()
    ingestd(writers=writers).wait_ready(writers)
    publish(broker, numbered(5000, topics=7))
    database.wait_for_rows(5000)
    assert_all_once_in_order(database, 5000, topics=7)


class CommitCheck:
    """Holds each PUBACK of ingestd until a look into the database has shown its row."""

    def __init__(self, database):
        self.connection = database.connect()
        self.sent, self.checked, self.too_early = {}, 0, []
        self.lock = threading.Lock()

    def __call__(self, direction, packets):
        with self.lock:
            if direction == "down":
                for p in packets:
                    if p.kind == "PUBLISH" and p.qos == 1:
                        self.sent[p.packet_id] = json.loads(p.payload)["n"]
                return
            acknowledged = [self.sent.pop(p.packet_id) for p in packets if p.kind == "PUBACK"]
        if acknowledged:
            visible = {row[0] for row in self.connection.execute(
                "SELECT (payload->>'n')::int FROM telemetry WHERE (payload->>'n')::int = ANY(%s)", [acknowledged])}
            self.too_early += [n for n in acknowledged if n not in visible]
            self.checked += len(acknowledged)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_no_puback_leaves_before_its_row_is_visible(broker, database, ingestd, protocol):
    n = 2_000 if SANITIZED else 10_000
    database.create_numbered_table()
    database.query("CREATE INDEX ON telemetry (((payload->>'n')::int))")
    check = CommitCheck(database)
    wire = Wire(broker.port, check)
    # A slow commit makes the time between reading and durability long enough to be seen in.
    database.query("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
                   " $$BEGIN PERFORM pg_sleep(0.01); RETURN NULL; END$$")
    database.query("CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON telemetry INITIALLY DEFERRED"
                   " FOR EACH ROW WHEN (NEW.topic = 't/0') EXECUTE FUNCTION slow()")
    daemon = ingestd(broker=wire.url, protocol=protocol).wait_ready()
    publish(broker, numbered(n, topics=200))
    wait_until(lambda: check.checked >= n, 60, "everything is acknowledged")
    assert check.too_early == []
    assert check.checked == n
    assert daemon.stop() == 0
    wire.close()


def test_nothing_is_acknowledged_while_the_database_holds_the_commit(broker, database, ingestd):
    database.create_numbered_table()
    wire = Wire(broker.port)
    ingestd(broker=wire.url).wait_ready()
    with database.locked() as holder:
        publish(broker, numbered(1000))
        wait_until(lambda: wire.count("down", "PUBLISH") >= 20, what="messages are on the wire")
        wait_until(lambda: database.server.connect().execute(
            "SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0] >= 1, what="a writer waits for the lock")
        assert wire.count("up", "PUBACK") == 0
        holder.rollback()
    database.wait_for_rows(1000)
    wait_until(lambda: wire.count("up", "PUBACK") == 1000, what="all is acknowledged")
    assert_all_once_in_order(database, 1000)
    wire.close()


def test_past_the_queue_limit_it_stops_reading_and_loses_nothing(broker, database, ingestd):
    """QoS 0, where no acknowledgement holds the broker back: only that nobody reads does."""
    n = 20_000
    database.create_numbered_table()
    daemon = ingestd(qos=0, queue_limit=500, spool_limit=0, log_level="debug").wait_ready()
    with database.locked() as holder:
        publisher = Publisher(broker.port)
        publisher.publish(numbered(n), qos=0)
        daemon.wait_log("backlog_full", phase="begins")
        memory = daemon.rss()
        holder.rollback()
    database.wait_for_rows(n, 60)
    assert_all_once_in_order(database, n)
    assert memory < (64 << 20) * (8 if SANITIZED else 1)
    assert daemon.stop() == 0
    assert daemon.totals()["received"] == n


def test_past_the_byte_limit_it_stops_reading_and_loses_nothing(broker, database, ingestd):
    n, pad = 400, "x" * 50_000
    database.create_numbered_table()
    daemon = ingestd(queue_bytes="1MiB").wait_ready()
    publish(broker, numbered(n, pad=pad))
    database.wait_for_rows(n, 60)
    assert_all_once_in_order(database, n)
    assert daemon.stop() == 0


def test_in_a_steady_trickle_a_row_is_there_at_once(broker, database, ingestd):
    ingestd(batch_interval="30s", ack_interval="30s").wait_ready()
    publisher = Publisher(broker.port)
    for i, message in enumerate(numbered(20)):
        publisher.publish([message])
        # Group commit: the interval is the latest moment, not the usual one.
        database.wait_for_rows(i + 1, 5)


def test_a_retained_message_and_several_filters_are_stored_once(broker, database, ingestd):
    publish(broker, [("a/1", '"kept"')], retain=True)
    ingestd(subscribe=["a/#", "b/+", "$share/g/c/#"]).wait_ready()
    publish(broker, [("b/1", "1"), ("c/1", "2"), ("b/1/deeper", "3"), ("d/1", "4")])
    database.wait_for_rows(3)
    rows = database.query("SELECT topic, payload::text FROM telemetry ORDER BY topic")
    assert rows == [("a/1", '"kept"'), ("b/1", "1"), ("c/1", "2")]


def test_a_table_in_another_schema_with_odd_letters_is_made_and_filled(broker, database, ingestd):
    database.query('CREATE SCHEMA "Ärger""s"')
    ingestd(table='Ärger"s.x; DROP TABLE y').wait_ready()
    publish(broker, [("t/1", "1")])
    database.wait_for_rows(1, table='"Ärger""s"."x; DROP TABLE y"')
