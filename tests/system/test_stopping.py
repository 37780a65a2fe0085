"""SIGTERM and SIGINT: the steps, their words and order, the exit status, and nothing lost over a restart."""
import itertools
import os
import signal
import time

import pytest

from daemon import STOP
from processes import PATIENCE, SANITIZED, wait_until
from publisher import Publisher, numbered, publish
from wire import SwallowingAddress, Wire

BURST = 5_000 if SANITIZED else 40_000


def stop_and_time(daemon, signum=signal.SIGTERM):
    """Returns exit status, seconds until the signal was acted upon, seconds until the end."""
    started = time.monotonic()
    daemon.signal(signum)
    daemon.wait_log("shutdown_initiated", 5)
    acted = time.monotonic() - started
    status = daemon.wait(40)
    return status, acted, time.monotonic() - started


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_idle_stop_says_every_step_in_order_and_takes_well_under_a_second(broker, database, ingestd, signum):
    daemon = ingestd().wait_ready()
    publish(broker, numbered(100))
    database.wait_for_rows(100)
    status, _, whole = stop_and_time(daemon, signum)
    assert status == 0
    assert whole < 0.8 * PATIENCE
    assert daemon.stop_events() == STOP
    assert daemon.events("signal_received")[0]["signal"] == signum.name
    assert daemon.totals() == {"received": 100, "committed": 100, "dead_lettered": 0, "spooled": 0,
                               "unacknowledged": 0}
    flushed = daemon.events("batch_writer_flushed")[0]
    assert flushed["records_written"] == "100" and int(flushed["batches_flushed"]) >= 1
    assert database.sessions() == []


def test_the_broker_sees_a_proper_disconnect(broker, database, ingestd):
    wire = Wire(broker.port)
    daemon = ingestd(broker=wire.url).wait_ready()
    publish(broker, numbered(10))
    database.wait_for_rows(10)
    assert daemon.stop() == 0
    assert wire.count("up", "PUBACK") == 10
    wait_until(lambda: wire.count("up", "DISCONNECT") == 1, what="DISCONNECT arrived")
    wire.close()


