"""An outage of any length: what is received goes to the disk, is acknowledged, and is stored once and in order."""
import os
import signal
import sqlite3

import pytest

from processes import is_running, wait_until
from publisher import Publisher, numbered, publish
from wire import Wire

TOPICS = 7


@pytest.fixture
def table(database):
    database.create_numbered_table()
    return database


@pytest.fixture
def wire(broker):
    wire = Wire(broker.port)
    yield wire
    wire.close()


@pytest.fixture
def spooling(broker, ingestd):
    """Starts ingestd with little patience."""
    def start(**options):
        return ingestd(**{"spool_after": "300ms", **options})
    return start


def messages(n, start=0, pad=""):
    return numbered(n, topics=TOPICS, start=start, pad=pad)


def stored(database):
    return [n for (n,) in database.query("SELECT (payload->>'n')::int FROM telemetry ORDER BY id")]


def assert_once_in_order(database, n):
    found = stored(database)
    assert sorted(found) == list(range(n))
    for topic in range(TOPICS):
        own = [i for i in found if i % TOPICS == topic]
        assert own == sorted(own), f"topic {topic} is out of order"


def assert_balanced(totals, received):
    assert totals["received"] == received
    assert totals["received"] == totals["committed"] + totals["dead_lettered"] + totals["spooled"]


def acknowledged(wire, n):
    wait_until(lambda: wire.count("up", "PUBACK") >= n, 30, f"{n} are acknowledged")


def answers(database):
    try:
        return database.query("SELECT 1")
    except Exception:
        return False


def start(server, database):
    server.start()
    wait_until(lambda: answers(database), 60, "the database answers")


def size(state):
    return sum(p.stat().st_size for p in state.glob("spool.db*"))


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


# ---- an outage ----

@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_an_outage_costs_nothing_and_the_broker_is_rid_of_its_messages(broker, table, spooling, wire, state, mode):
    daemon = spooling(broker=wire.url).wait_ready()
    publish(broker, messages(1000))
    table.wait_for_rows(1000)
    table.server.stop(mode)
    publish(broker, messages(20000, start=1000))
    daemon.wait_log("spooling", phase="begins")
    acknowledged(wire, 21000)
    assert size(state) > 500_000
    start(table.server, table)
    publish(broker, messages(1000, start=21000))
    table.wait_for_rows(22000, 60)
    daemon.wait_log("spooling", 30, phase="ends")
    publish(broker, messages(500, start=22000))
    table.wait_for_rows(22500)
    assert size(state) < 200_000
    assert daemon.stop() == 0
    assert_once_in_order(table, 22500)
    assert_balanced(daemon.totals(), 22500)
    assert daemon.totals()["committed"] == 22500


def test_a_table_that_is_locked_spools_and_goes_on(broker, table, spooling, wire):
    daemon = spooling(broker=wire.url).wait_ready()
    with table.locked() as holder:
        publish(broker, messages(3000))
        acknowledged(wire, 3000)
        holder.rollback()
    table.wait_for_rows(3000)
    daemon.wait_log("spooling", 30, phase="ends")
    assert daemon.stop() == 0
    assert_once_in_order(table, 3000)


def test_without_a_database_a_start_takes_messages_in_and_a_stop_keeps_them(broker, table, spooling, wire):
    table.server.stop()
    daemon = spooling(broker=wire.url)
    daemon.wait_log("mqtt_subscribed")
    publish(broker, messages(3000))
    acknowledged(wire, 3000)
    assert daemon.stop() == 0
    assert_balanced(daemon.totals(), 3000)
    assert daemon.totals()["spooled"] == 3000
    # And so again and again, with other numbers of writers.
    for run, writers in enumerate((3, 1)):
        daemon = spooling(broker=wire.url, writers=writers)
        assert daemon.wait_log("spool_found")["records"] == str(3000 + 1000 * run)
        daemon.wait_log("mqtt_subscribed")
        publish(broker, messages(1000, start=3000 + 1000 * run))
        acknowledged(wire, 4000 + 1000 * run)
        assert daemon.stop() == 0
        assert daemon.totals()["spooled"] == 4000 + 1000 * run
    start(table.server, table)
    daemon = spooling(broker=wire.url, writers=4).wait_ready(4)
    publish(broker, messages(1000, start=5000))
    table.wait_for_rows(6000)
    daemon.wait_log("spooling", 30, phase="ends")
    assert daemon.stop() == 0
    assert_once_in_order(table, 6000)
    assert daemon.totals()["spooled"] == 0


