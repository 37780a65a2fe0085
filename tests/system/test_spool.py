"""An outage of any length: what is received goes to the disk, is acknowledged, and is stored once and in order."""
import contextlib
import os
import shutil
import signal
import sqlite3

import pytest

from disks import fill, small_disk
from processes import SANITIZED, run, wait_until
from publisher import Publisher, publish
from sequence import assert_once_in_order, messages, publish_to
from spoolfile import spooled

@pytest.fixture
def spooling(broker, ingestd):
    """Starts ingestd with little patience."""
    def start(**options):
        return ingestd(**{"spool_after": "300ms", **options})
    return start


def assert_balanced(totals, received):
    assert totals["received"] == received
    assert totals["received"] == totals["committed"] + totals["dead_lettered"] + totals["spooled"]


def acknowledged(wire, n):
    wait_until(lambda: wire.count("up", "PUBACK") >= n, 30, f"{n} are acknowledged")


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
    table.start_server()
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
    table.start_server()
    daemon = spooling(broker=wire.url, writers=4).wait_ready(4)
    publish(broker, messages(1000, start=5000))
    table.wait_for_rows(6000)
    daemon.wait_log("spooling", 30, phase="ends")
    assert daemon.stop() == 0
    assert_once_in_order(table, 6000)
    assert daemon.totals()["spooled"] == 0


def test_a_stop_with_the_database_away_spools_what_is_left(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url, spool_after="60s").wait_ready()
    table.server.stop()
    publish(broker, messages(500))
    wait_until(lambda: wire.count("down", "PUBLISH") >= 500, 20, "all is sent to it")
    assert daemon.stop() == 0
    totals = daemon.totals()
    assert totals["spooled"] == totals["received"] > 0 and totals["unacknowledged"] == 0
    table.start_server()
    daemon = ingestd(broker=wire.url).wait_ready()
    table.wait_for_rows(500)
    assert daemon.stop() == 0
    assert_once_in_order(table, 500)


def test_qos_0_survives_a_stop_without_a_database(broker, table, spooling, state):
    daemon = spooling().wait_ready()
    table.server.stop()
    publish(broker, messages(1000), qos=0)
    wait_until(lambda: (state / "spool.db-wal").exists() and spooled(state) == 1000, 30, "all is in the spool")
    assert daemon.stop() == 0
    assert daemon.totals()["spooled"] == 1000
    table.start_server()
    daemon = spooling().wait_ready()
    table.wait_for_rows(1000)
    assert daemon.stop() == 0
    assert_once_in_order(table, 1000)


@pytest.mark.slow
def test_memory_is_bounded_however_much_is_in_the_spool(broker, table, spooling, wire, state):
    """The writers are ready all the time, and wait."""
    n = 100_000
    daemon = spooling(broker=wire.url, spool_after="50ms").wait_ready()
    before = daemon.rss()
    with table.locked() as holder:
        publish(broker, messages(n, pad="x" * 1000))
        acknowledged(wire, n)
        assert size(state) > 100 << 20
        assert daemon.rss() - before < (48 << 20) * (10 if SANITIZED else 1)
        holder.rollback()
    table.wait_for_rows(n, 60)
    assert daemon.stop() == 0
    assert_once_in_order(table, n)


# ---- kill -9 ----

@pytest.mark.parametrize("before, after", [(2, 2), (1, 3), (3, 1)])
def test_a_supervisor_killed_while_spooling_loses_nothing_and_stores_nothing_twice(
        broker, table, spooling, wire, state, before, after):
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
    wait_until(lambda: spooled(state) >= 4000, 30, "all is in the spool")
    daemon.kill()
    wire.cut()
    wire.flow()
    table.start_server()
    daemon = spooling(broker=wire.url, writers=after).wait_ready(after)
    publish(broker, messages(500, start=5000))
    table.wait_for_rows(5500)
    assert daemon.stop() == 0
    assert_once_in_order(table, 5500)