def test_what_was_received_but_waits_for_its_batch_is_committed_at_the_stop(broker, database, ingestd):
    daemon = ingestd(qos=0, writers=1).wait_ready(1)
    publish(broker, numbered(3000), qos=0)
    database.wait_for_rows(1)
    assert daemon.stop() == 0
    totals = daemon.totals()
    assert database.count() == totals["committed"] == totals["received"]
    assert int(daemon.events("batch_writer_flushed")[0]["records_written"]) == totals["committed"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_stop_in_a_burst_and_a_start_after_it_lose_nothing_and_double_nothing(broker, database, ingestd, protocol):
    database.create_numbered_table()
    publisher = Publisher(broker.port)
    received = 0
    for part in range(3):
        daemon = ingestd(protocol=protocol).wait_ready()
        publisher.publish(numbered(BURST // 3, start=BURST // 3 * part))
        status, acted, whole = stop_and_time(daemon)
        assert status == 0, daemon.log()
        assert acted < 1 * PATIENCE and whole < 30
        assert daemon.stop_events() == STOP
        received += daemon.totals()["received"]
        assert database.count() == received
    ingestd(protocol=protocol)
    n = BURST // 3 * 3
    database.wait_for_rows(n, 60)
    rows = database.query("SELECT topic, (payload->>'n')::int FROM telemetry ORDER BY id")
    assert len(rows) == n
    by_topic = {}
    for topic, number in rows:
        by_topic.setdefault(topic, []).append(number)
    for topic, numbers in by_topic.items():
        assert numbers == sorted(set(numbers)), topic


def test_a_stop_before_the_first_connect(database, ingestd):
    from processes import free_port
    daemon = ingestd(broker=f"mqtt://127.0.0.1:{free_port()}")
    daemon.wait_log("mqtt_connect_failed")
    status, acted, whole = stop_and_time(daemon)
    assert status == 0 and acted < 1 * PATIENCE and whole < 2 * PATIENCE
    assert daemon.stop_events() == STOP


def test_a_stop_right_after_the_start(broker, database, ingestd):
    daemon = ingestd()
    daemon.wait_log("started")
    status, _, whole = stop_and_time(daemon)
    assert status == 0 and whole < 5 * PATIENCE
    assert daemon.stop_events() == STOP


def test_a_stop_while_the_broker_s_address_swallows_packets(database, ingestd):
    address = SwallowingAddress()
    daemon = ingestd(broker=address.url)
    daemon.wait_log("writer_ready", lane=0)
    status, acted, whole = stop_and_time(daemon)
    assert status == 0 and acted < 1 * PATIENCE and whole < 5 * PATIENCE
    assert daemon.stop_events() == STOP
    address.close()


def test_a_stop_while_the_broker_answers_nothing_any_more(broker, database, ingestd):
    wire = Wire(broker.port)
    daemon = ingestd(broker=wire.url).wait_ready()
    wire.stall("down")
    wire.stall("up")
    publish(broker, numbered(10))
    status, acted, whole = stop_and_time(daemon)
    assert status == 0 and acted < 1 * PATIENCE and whole < 10 * PATIENCE
    wire.close()


@pytest.mark.slow
def test_without_a_spool_a_stop_with_the_database_down_leaves_the_records_at_the_broker_and_says_so(
        broker, database, ingestd):
    daemon = ingestd(spool_limit=0, drain_timeout="1s", flush_timeout="1s").wait_ready()
    database.server.stop()
    publish(broker, numbered(1000))
    daemon.wait_log("database_unreachable", phase="begins")
    status, acted, whole = stop_and_time(daemon)
    assert status == 75, daemon.log()
    assert acted < 1 * PATIENCE and whole < 30
    events = daemon.stop_events()
    assert [e for e in events if e in STOP or e == "queue_drain_timeout"] in (
        STOP, [e if e != "queue_drained" else "queue_drain_timeout" for e in STOP])
    totals = daemon.totals()
    assert totals["unacknowledged"] == totals["received"] > 0 and totals["committed"] == 0
    database.server.start()
    ingestd()
    database.wait_for_rows(1000)
    assert database.count() == 1000


def test_a_stop_with_the_database_down_and_nothing_in_hand_is_clean(broker, database, ingestd):
    database.server.stop()
    daemon = ingestd()
    daemon.wait_log("database_unreachable", phase="begins")
    daemon.wait_log("mqtt_subscribed")
    status, acted, whole = stop_and_time(daemon)
    assert status == 0 and acted < 1 * PATIENCE and whole < 30
    assert daemon.stop_events() == STOP


@pytest.mark.slow
@pytest.mark.parametrize("spool_limit, expected, seconds", [("1GiB", 0, 8), (0, 75, 30)], ids=["spool", "no spool"])
def test_a_stop_with_default_limits_and_the_database_locked_fits_thirty_seconds(
        broker, database, ingestd, spool_limit, expected, seconds):
    daemon = ingestd(spool_limit=spool_limit).wait_ready()
    with database.locked() as holder:
        publish(broker, numbered(1000))
        database.wait_for_waiter(holder)
        status, acted, whole = stop_and_time(daemon)
        assert status == expected
        assert daemon.totals()["spooled"] == (0 if expected else 1000)
        # Somebody is waiting for it to end, and would rather not reach for kill -9.
        initiated = daemon.events("shutdown_initiated")[0]
        assert initiated["patience"] == "25.000s" and "a second signal ends it" in initiated["next"]
        assert acted < 1 * PATIENCE and whole < seconds * PATIENCE
        holder.rollback()
    ingestd()
    wait_until(lambda: database.value("SELECT count(DISTINCT payload->>'n') FROM telemetry") == 1000, 30, "all is there")


@pytest.mark.slow
def test_a_commit_that_outlasts_the_settling_of_a_stop_doubles_nothing(broker, database, ingestd):
    """The connection may have been given up by then: what is committed all the same must not come again."""
    first = ingestd().wait_ready()
    with database.locked() as holder:
        publish(broker, numbered(100))
        database.wait_for_waiter(holder)
        first.signal(signal.SIGTERM)
        # Longer than the five seconds of settling, shorter than the stop may take.
        holder.execute("SELECT pg_sleep(8)")
        holder.rollback()
    first.wait()
    second = ingestd().wait_ready()
    publish(broker, [("t/last", '{"n": 100}')])
    wait_until(lambda: database.query("SELECT 1 FROM telemetry WHERE topic = 't/last'"), what="the last is there")
    assert second.stop() == 0
    assert database.count() == 101


@pytest.mark.slow
def test_a_stop_with_a_writer_stopped_by_sigstop(broker, database, ingestd):
    daemon = ingestd(drain_timeout="2s", flush_timeout="2s").wait_ready()
    os.kill(daemon.writers()[0], signal.SIGSTOP)
    publish(broker, numbered(1000))
    database.wait_for_rows(1)
    status, acted, whole = stop_and_time(daemon)
    assert acted < 1 * PATIENCE and whole < 30
    assert status == (75 if daemon.totals()["unacknowledged"] else 0)
    assert daemon.stop_events()[-1] == "shutdown_complete"
    ingestd()
    wait_until(lambda: database.value("SELECT count(DISTINCT payload->>'n') FROM telemetry") == 1000, 30, "all is there")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_it_at_once_and_loses_nothing(broker, database, ingestd, signum):
    daemon = ingestd(drain_timeout="60s", flush_timeout="60s").wait_ready()
    with database.locked() as holder:
        publish(broker, numbered(500))
        database.wait_for_waiter(holder)
        daemon.signal(signum)
        daemon.wait_log("shutdown_initiated")
        second = time.monotonic()
        daemon.signal(signum)
        assert daemon.wait(10) == 75
        assert time.monotonic() - second < 2 * PATIENCE
        holder.rollback()
    assert daemon.stop_events()[-1] == "shutdown_complete"
    ingestd()
    wait_until(lambda: database.value("SELECT count(DISTINCT payload->>'n') FROM telemetry") == 500, 30, "all is there")


def test_a_writer_that_dies_during_the_stop_is_replaced_while_its_lane_holds_records(broker, database, ingestd):
    daemon = ingestd(writers=1).wait_ready(1)
    with database.locked() as holder:
        publish(broker, numbered(500))
        wait_until(lambda: holder.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0],
                   what="the writer waits")
        daemon.signal(signal.SIGTERM)
        daemon.wait_log("shutdown_initiated")
        os.kill(daemon.writers()[0], signal.SIGKILL)
        daemon.wait_log("writer_exited")
        holder.rollback()
    assert daemon.wait() == 0, daemon.log()
    totals = daemon.totals()
    assert totals["unacknowledged"] == 0 and totals["received"] == totals["committed"]


@pytest.mark.slow
def test_a_stop_with_a_log_that_nobody_reads(broker, database, ingestd):
    daemon = ingestd(read_log=False, log_level="debug")
    database.wait_for_rows(0)
    publisher = Publisher(broker.port)
    wait_until(lambda: "telemetry" in str(database.query("SELECT relname FROM pg_class WHERE relname = 'telemetry'")),
               30, "it has begun its work")
    parts = itertools.count()

    def publish_and_look():
        # The session has its filter once a row comes through.
        publisher.publish(numbered(10, start=10 * next(parts)))
        return database.count() > 200
    wait_until(publish_and_look, 20, "rows come in")
    started = time.monotonic()
    daemon.signal()
    assert daemon.wait(35) == 0
    assert time.monotonic() - started < 5 * PATIENCE


def test_an_acknowledgement_that_the_broker_does_not_take_does_not_hold_the_stop_up(broker, database, ingestd):
    wire = Wire(broker.port)
    daemon = ingestd(broker=wire.url).wait_ready()
    wire.stall("up")
    publish(broker, numbered(2000))
    database.wait_for_rows(2000)
    status, acted, whole = stop_and_time(daemon)
    assert status == 0 and acted < 1 * PATIENCE and whole < 12 * PATIENCE
    wire.close()