def test_a_stop_with_the_database_away_spools_what_is_left_qos_0_included(broker, table, ingestd):
    daemon = ingestd().wait_ready()
    table.server.stop()
    publish(broker, messages(500))
    publish(broker, messages(500, start=500), qos=0)
    wait_until(lambda: broker_has_sent(daemon, 1000), 20, "all is received")
    assert daemon.stop() == 0
    assert daemon.totals()["spooled"] == 1000
    start(table.server, table)
    daemon = ingestd().wait_ready()
    table.wait_for_rows(1000)
    assert daemon.stop() == 0
    assert_once_in_order(table, 1000)


def broker_has_sent(daemon, n):
    # Nothing tells from outside; what is shown is what waits in the lanes.
    waiting = {e["lane"]: int(e["waiting"]) for e in daemon.events("database_trouble")}
    return sum(waiting.values()) >= n or daemon.process.poll() is not None or len(waiting) == 2


# ---- kill -9 ----

@pytest.mark.parametrize("before, after", [(2, 2), (1, 3), (3, 1)])
def test_a_supervisor_killed_while_spooling_loses_nothing_and_stores_nothing_twice(
        broker, table, spooling, wire, before, after):
    daemon = spooling(broker=wire.url, writers=before).wait_ready(before)
    publish(broker, messages(1000))
    table.wait_for_rows(1000)
    table.server.stop()
    publish(broker, messages(3000, start=1000))
    acknowledged(wire, 4000)
    # Some more, of which the broker does not get to know that they are safe.
    wire.stall("up")
    publish(broker, messages(1000, start=4000))
    wait_until(lambda: wire.count("down", "PUBLISH") >= 5000, 30, "all is sent to it")
    wait_until(lambda: spooled_on_disk(daemon) >= 4000, 30, "all is in the spool")
    daemon.kill()
    wire.cut()
    wire.flow()
    start(table.server, table)
    daemon = spooling(broker=wire.url, writers=after).wait_ready(after)
    publish(broker, messages(500, start=5000))
    table.wait_for_rows(5500)
    assert daemon.stop() == 0
    assert_once_in_order(table, 5500)


def spooled_on_disk(daemon):
    home = daemon.arguments[daemon.arguments.index("--state-dir") + 1]
    # Its own connection would be refused: the daemon has the file for itself. A copy is read.
    import shutil
    import tempfile
    from pathlib import Path
    with tempfile.TemporaryDirectory() as copy:
        for part in Path(home).glob("spool.db*"):
            if not part.name.endswith("-shm"):
                shutil.copy(part, copy)
        with sqlite3.connect(Path(copy) / "spool.db") as c:
            return c.execute("SELECT coalesce(sum(count), 0) FROM spool").fetchone()[0]


def test_a_supervisor_killed_while_draining_stores_everything_once(broker, table, spooling, wire):
    table.server.stop()
    daemon = spooling(broker=wire.url, batch_size=50)
    daemon.wait_log("mqtt_subscribed")
    total = 20000
    publish(broker, messages(total))
    acknowledged(wire, total)
    start(table.server, table)
    for wanted in (500, 4000, 9000):
        table.wait_for_rows(wanted, 60)
        daemon.kill()
        daemon = spooling(broker=wire.url, batch_size=50)
        daemon.wait_log("mqtt_subscribed", 30)
        publish(broker, messages(100, start=total))
        total += 100
    table.wait_for_rows(total, 60)
    assert daemon.stop() == 0
    assert_once_in_order(table, total)
    assert daemon.totals()["spooled"] == 0