def test_a_supervisor_killed_while_draining_stores_everything_once(broker, table, spooling, wire):
    table.server.stop()
    daemon = spooling(broker=wire.url, batch_size=50)
    daemon.wait_log("mqtt_subscribed")
    total = 20000
    publish(broker, messages(total))
    acknowledged(wire, total)
    table.start_server()
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
    table.start_server()
    for wanted in (500, 6000, 12000):
        table.wait_for_rows(wanted, 60)
        for pid in daemon.writers().values():
            # All may be stored by now, and the writer be another.
            with contextlib.suppress(ProcessLookupError):
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
        table.start_server()
        table.wait_for_rows(wanted, 60)
        table.server.stop("immediate")
        publish(broker, messages(1000, start=10000 if wanted == 500 else 11000))
    table.start_server()
    table.wait_for_rows(12000, 60)
    daemon.wait_log("spooling", 30, phase="ends")
    assert daemon.stop() == 0
    assert_once_in_order(table, 12000)


# ---- in doubt ----

def in_doubt(table, wire, daemon, committed, open_):
    """kill -9 with messages of which the broker has no acknowledgement: some are committed, some are not."""
    wire.stall("up")
    publish_to(wire, messages(committed))
    table.wait_for_rows(committed)
    with table.locked() as holder:
        publish_to(wire, messages(open_, start=committed))
        wait_until(lambda: wire.count("down", "PUBLISH") >= committed + open_, 30, "all is sent to it")
        table.wait_for_waiter(holder)
        daemon.kill()
        holder.rollback()
    wire.cut()
    wire.flow()


@pytest.mark.parametrize("kills", [0, 1, 3])
def test_without_a_database_a_start_after_a_kill_takes_in_what_is_in_doubt_and_stores_it_once(
        broker, table, ingestd, spooling, wire, kills):
    """Only the database knows what of it is committed, and it is away."""
    daemon = ingestd(broker=wire.url, flush_timeout="300ms").wait_ready()
    in_doubt(table, wire, daemon, 200, 300)
    table.server.stop()
    total, sent = 500, wire.count("up", "PUBACK")
    for kill in range(kills + 1):
        daemon = spooling(broker=wire.url, writers=2 + kill % 2)
        if kill == 0:
            daemon.wait_log("stream_in_doubt")
        daemon.wait_log("mqtt_subscribed")
        publish_to(wire, messages(100, start=total))
        total += 100
        if kill == kills:
            break
        # Not all of it gets through before the next death.
        wait_until(lambda: wire.count("up", "PUBACK") > sent, 30, "some is acknowledged")
        daemon.kill()
    table.start_server()
    table.wait_for_rows(total, 60)
    daemon.wait_log("spooling", 30, phase="ends")
    assert daemon.stop() == 0
    assert_once_in_order(table, total)
    assert daemon.totals()["spooled"] == 0


def test_what_is_in_doubt_survives_a_stop_without_a_database(broker, table, ingestd, spooling, wire, state):
    daemon = ingestd(broker=wire.url, flush_timeout="300ms").wait_ready()
    in_doubt(table, wire, daemon, 200, 300)
    table.server.stop()
    for run_ in range(2):
        daemon = spooling(broker=wire.url)
        daemon.wait_log("mqtt_subscribed")
        publish_to(wire, messages(100, start=500 + 100 * run_))
        wait_until(lambda: spooled(state) == 600 + 100 * run_, 30, "all is in the spool")
        assert daemon.stop() == 0
        # The two hundred that are committed count as spooled as well: nobody knows.
        assert_balanced(daemon.totals(), 600 + 100 * run_)
    table.start_server()
    daemon = spooling(broker=wire.url, writers=3).wait_ready(3)
    table.wait_for_rows(700, 60)
    daemon.wait_log("spooling", 30, phase="ends")
    assert daemon.stop() == 0
    assert_once_in_order(table, 700)


# ---- limits ----