def test_writers_killed_while_draining_store_everything_once(broker, table, spooling, wire):
    table.server.stop()
    daemon = spooling(broker=wire.url, batch_size=50)
    daemon.wait_log("mqtt_subscribed")
    publish(broker, messages(20000))
    acknowledged(wire, 20000)
    start(table.server, table)
    for wanted in (500, 6000, 12000):
        table.wait_for_rows(wanted, 60)
        for pid in daemon.writers().values():
            os.kill(pid, signal.SIGKILL)
    table.wait_for_rows(20000, 60)
    assert daemon.stop() == 0
    assert_once_in_order(table, 20000)
    assert_balanced(daemon.totals(), 20000)


def test_an_outage_in_the_middle_of_draining_is_one_more(broker, table, spooling, wire):
    table.server.stop()
    daemon = spooling(broker=wire.url, batch_size=50)
    daemon.wait_log("mqtt_subscribed")
    publish(broker, messages(10000))
    acknowledged(wire, 10000)
    for wanted in (500, 4000):
        start(table.server, table)
        table.wait_for_rows(wanted, 60)
        table.server.stop("immediate")
        publish(broker, messages(1000, start=10000 if wanted == 500 else 11000))
    start(table.server, table)
    table.wait_for_rows(12000, 60)
    daemon.wait_log("spooling", 30, phase="ends")
    assert daemon.stop() == 0
    assert_once_in_order(table, 12000)


# ---- limits ----

def test_at_its_limit_the_spool_stops_the_reading_and_says_so_once(broker, table, spooling, wire):
    table.server.stop()
    daemon = spooling(broker=wire.url, spool_limit="1MiB", payload_limit="64KiB")
    daemon.wait_log("mqtt_subscribed")
    publisher = Publisher(broker.port)
    publisher.publish(messages(6000, pad="x" * 1000))
    full = daemon.wait_log("spool_full", phase="begins")
    assert full.level == "error" and "broker holds" in full["next"]
    seen = wire.count("up", "PUBACK")
    assert seen < 6000
    start(table.server, table)
    table.wait_for_rows(6000, 60)
    daemon.wait_log("spool_full", phase="ends")
    assert len(daemon.events("spool_full", phase="begins")) < 10
    assert daemon.stop() == 0
    assert_once_in_order(table, 6000)


def test_without_a_spool_nothing_is_acknowledged_while_the_database_is_away(broker, table, spooling, wire, state):
    table.server.stop()
    daemon = spooling(broker=wire.url, spool_limit=0, flush_timeout="300ms", drain_timeout="300ms")
    daemon.wait_log("mqtt_subscribed")
    publish(broker, messages(100))
    daemon.wait_log("intake_paused", 20)
    assert wire.count("up", "PUBACK") == 0
    assert daemon.stop() == 75
    start(table.server, table)
    daemon = spooling(broker=wire.url, spool_limit=0).wait_ready()
    table.wait_for_rows(100)
    assert daemon.stop() == 0
    assert_once_in_order(table, 100)


def test_what_is_in_the_spool_is_stored_though_it_is_turned_off_now(broker, table, spooling, wire):
    table.server.stop()
    daemon = spooling(broker=wire.url)
    daemon.wait_log("mqtt_subscribed")
    publish(broker, messages(100))
    acknowledged(wire, 100)
    assert daemon.stop() == 0
    start(table.server, table)
    daemon = spooling(broker=wire.url, spool_limit=0).wait_ready()
    publish(broker, messages(100, start=100))
    table.wait_for_rows(200)
    assert daemon.stop() == 0
    assert_once_in_order(table, 200)


def test_limits_that_make_no_sense_are_said_at_the_start(broker, table, spooling):
    daemon = spooling(spool_limit="1MiB").wait_ready()
    assert daemon.wait_log("spool_limit_small").level == "warn"
    assert daemon.stop() == 0
    daemon = spooling(spool_limit="1024GiB").wait_ready()
    assert int(daemon.wait_log("spool_limit_large")["free"]) > 0
    assert daemon.stop() == 0