def test_at_its_limit_the_spool_stops_the_reading_and_says_so_once(broker, table, spooling, wire):
    table.server.stop()
    daemon = spooling(broker=wire.url, spool_limit="1MiB", payload_limit="64KiB")
    daemon.wait_log("mqtt_subscribed")
    publisher = Publisher(broker.port)
    # More than the limit, and the rest when that is seen: what is in memory by then goes in as a whole.
    publisher.publish(messages(2000, pad="x" * 1000))
    full = daemon.wait_log("spool_full", phase="begins")
    assert full.level == "error" and "broker holds" in full["next"] and "--spool-limit" in full["reason"]
    publisher.publish(messages(4000, start=2000, pad="x" * 1000))
    seen = wire.count("up", "PUBACK")
    assert seen < 6000
    table.start_server()
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
    daemon.wait_log("gate_waiting", 20)
    assert wire.count("up", "PUBACK") == 0
    assert daemon.stop() == 75
    table.start_server()
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
    table.start_server()
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


# ---- bad files, bad disks ----

@pytest.fixture
def left(broker, table, spooling, wire, state):
    """A state directory with a thousand messages in the spool; the database is away."""
    table.server.stop()
    daemon = spooling(broker=wire.url)
    daemon.wait_log("mqtt_subscribed")
    publish(broker, messages(1000))
    acknowledged(wire, 1000)
    assert daemon.stop() == 0
    return state / "spool.db"


def change(sql):
    def do(path):
        with contextlib.closing(sqlite3.connect(path)) as c:
            c.executescript(sql)
    return do


def truncated(path):
    with open(path, "r+b") as f:
        f.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [
    truncated, lambda path: path.write_bytes(os.urandom(70000)), lambda path: path.write_bytes(b"text"),
    change("PRAGMA application_id = 1"), change("DROP TABLE closed"), change("UPDATE spool SET count = 'many'"),
], ids=["truncated", "garbage", "text", "somebody_elses", "without_a_table", "senseless"])
def test_a_spool_that_cannot_be_read_is_put_aside_as_it_is_and_said(broker, table, spooling, left, harm):
    harm(left)
    before = left.read_bytes()
    table.start_server()
    daemon = spooling()
    said = daemon.wait_log("spool_put_aside")
    assert said.level == "error" and "not stored" in said["next"]
    assert (left.parent / said["kept_as"]).read_bytes() == before
    daemon.wait_ready()
    publish(broker, messages(10, start=1000))
    table.wait_for_rows(10)
    assert daemon.stop() == 0


def test_a_spool_of_a_newer_version_ends_it_with_73_and_stays_as_it_is(spooling, left):
    change("PRAGMA user_version = 2")(left)
    before = left.read_bytes()
    daemon = spooling()
    assert daemon.wait() == 73
    assert daemon.wait_log("state_dir_unusable")["file"] == "spool.db"
    assert left.read_bytes() == before


def test_one_row_that_cannot_be_understood_costs_itself_only_and_is_kept(broker, table, spooling, left):
    with contextlib.closing(sqlite3.connect(left)) as c:
        row, lost = c.execute("SELECT id, count FROM spool ORDER BY id LIMIT 1").fetchone()
        c.execute("UPDATE spool SET records = randomblob(length(records)) WHERE id = ?", (row,))
        c.commit()
    table.start_server()
    daemon = spooling().wait_ready()
    said = daemon.wait_log("spool_row_unreadable")
    assert (said.level, said["records"]) == ("error", str(lost))
    table.wait_for_rows(1000 - lost)
    daemon.wait_log("spooling", 30, phase="ends")
    assert daemon.stop() == 0
    assert_balanced(daemon.totals(), 1000 - lost)
    with contextlib.closing(sqlite3.connect(left)) as c:
        assert c.execute("SELECT id, count FROM unreadable").fetchall() == [(row, lost)]


def test_the_spool_of_another_client_id_is_said_and_stored(broker, table, spooling, left):
    table.start_server()
    daemon = spooling(client_id="another").wait_ready()
    assert daemon.wait_log("spool_of_another_client")["is"] == "another"
    table.wait_for_rows(1000)
    assert daemon.stop() == 0
    assert_once_in_order(table, 1000)


def test_the_spool_leaves_room_on_its_disk_and_drains_from_there(broker, table, spooling, wire, state):
    n = 40000
    with small_disk(state, "40m"):
        table.server.stop()
        daemon = spooling(broker=wire.url)
        daemon.wait_log("mqtt_subscribed")
        publish(broker, messages(1000, pad="x" * 1000))
        acknowledged(wire, 1000)
        publish(broker, messages(n - 1000, start=1000, pad="x" * 1000))
        assert "disk" in daemon.wait_log("spool_full", 30, phase="begins")["reason"]
        assert shutil.disk_usage(state).free > 8 << 20
        assert daemon.stop() == 0
        spooled = daemon.totals()["spooled"]
        assert 0 < spooled < n
        table.start_server()
        daemon = spooling(broker=wire.url).wait_ready()
        table.wait_for_rows(n, 60)
        daemon.wait_log("spooling", 30, phase="ends")
        assert daemon.events("spool_failed") == []
        assert shutil.disk_usage(state).free > 24 << 20
        assert daemon.stop() == 0
        assert_once_in_order(table, n)


def test_on_a_disk_that_somebody_else_fills_nothing_is_acknowledged_that_is_not_safe(
        broker, table, spooling, wire, state):
    n = 4000
    with small_disk(state, "40m"):
        table.server.stop()
        daemon = spooling(broker=wire.url)
        daemon.wait_log("mqtt_subscribed")
        publish(broker, messages(1000, pad="x" * 1000))
        acknowledged(wire, 1000)
        filler = fill(state)
        publish(broker, messages(n - 1000, start=1000, pad="x" * 10000))
        wait_until(lambda: daemon.events("spool_failed") or daemon.events("state_not_written"), 30, "it is noticed")
        assert wire.count("up", "PUBACK") < n
        table.start_server()
        # What is in the spool need not wait for room.
        table.wait_for_rows(1000, 60)
        filler.unlink()
        table.wait_for_rows(n, 60)
        assert daemon.stop() == 0
        assert_once_in_order(table, n)


# The spool may not grow, while state.db, which is smaller, may.
SMALL_FILES = ("sh", "-c", "trap '' XFSZ; ulimit -S -f 24000; exec \"$@\"", "sh")


def make_room(daemon):
    run("prlimit", "--pid", daemon.pid, "--fsize=unlimited:unlimited")


@pytest.mark.parametrize("way_out", ["room", "database"])
def test_a_spool_that_cannot_be_written_stops_the_acknowledging_until_there_is_room_or_the_database(
        broker, table, spooling, wire, way_out):
    n = 4000
    table.server.stop()
    daemon = spooling(broker=wire.url, prefix=SMALL_FILES)
    daemon.wait_log("mqtt_subscribed")
    publish(broker, messages(n, pad="x" * 10000))
    failed = daemon.wait_log("spool_failed", 30)
    assert failed.level == "error" and "not acknowledged" in failed["next"] and len(failed["reason"]) > 5
    assert wire.count("up", "PUBACK") < n
    if way_out == "room":
        make_room(daemon)
        daemon.wait_log("spool_recovered", 30)
        acknowledged(wire, n)
        assert not table.answers()
    table.start_server()
    table.wait_for_rows(n, 60)
    wait_until(lambda: wire.count("up", "PUBACK") == n, 30, "all is acknowledged")
    # To remove what got into it takes room as well.
    make_room(daemon)
    daemon.wait_log("spooling", 30, phase="ends")
    assert daemon.stop() == 0
    assert_once_in_order(table, n)


def test_a_spool_that_stays_unwritable_ends_a_stop_with_74_and_leaves_the_rest_at_the_broker(
        broker, table, spooling, wire, state):
    n = 4000
    table.server.stop()
    daemon = spooling(broker=wire.url, flush_timeout="500ms", drain_timeout="500ms", prefix=SMALL_FILES)
    daemon.wait_log("mqtt_subscribed")
    publish(broker, messages(n, pad="x" * 10000))
    daemon.wait_log("spool_failed", 30)
    assert daemon.stop() == 74
    totals = daemon.totals()
    assert 0 < totals["unacknowledged"] and totals["received"] == totals["spooled"] + totals["unacknowledged"]
    table.start_server()
    daemon = spooling(broker=wire.url).wait_ready()
    table.wait_for_rows(n, 60)
    assert daemon.stop() == 0
    assert_once_in_order(table, n)
