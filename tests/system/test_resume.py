"""
The same session again: what the broker sends a second time is recognised and stored once, and where that cannot
be, nothing is lost and the log says so.
"""
import contextlib
import os
import shutil
import signal
import sqlite3
from datetime import datetime

import psycopg
import pytest

from fakebroker import FakeBroker
from fakebroker import publish as packet
from processes import is_running, wait_until
from publisher import Publisher, publish
from sequence import assert_once_in_order, messages, publish_to, stored


def all_is_read(port):
    """Nothing stands in a socket between the server on this port and its client."""
    with open("/proc/net/tcp") as f:
        for _, local, remote, _, queues, *_ in map(str.split, f.readlines()[1:]):
            unsent, unread = (int(n, 16) for n in queues.split(":"))
            ports = [int(address.split(":")[1], 16) for address in (local, remote)]
            if port in ports and (unread and ports[1] == port or unsent and ports[0] == port):
                return False
    return True


def kill_with_commits_held_up(database, wire, daemon, n, start=0):
    """kill -9 of the supervisor when n messages are received and none of them can be committed."""
    before = wire.count("down", "PUBLISH")
    with database.locked() as holder:
        publish_to(wire, messages(n, start=start))
        wait_until(lambda: wire.count("down", "PUBLISH") >= before + n, 30, "all is sent to it")
        database.wait_for_waiter(holder)
        wait_until(lambda: all_is_read(wire.port), what="it has read all")
        # Its writers wait for the lock for as long as --flush-timeout.
        daemon.kill()
        holder.rollback()


# ---- after the death of the supervisor ----

@pytest.mark.parametrize("before, after", [(2, 2), (1, 4), (4, 1)])
def test_what_died_with_its_supervisor_before_the_commit_is_stored_once_and_in_order(
        broker, table, ingestd, wire, before, after):
    daemon = ingestd(broker=wire.url, writers=before, flush_timeout="500ms").wait_ready(before)
    kill_with_commits_held_up(table, wire, daemon, 500)
    assert table.count() == 0
    daemon = ingestd(broker=wire.url, writers=after).wait_ready(after)
    closed = daemon.wait_log("stream_closed")
    # The last ones may have been read and not yet noted.
    assert closed["stored"] == "0" and 0 < int(closed["not_stored"]) <= 500
    assert daemon.wait_log("session_resumed")["recognised"] == closed["not_stored"]
    publish_to(wire, messages(100, start=500))
    table.wait_for_rows(600)
    assert_once_in_order(table, 600)
    assert daemon.stop() == 0
    assert daemon.totals()["received"] == 600
    # Nobody needs the rows of either stream any more.
    assert table.count("ingestd.progress") == 0


@pytest.mark.parametrize("before, after", [(2, 2), (1, 3), (3, 1)])
def test_what_was_committed_but_not_acknowledged_before_the_supervisor_died_is_not_stored_again(
        broker, table, ingestd, wire, before, after):
    daemon = ingestd(broker=wire.url, writers=before).wait_ready(before)
    wire.stall("up")
    publish_to(wire, messages(500))
    table.wait_for_rows(500)
    daemon.kill()
    wire.cut()
    wire.flow()
    daemon = ingestd(broker=wire.url, writers=after).wait_ready(after)
    closed = daemon.wait_log("stream_closed")
    assert (closed["stored"], closed["not_stored"]) == ("500", "0")
    assert daemon.wait_log("session_resumed")["recognised"] == "500"
    publish_to(wire, messages(100, start=500))
    table.wait_for_rows(600)
    assert_once_in_order(table, 600)
    assert daemon.stop() == 0
    # Recognised ones are not received a second time.
    assert daemon.totals()["received"] == 100


def test_a_supervisor_killed_again_and_again_under_load_stores_everything_once(broker, table, ingestd):
    publisher = Publisher(broker.port)
    for part in range(6):
        daemon = ingestd().wait_ready()
        publisher.publish(messages(1500, start=1500 * part))
        daemon.process.kill()
        daemon.process.wait()
    ingestd().wait_ready()
    table.wait_for_rows(9000)
    assert_once_in_order(table, 9000)


def test_a_kill_between_closing_the_stream_before_and_calling_the_broker_changes_nothing(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url, flush_timeout="500ms").wait_ready()
    kill_with_commits_held_up(table, wire, daemon, 300)
    wire.stall("up")
    # Only the first has to ask: the others find written down that nothing was committed.
    for event in ("stream_closed", "writer_ready", "writer_ready"):
        daemon = ingestd(broker=wire.url)
        daemon.wait_log(event)
        daemon.kill()
    wire.cut()
    wire.flow()
    ingestd(broker=wire.url).wait_ready()
    table.wait_for_rows(300)
    publish_to(wire, messages(10, start=300))
    table.wait_for_rows(310)
    assert_once_in_order(table, 310)


@pytest.mark.slow
@pytest.mark.parametrize("in_transaction", [True, False], ids=["in its transaction", "between transactions"])
def test_a_writer_of_the_run_before_that_wakes_up_late_commits_nothing(broker, table, ingestd, wire, in_transaction):
    daemon = ingestd(broker=wire.url, writers=1).wait_ready(1)
    publish_to(wire, messages(7))
    table.wait_for_rows(7)
    (old,) = daemon.writers().values()
    with table.locked() as holder:
        if not in_transaction:
            os.kill(old, signal.SIGSTOP)
        before = wire.count("down", "PUBLISH")
        publish_to(wire, messages(493, start=7))
        wait_until(lambda: wire.count("down", "PUBLISH") >= before + 493, what="all is sent to it")
        if in_transaction:
            table.wait_for_waiter(holder)
            os.kill(old, signal.SIGSTOP)
        daemon.process.kill()
        daemon.process.wait()
        holder.rollback()
    new = ingestd(broker=wire.url, writers=1, spool_after="60s").wait_ready(1)
    assert bool(new.events("predecessor_ended")) == in_transaction
    table.wait_for_rows(500)
    os.kill(old, signal.SIGCONT)
    wait_until(lambda: not is_running(old), 30, "the old writer ends")
    publish_to(wire, messages(7, start=500))
    table.wait_for_rows(507)
    assert_once_in_order(table, 507)
    assert new.stop() == 0


# ---- after a connection that broke ----

def test_a_connection_cut_while_acknowledgements_are_held_or_on_their_way_stores_nothing_twice(
        broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url).wait_ready()
    wire.stall("up")
    publish_to(wire, messages(400))
    table.wait_for_rows(400)
    wire.cut()
    wire.flow()
    assert daemon.wait_log("session_resumed")["recognised"] == "400"
    for part in range(1, 4):
        mark = daemon.mark()
        publish_to(wire, messages(400, start=400 * part))
        wire.cut()
        daemon.wait_log("mqtt_connected", 30, after=mark)
    table.wait_for_rows(1600)
    assert_once_in_order(table, 1600)
    assert daemon.stop() in (0, 75)
    assert daemon.totals()["received"] == 1600


def test_what_the_broker_has_confirmed_leaves_the_list_and_a_clean_stop_leaves_none(broker, table, ingestd, tmp_path):
    daemon = ingestd().wait_ready()
    publish(broker, messages(3000))
    table.wait_for_rows(3000)
    assert daemon.stop() == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / "state.db")) as c:
        assert c.execute("SELECT count(*) FROM unacknowledged").fetchone() == (0,)
    assert table.count("ingestd.progress") == 0
    # So the next start has nothing to ask the database.
    second = ingestd().wait_ready()
    assert second.events("stream_to_close") == []


@pytest.mark.slow
@pytest.mark.parametrize("qos", [0, 1])
def test_clean_stops_under_load_store_all_that_was_received_once(broker, table, ingestd, qos):
    received = 0
    for part in range(3):
        daemon = ingestd(qos=qos).wait_ready()
        publish(broker, messages(3000, start=3000 * part), qos=qos)
        assert daemon.stop() == 0
        received += daemon.totals()["received"]
        assert table.count() == received
    if qos == 1:
        ingestd().wait_ready()
        table.wait_for_rows(9000)
        assert_once_in_order(table, 9000)
    found = stored(table)
    assert len(found) == len(set(found)), "stored twice"


# ---- writers and database ----

@pytest.mark.slow
@pytest.mark.parametrize("fault", ["writer", "backend", "server"])
def test_writers_backends_and_servers_that_die_under_load_store_everything_once(broker, table, ingestd, fault):
    daemon = ingestd().wait_ready()
    publisher = Publisher(broker.port)
    for part in range(8):
        publisher.publish(messages(1000, start=1000 * part))
        if fault == "writer":
            victims = daemon.writers()
            os.kill(victims[part % 2], signal.SIGKILL) if part % 2 in victims else None
        elif fault == "backend":
            table.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ingestd'"
                        " AND datname = current_database()")
        elif part % 3 == 0:
            table.server.restart("immediate")
    wait_until(table.answers, 60, "the database answers")
    table.wait_for_rows(8000, 60)
    publisher.publish(messages(10, start=8000))
    table.wait_for_rows(8010, 60)
    assert_once_in_order(table, 8010)
    assert daemon.stop() == 0


@pytest.mark.parametrize("how", ["DELETE FROM ingestd.progress", "DROP TABLE ingestd.progress"])
def test_a_progress_row_that_somebody_removes_is_noticed_and_the_lane_resumed(broker, table, ingestd, how):
    daemon = ingestd(writers=1).wait_ready(1)
    publish(broker, messages(100))
    table.wait_for_rows(100)
    table.query(how)
    publish(broker, messages(400, start=100))
    table.wait_for_rows(500)
    assert daemon.wait_log("writer_fenced")["lane"] == "0"
    assert daemon.wait_log("progress_lost")["lane"] == "0"
    publish(broker, messages(10, start=500))
    table.wait_for_rows(510)
    assert_once_in_order(table, 510)
    assert daemon.events("mqtt_connection_lost") == []
    assert daemon.stop() == 0


def test_progress_rows_removed_while_nobody_runs_lose_nothing(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url).wait_ready()
    wire.stall("up")
    publish_to(wire, messages(100))
    table.wait_for_rows(100)
    daemon.kill()
    wire.cut()
    wire.flow()
    table.query("DELETE FROM ingestd.progress")
    daemon = ingestd(broker=wire.url).wait_ready()
    assert "duplicates are possible" in daemon.wait_log("progress_missing")["next"]
    table.wait_for_rows(200)
    assert set(stored(table)) == set(range(100))


def test_a_database_restored_from_an_older_backup_gets_what_it_lacks_once(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url).wait_ready()
    publish_to(wire, messages(50))
    table.wait_for_rows(50)
    table.query("CREATE TABLE backup_rows AS SELECT * FROM telemetry")
    table.query("CREATE TABLE backup_progress AS SELECT * FROM ingestd.progress")
    acknowledged = wire.count("up", "PUBACK")
    wait_until(lambda: wire.count("up", "PUBACK") >= 50 or acknowledged >= 50, what="the first are acknowledged")
    wire.stall("up")
    publish_to(wire, messages(50, start=50))
    table.wait_for_rows(100)
    daemon.kill()
    wire.cut()
    wire.flow()
    table.query("DELETE FROM telemetry WHERE id NOT IN (SELECT id FROM backup_rows)")
    table.query("DELETE FROM ingestd.progress")
    table.query("INSERT INTO ingestd.progress SELECT * FROM backup_progress")
    ingestd(broker=wire.url).wait_ready()
    table.wait_for_rows(100)
    publish_to(wire, messages(10, start=100))
    table.wait_for_rows(110)
    assert_once_in_order(table, 110)


def test_a_database_that_goes_back_while_we_run_is_said(broker, table, ingestd):
    daemon = ingestd(writers=1).wait_ready(1)
    publish(broker, messages(20))
    table.wait_for_rows(20)
    table.query("UPDATE ingestd.progress SET seq = 10")
    table.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ingestd'"
                " AND datname = current_database()")
    went = daemon.wait_log("database_went_back")
    assert (went["committed"], went["found"]) == ("20", "10")
    publish(broker, messages(20, start=20))
    table.wait_for_rows(40)
    assert_once_in_order(table, 40)


def test_another_database_is_recognised_and_gets_what_was_not_acknowledged(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url).wait_ready()
    wire.stall("up")
    publish_to(wire, messages(100))
    table.wait_for_rows(100)
    daemon.kill()
    wire.cut()
    wire.flow()
    other = table.name + "_other"
    with table.server.connect() as c:
        c.execute(f"CREATE DATABASE {other}")
    try:
        daemon = ingestd(broker=wire.url, database=table.server.dsn(other)).wait_ready()
        changed = daemon.wait_log("database_changed")
        assert changed["was"] != changed["is"]
        with table.server.connect(other) as c:
            wait_until(lambda: c.execute("SELECT count(*) FROM telemetry").fetchone() == (100,), what="all is there")
        assert daemon.stop() == 0
    finally:
        with table.server.connect() as c:
            c.execute(f"DROP DATABASE {other} WITH (FORCE)")


# ---- the same under other conditions ----

def kill_when_all_is_read(database, daemon, some):
    """kill -9 of the supervisor when it has read some messages and none of them can be committed."""
    with database.locked() as holder:
        some()
        # It has read all that it will: nothing more comes, or nothing more is let in.
        daemon.wait_log("gate_waiting", 60, phase="begins")
        daemon.kill()
        holder.rollback()


def receive_maximum(connect):
    """Of a CONNECT of MQTT 5."""
    properties, at = connect.body[11:11 + connect.body[10]], 0
    while properties[at] != 0x21:
        at += {0x11: 5}[properties[at]]
    return int.from_bytes(properties[at + 1:at + 3], "big")


@pytest.mark.parametrize("options", [{"protocol": "3.1.1"}, {"log_level": "debug"}, {"client_id": "x" * 500},
                                     {"receive_maximum": 20, "batch_size": 7}],
                         ids=["3.1.1", "debug", "a long client id", "a small window"])
def test_every_protocol_log_level_client_id_and_window_recognises_what_comes_again(
        broker, table, ingestd, wire, options):
    daemon = ingestd(broker=wire.url, **options).wait_ready()
    wire.stall("up")
    # No more than a window comes without an acknowledgement; under 3.1.1 the broker's own is 20.
    publish_to(wire, messages(20))
    table.wait_for_rows(20)
    daemon.kill()
    wire.cut()
    wire.flow()
    daemon = ingestd(broker=wire.url, **options).wait_ready()
    assert daemon.wait_log("session_resumed")["recognised"] == "20"
    # The proxy counts what it could not deliver any more: the broker knows.
    wait_until(lambda: broker.log().count("Received PUBACK from") >= 20, what="the first are acknowledged")
    wire.stall("up")
    publish_to(wire, messages(20, start=20))
    table.wait_for_rows(40)
    mark = daemon.mark()
    wire.cut()
    wire.flow()
    assert daemon.wait_log("session_resumed", after=mark)["recognised"] == "20"
    publish_to(wire, messages(500, start=40))
    table.wait_for_rows(540)
    assert_once_in_order(table, 540)
    assert daemon.stop() == 0


def test_with_a_client_id_that_hides_what_comes_again_nothing_is_lost_and_it_is_said(broker, table, ingestd, wire):
    """libmosquitto's log, which alone tells of DUP, has the client id in front and is cut off."""
    daemon = ingestd(broker=wire.url, client_id="x" * 600).wait_ready()
    wire.stall("up")
    publish_to(wire, messages(20))
    table.wait_for_rows(20)
    wire.cut()
    wire.flow()
    said = daemon.wait_log("session_not_recognised")
    assert said["messages"] == "20" and "stored again" in said["next"]
    publish_to(wire, messages(20, start=20))
    wait_until(lambda: set(stored(table)) == set(range(40)), what="all is there")
    assert daemon.stop() == 0


def test_messages_that_are_all_alike_are_stored_as_often_as_they_were_sent(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url, flush_timeout="500ms", spool_limit=0).wait_ready()
    alike = [("t/same", '{"n": 0}')]
    publish_to(wire, alike * 300)
    table.wait_for_rows(300)
    kill_when_all_is_read(table, daemon, lambda: publish_to(wire, alike * 200))
    daemon = ingestd(broker=wire.url).wait_ready()
    assert daemon.wait_log("stream_closed")["not_stored"] == "200"
    wire.stall("up")
    table.wait_for_rows(500)
    wire.cut()
    wire.flow()
    publish_to(wire, [*alike * 100, ("t/last", '{"n": 1}')])
    table.wait_for_rows(601)
    assert daemon.stop() == 0
    assert stored(table).count(0) == 600


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["killed before the commit", "killed after the commit", "cut after the commit"])
def test_a_full_window_is_recognised(broker, table, ingestd, wire, fate):
    """As many in hand as the broker gives, and more behind them: packet ids are given out again at once."""
    # What is received waits for the window to be full, not for the clock.
    limits = {"broker": wire.url, "queue_limit": 200_000, "ack_interval": "60s", "spool_limit": 0}
    daemon = ingestd(**limits, flush_timeout="500ms").wait_ready()
    window = receive_maximum(wire.connects[0])
    n = window + 20_000
    mark = 0
    if fate == "killed before the commit":
        kill_when_all_is_read(table, daemon, lambda: publish_to(wire, messages(n)))
        assert table.count() == 0
    else:
        wire.stall("up")
        with table.locked() as holder:
            publish_to(wire, messages(n))
            daemon.wait_log("gate_waiting", 60, phase="begins")
            holder.rollback()
        table.wait_for_rows(window, 60)
        if fate == "killed after the commit":
            daemon.kill()
        else:
            mark = daemon.mark()
        wire.cut()
        wire.flow()
    if fate.startswith("killed"):
        daemon = ingestd(**limits).wait_ready()
        assert daemon.wait_log("stream_closed")["not_stored"] == (str(window) if "before" in fate else "0")
    resumed = daemon.wait_log("session_resumed", 30, after=mark)
    publish_to(wire, messages(10, start=n))
    # Of each topic, since the lanes are not in step.
    wait_until(lambda: table.value("SELECT count(*) FROM telemetry WHERE (payload->>'n')::int >= %s", n) >= 10, 90,
               "the last ones are there", 0.2)
    found = stored(table)
    assert (len(set(found)), len(found)) == (n + 10, n + 10)
    assert_once_in_order(table, n + 10)
    assert (resumed["recognised"], resumed.get("missing", "0")) == (str(window), "0")
    assert daemon.stop() == 0


def test_a_dead_letter_that_comes_again_is_not_written_twice(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url).wait_ready()
    wire.stall("up")
    publish_to(wire, [("t/bad", "{"), ("t/1", '{"n": 0}'), ("t/bad", "{")])
    table.wait_for_rows(2, table="ingestd.dead_letter")
    table.wait_for_rows(1)
    daemon.kill()
    wire.cut()
    wire.flow()
    daemon = ingestd(broker=wire.url).wait_ready()
    assert daemon.wait_log("session_resumed")["recognised"] == "3"
    publish_to(wire, [("t/1", '{"n": 1}')])
    table.wait_for_rows(2)
    assert (table.count(), table.count("ingestd.dead_letter")) == (2, 2)
    assert daemon.stop() == 0


def test_the_stream_before_is_closed_before_the_broker_is_called(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url, flush_timeout="500ms").wait_ready()
    kill_with_commits_held_up(table, wire, daemon, 50)
    daemon = ingestd(broker=wire.url).wait_ready()
    names = [e.name for e in daemon.events()]
    assert names.index("stream_to_close") < names.index("stream_closed") < names.index("mqtt_connected")
    asked, closed = daemon.events("stream_to_close")[0], daemon.events("stream_closed")[0]
    assert asked["stream"] == closed["stream"] and 0 < int(asked["messages"]) <= 50
    assert int(asked["messages"]) == int(closed["stored"]) + int(closed["not_stored"])
    table.wait_for_rows(50)
    assert_once_in_order(table, 50)


def seconds_between(a, b):
    """Of two events."""
    return (datetime.fromisoformat(b.time[:-1]) - datetime.fromisoformat(a.time[:-1])).total_seconds()


@pytest.mark.slow
def test_without_its_database_and_a_spool_a_start_after_a_kill_leaves_the_broker_alone_and_a_stop_forgets_nothing(
        broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url).wait_ready()
    wire.stall("up")
    publish_to(wire, messages(200))
    table.wait_for_rows(200)
    daemon.kill()
    wire.cut()
    wire.flow()
    table.server.stop()
    for signum in (signal.SIGTERM, signal.SIGKILL):
        daemon = ingestd(broker=wire.url, log_level="debug", spool_limit=0)
        daemon.wait_log("stream_to_close")
        daemon.wait_log("database_refused")
        # Well behind the second after which a start that has nothing to close calls the broker.
        started = daemon.events("started")[0]
        wait_until(lambda: seconds_between(started, daemon.events("database_refused")[-1]) > 2, 30,
                   "it has tried for some seconds", 0.1)
        assert daemon.events("mqtt_connected") == []
        daemon.signal(signum)
        daemon.wait()
    table.start_server()
    daemon = ingestd(broker=wire.url).wait_ready()
    assert daemon.wait_log("stream_closed")["stored"] == "200"
    publish_to(wire, messages(50, start=200))
    table.wait_for_rows(250)
    assert_once_in_order(table, 250)
    assert daemon.stop() == 0


@pytest.mark.parametrize("how", ["released", "ended"])
def test_a_writer_of_the_run_before_that_still_waits_for_its_commit_is_waited_for(broker, table, ingestd, wire, how):
    """The supervisor has gone, its writers commit what they hold: the next one must not ask before they have."""
    daemon = ingestd(broker=wire.url, flush_timeout="20s").wait_ready()
    with table.locked() as holder:
        publish_to(wire, messages(500))
        wait_until(lambda: wire.count("down", "PUBLISH") >= 500, what="all is sent to it")
        table.wait_for_waiter(holder)
        old = daemon.writers().values()
        daemon.process.kill()
        daemon.process.wait()
        new = ingestd(broker=wire.url, spool_after="60s")
        new.wait_log("stream_to_close")
        if how == "released":
            wait_until(lambda: holder.execute("SELECT count(*) FROM pg_locks WHERE NOT granted AND"
                                              " locktype = 'transactionid'").fetchone()[0], what="closing waits")
        else:
            new.wait_log("predecessor_ended")
        assert new.events("stream_closed") == [] or how == "ended"
        holder.rollback()
    new.wait_ready()
    for pid in old:
        wait_until(lambda: not is_running(pid), 30, "an old writer ends")
    closed = new.wait_log("stream_closed")
    if how == "ended":
        assert closed["stored"] == "0"
    publish_to(wire, messages(10, start=500))
    table.wait_for_rows(510)
    assert_once_in_order(table, 510)
    assert new.stop() == 0


def test_acknowledgements_that_a_stop_could_not_hand_over_cost_no_duplicate(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url).wait_ready()
    wire.stall("up")
    publish_to(wire, messages(400))
    table.wait_for_rows(400)
    daemon.stop()
    wire.cut()
    wire.flow()
    daemon = ingestd(broker=wire.url).wait_ready()
    assert daemon.wait_log("stream_closed")["stored"] == "400"
    assert daemon.wait_log("session_resumed")["recognised"] == "400"
    publish_to(wire, messages(10, start=400))
    table.wait_for_rows(410)
    assert_once_in_order(table, 410)
    assert daemon.stop() == 0
    assert table.count("ingestd.progress") == 0


def test_connections_that_break_while_nothing_can_be_committed_store_nothing_twice(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url).wait_ready()
    came = 0
    with table.locked() as holder:
        for part in range(3):
            mark = daemon.mark()
            before = wire.count("down", "PUBLISH")
            publish_to(wire, messages(200, start=200 * part))
            # What came before comes again on each connection. The cut leaves unread what it finds on its way.
            wait_until(lambda: wire.count("down", "PUBLISH") >= before + 200, what="all is sent to it")
            table.wait_for_waiter(holder)
            wire.cut()
            lost = int(daemon.wait_log("mqtt_connection_lost", 30, after=mark)["unacknowledged"])
            daemon.wait_log("mqtt_connected", 30, after=mark)
            assert came <= lost <= 200 * (part + 1)
            assert daemon.wait_log("session_resumed", 30, after=mark)["recognised"] == str(lost)
            came = lost
        assert wire.count("up", "PUBACK") == 0
        holder.rollback()
    publish_to(wire, messages(10, start=600))
    table.wait_for_rows(610)
    assert_once_in_order(table, 610)
    assert daemon.stop() == 0
    assert daemon.totals()["received"] == 610


def test_a_backup_from_the_middle_of_what_was_not_acknowledged_gets_the_rest_once(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url).wait_ready()
    wire.stall("up")
    publish_to(wire, messages(60))
    table.wait_for_rows(60)
    table.query("CREATE TABLE backup_rows AS SELECT * FROM telemetry")
    table.query("CREATE TABLE backup_progress AS SELECT * FROM ingestd.progress")
    publish_to(wire, messages(40, start=60))
    table.wait_for_rows(100)
    daemon.kill()
    wire.cut()
    wire.flow()
    table.query("DELETE FROM telemetry WHERE id NOT IN (SELECT id FROM backup_rows)")
    table.query("DELETE FROM ingestd.progress")
    table.query("INSERT INTO ingestd.progress SELECT * FROM backup_progress")
    daemon = ingestd(broker=wire.url).wait_ready()
    closed = daemon.wait_log("stream_closed")
    assert (closed["stored"], closed["not_stored"]) == ("60", "40")
    assert daemon.events("progress_missing") == []
    publish_to(wire, messages(10, start=100))
    table.wait_for_rows(110)
    assert_once_in_order(table, 110)


def test_progress_rows_removed_under_load_lose_nothing(broker, table, ingestd):
    daemon = ingestd().wait_ready()
    publisher = Publisher(broker.port)
    for part in range(5):
        publisher.publish(messages(1000, start=1000 * part))
        table.query("DELETE FROM ingestd.progress")
    wait_until(lambda: set(stored(table)) == set(range(5000)), 60, "all is there", 0.1)
    daemon.wait_log("progress_lost")
    publisher.publish(messages(10, start=5000))
    wait_until(lambda: set(stored(table)) == set(range(5010)), 30, "and what comes afterwards")
    assert daemon.events("mqtt_connection_lost") == []
    assert daemon.stop() == 0


def test_a_filter_is_unsubscribed_even_if_the_first_run_to_do_so_dies_before(broker, table, ingestd, wire):
    assert ingestd(broker=wire.url, subscribe=["t/#", "old/#"]).wait_ready().stop() == 0

    def hold_back(direction, packets):
        if direction == "up":
            return b"".join(p.raw for p in packets if p.kind != "UNSUBSCRIBE")

    wire.on_packets = hold_back
    daemon = ingestd(broker=wire.url).wait_ready()
    wait_until(lambda: wire.count("up", "UNSUBSCRIBE") >= 1, what="it unsubscribes")
    daemon.kill()
    wire.on_packets = None
    daemon = ingestd(broker=wire.url).wait_ready()
    assert daemon.wait_log("mqtt_unsubscribed")["filter"] == "old/#"
    publish_to(wire, [("old/1", '{"n": 0}'), ("t/1", '{"n": 1}')])
    table.wait_for_rows(1)
    assert stored(table) == [1]


@pytest.mark.slow
@pytest.mark.parametrize("second_is", ["undisturbed", "short of a writer", "late with a writer"])
def test_the_first_instance_comes_back_after_a_kill_while_the_second_waits(
        broker, table, ingestd, wire, tmp_path, second_is):
    first = ingestd(broker=wire.url, client_id="twin", state_dir=tmp_path / "a").wait_ready()
    wire.stall("up")
    publish_to(wire, messages(100))
    table.wait_for_rows(100)
    second = ingestd(broker=wire.url, client_id="twin", state_dir=tmp_path / "b", log_level="debug")
    writer = int(second.wait_log("writer_started", lane=1)["pid"])
    if second_is == "late with a writer":
        # One that has not looked when another lane has is replaced by one that knows.
        with contextlib.suppress(ProcessLookupError):
            os.kill(writer, signal.SIGSTOP)
        second.wait_log("session_claimed")
    else:
        for lane in (0, 1):
            second.wait_log("lane_trouble", lane=lane, sqlstate="IG001")
        second.wait_log("session_claimed")
    first.kill()
    if second_is != "undisturbed":
        # This one asks when the first instance has gone, and must wait as long as the other lane, which has seen it.
        mark = second.mark()
        with contextlib.suppress(ProcessLookupError):
            # It may have been replaced by now, by one that knows.
            os.kill(second.writers().get(1, writer),
                    signal.SIGCONT if second_is == "late with a writer" else signal.SIGKILL)
        wait_until(lambda: [e for e in second.events()[mark:] if e.get("lane") == "1"
                            and e.name in ("database_refused", "writer_ready")], what="it has asked the database")
    wire.cut()
    wire.flow()
    first = ingestd(broker=wire.url, client_id="twin", state_dir=tmp_path / "a")
    first.wait_log("mqtt_subscribed", 20)
    publish_to(wire, messages(100, start=100))
    table.wait_for_rows(200)
    assert_once_in_order(table, 200)
    assert second.events("mqtt_connected") == []


# ---- the session ----

def test_a_session_that_the_broker_has_lost_costs_nothing_that_was_received(broker, table, ingestd):
    daemon = ingestd(spool_limit=0).wait_ready()
    with table.locked() as holder:
        publish(broker, messages(300))
        table.wait_for_waiter(holder)
        daemon.wait_log("gate_waiting", 30, phase="begins")
        broker.stop()
        (broker.home / "store.db").unlink()
        broker.start()
        daemon.wait_log("mqtt_session_lost", 30)
        holder.rollback()
    table.wait_for_rows(300)
    publish(broker, messages(10, start=300))
    table.wait_for_rows(310)
    assert_once_in_order(table, 310)
    assert daemon.stop() == 0


def test_a_session_lost_between_two_runs_is_said_with_what_was_not_stored(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url, flush_timeout="500ms").wait_ready()
    kill_with_commits_held_up(table, wire, daemon, 100)
    broker.stop()
    (broker.home / "store.db").unlink()
    broker.start()
    daemon = ingestd(broker=wire.url)
    # The last ones may have stood unread in its socket.
    assert 0 < int(daemon.wait_log("mqtt_session_lost")["received_not_stored"]) <= 100
    assert daemon.wait_ready().stop() == 0


@pytest.mark.slow
def test_a_wiped_state_directory_loses_nothing_and_says_that_duplicates_are_possible(
        broker, table, ingestd, wire, tmp_path):
    daemon = ingestd(broker=wire.url, client_id="wiped").wait_ready()
    wire.stall("up")
    publish_to(wire, messages(100))
    table.wait_for_rows(100)
    daemon.kill()
    wire.cut()
    wire.flow()
    shutil.rmtree(tmp_path / "state")
    daemon = ingestd(broker=wire.url, client_id="wiped")
    # To the database it is another instance, which waits whether the one before comes back.
    assert "may come back" in daemon.wait_log("database_configuration")["reason"]
    daemon.wait_log("mqtt_subscribed", 50)
    assert "duplicates are possible" in daemon.wait_log("session_unknown")["next"]
    publish_to(wire, messages(100, start=100))
    wait_until(lambda: set(stored(table)) == set(range(200)), 30, "all is there")
    assert daemon.stop() == 0


def test_another_client_id_is_another_session_and_said(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url, client_id="one", flush_timeout="500ms").wait_ready()
    kill_with_commits_held_up(table, wire, daemon, 100)
    daemon = ingestd(broker=wire.url, client_id="two").wait_ready()
    changed = daemon.wait_log("session_changed")
    assert (changed["was_client_id"], changed["client_id"], changed["unacknowledged"]) == ("one", "two", "100")
    publish_to(wire, messages(50, start=100))
    table.wait_for_rows(50)
    assert daemon.stop() == 0
    # The first one's messages are still where they were: back under its name, they come.
    daemon = ingestd(broker=wire.url, client_id="one").wait_ready()
    table.wait_for_rows(200)
    assert set(stored(table)) == set(range(150))


def test_another_broker_is_another_session_and_said(make_broker, table, ingestd):
    one, two = make_broker(), make_broker()
    daemon = ingestd(broker=one.url).wait_ready()
    publish(one, messages(10))
    table.wait_for_rows(10)
    assert daemon.stop() == 0
    daemon = ingestd(broker=two.url).wait_ready()
    assert daemon.wait_log("session_changed")["was_broker"] == f"127.0.0.1:{one.port}"
    assert daemon.events("mqtt_session_lost") == []
    publish(two, messages(10, start=10))
    table.wait_for_rows(20)
    assert_once_in_order(table, 20)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_filters_that_went_away_are_unsubscribed_and_new_ones_subscribed(broker, table, ingestd, protocol):
    daemon = ingestd(subscribe=["t/#", "old/#"], protocol=protocol).wait_ready()
    assert daemon.stop() == 0
    daemon = ingestd(subscribe=["t/#", "new/#"], protocol=protocol).wait_ready()
    assert daemon.wait_log("mqtt_unsubscribed")["filter"] == "old/#"
    publish(broker, [("old/1", '{"n": 0}'), ("new/1", '{"n": 1}'), ("t/1", '{"n": 2}')])
    table.wait_for_rows(2)
    assert daemon.stop() == 0
    # It is forgotten for good, and not unsubscribed again.
    daemon = ingestd(subscribe=["t/#", "new/#"], protocol=protocol).wait_ready()
    publish(broker, [("old/1", '{"n": 3}'), ("t/1", '{"n": 4}')])
    wait_until(lambda: 4 in stored(table), what="what comes last")
    assert sorted(stored(table)) == [1, 2, 4]
    assert daemon.events("mqtt_unsubscribed") == []


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_retained_message_is_stored_once_over_restarts_and_reconnects(broker, table, ingestd, wire, protocol):
    """Each SUBSCRIBE of 3.1.1 brings it again, so that a session that stands must get none."""
    publish_to(wire, messages(1), retain=True)
    for run in range(3):
        daemon = ingestd(broker=wire.url, protocol=protocol)
        # Later on the session has the filter before anything is connected.
        daemon.wait_log("mqtt_subscribed" if run == 0 else "mqtt_connected")
        publish_to(wire, messages(1, start=2 * run + 1))
        table.wait_for_rows(2 * run + 2)
        mark = daemon.mark()
        wire.cut()
        daemon.wait_log("mqtt_connected", after=mark)
        publish_to(wire, messages(1, start=2 * run + 2))
        table.wait_for_rows(2 * run + 3)
        assert daemon.stop() == 0
    assert_once_in_order(table, 7)


@pytest.mark.slow
def test_a_second_instance_on_the_same_session_and_database_stays_away_until_the_first_has_gone(
        broker, table, ingestd, tmp_path):
    first = ingestd(client_id="twin", state_dir=tmp_path / "a").wait_ready()
    publish(broker, messages(100))
    table.wait_for_rows(100)
    second = ingestd(client_id="twin", state_dir=tmp_path / "b")
    claimed = second.wait_log("session_claimed")
    assert claimed["client_id"] == "twin" and "staying away" in claimed["next"]
    publish(broker, messages(1000, start=100))
    table.wait_for_rows(1100)
    assert first.events("mqtt_connection_lost") == [] and second.events("mqtt_connected") == []
    assert first.stop() == 0
    publish(broker, messages(100, start=1100))
    # It waits for half a minute, since the first may only have lost its database for a moment.
    second.wait_log("mqtt_connected", 50)
    table.wait_for_rows(1200)
    assert_once_in_order(table, 1200)
    assert second.stop() == 0


# ---- brokers that do otherwise ----

class Odd:
    """ingestd before a broker that does what the test says."""

    def __init__(self, database, ingestd, client_id="odd"):
        self.database, self.broker = database, FakeBroker()
        self.daemon = ingestd(broker=self.broker.url, writers=1, client_id=client_id)
        self.broker.accept()

    def send(self, *parts):
        """parts: (packet id, number[, dup])"""
        self.broker.send(b"".join(packet("t/x", b'{"n": %d}' % n, i, *dup) for i, n, *dup in parts))

    @contextlib.contextmanager
    def send_and_break(self, *parts):
        """
        What is sent is received, and the connection breaks before any of it can be committed: none of it has been
        acknowledged. The block that follows begins with the next connection, and the commit comes behind it.
        """
        with self.database.locked() as holder:
            self.send(*parts)
            self.database.wait_for_waiter(holder)
            self.reconnect()
            yield
            holder.rollback()

    def reconnect(self, session_present=True):
        self.broker.client.close()
        self.broker.accept(session_present)

    def count(self):
        found = {}
        for n in stored(self.database):
            found[n] = found.get(n, 0) + 1
        return found


@pytest.fixture
def odd(table, ingestd):
    odd = Odd(table, ingestd)
    yield odd
    odd.broker.client.close()
    odd.broker.close()


def test_a_broker_that_does_as_mqtt_says_is_the_measure(odd):
    odd.send((1, 1), (2, 2), (3, 3))
    odd.database.wait_for_rows(3)
    odd.reconnect()
    odd.send((1, 1, True), (2, 2, True), (3, 3, True), (4, 4))
    odd.database.wait_for_rows(4)
    assert odd.broker.acknowledged(1) == [1, 2, 3, 4]
    assert odd.count() == {1: 1, 2: 1, 3: 1, 4: 1}
    assert odd.daemon.wait_log("session_resumed")["recognised"] == "3"


def test_messages_that_come_again_in_another_order_are_stored_again_and_counted(odd):
    with odd.send_and_break((1, 1), (2, 2), (3, 3)):
        odd.send((3, 3, True), (1, 1, True), (2, 2, True))
    odd.database.wait_for_rows(5)
    assert odd.broker.acknowledged(1) == [3, 1, 2]
    assert odd.count() == {1: 2, 2: 2, 3: 1}
    resumed = odd.daemon.wait_log("session_resumed")
    assert (resumed.level, resumed["unmatched"]) == ("warn", "2")


def test_other_content_under_an_old_packet_id_is_stored(odd):
    with odd.send_and_break((1, 1), (2, 2)):
        odd.send((1, 7, True), (2, 8, True))
    odd.database.wait_for_rows(4)
    assert odd.count() == {1: 1, 2: 1, 7: 1, 8: 1}
    assert odd.daemon.wait_log("session_resumed")["unmatched"] == "2"


def test_an_equal_message_without_dup_is_a_new_one(odd):
    """The broker has forgotten what it sent, and gives out its packet ids from the start again."""
    odd.send((1, 1), (2, 1))
    odd.database.wait_for_rows(2)
    odd.reconnect()
    odd.send((1, 1), (2, 1))
    odd.database.wait_for_rows(4)
    assert odd.count() == {1: 4}


def test_a_client_id_that_reads_like_a_log_line_makes_no_message_an_old_one(table, ingestd):
    odd = Odd(table, ingestd, "x received PUBLISH (d1")
    odd.send((1, 1))
    table.wait_for_rows(1)
    odd.reconnect()
    odd.send((1, 1))
    table.wait_for_rows(2)
    odd.broker.client.close()
    odd.broker.close()


def test_a_broker_that_claims_the_session_and_sends_nothing_holds_up_nothing(odd):
    with odd.send_and_break((1, 1), (2, 2)):
        pass
    odd.database.wait_for_rows(2)
    assert odd.broker.acknowledged(1) == []
    odd.send((3, 3))
    odd.database.wait_for_rows(3)
    assert odd.broker.acknowledged(1) == [3]
    assert odd.daemon.wait_log("session_resumed")["unmatched"] == "2"
    assert odd.daemon.stop() == 0


def test_what_has_expired_in_the_middle_does_not_keep_the_rest_from_being_recognised(odd):
    with odd.send_and_break((1, 1), (2, 2), (3, 3), (4, 4)):
        odd.send((1, 1, True), (3, 3, True), (4, 4, True), (5, 5))
    odd.database.wait_for_rows(5)
    assert odd.count() == {n: 1 for n in range(1, 6)}
    assert odd.daemon.wait_log("session_resumed")["unmatched"] == "1"


def test_with_a_broker_that_gives_out_the_lowest_free_id_an_equal_message_is_never_lost(odd):
    for n in (1, 2):
        odd.send((1, n))
        odd.database.wait_for_rows(n)
        assert odd.broker.acknowledged(0.5, answer=False) == [1]
    # It has taken the acknowledgement, gives 1 out again for a message of the same look, and the connection breaks.
    odd.reconnect()
    odd.send((1, 2, True))
    odd.database.wait_for_rows(3)
    assert odd.count() == {1: 1, 2: 2}


def test_the_question_whether_acknowledgements_arrived_is_put_once_and_changes_nothing(odd):
    odd.send((1, 1))
    odd.database.wait_for_rows(1)
    asked = [p for p in _packets(odd.broker, 2) if p[0] >> 4 == 10]
    assert len(asked) == 1 and b"$ingestd/acknowledged" in asked[0]
    # Without an answer it goes on all the same.
    odd.send(*[(i, i) for i in range(2, 50)])
    odd.database.wait_for_rows(49)
    assert odd.daemon.stop() == 0


def _packets(broker, timeout):
    found = []
    try:
        while True:
            found.append(broker.packet(timeout))
    except TimeoutError:
        return found


def test_an_equal_message_without_dup_is_a_new_one_while_the_first_waits_for_its_commit(odd):
    with odd.send_and_break((1, 1), (2, 2)):
        odd.send((1, 1), (2, 2))
    odd.database.wait_for_rows(4)
    assert odd.count() == {1: 2, 2: 2}
    assert odd.broker.acknowledged(1) == [1, 2]
    assert odd.daemon.wait_log("session_resumed")["unmatched"] == "2"
    assert odd.daemon.stop() == 0


class OddRuns:
    """Two runs of ingestd before such a broker: the first is killed with messages in hand."""

    def __init__(self, database, ingestd):
        self.database, self.ingestd = database, ingestd
        self.broker = FakeBroker()
        self.options = {"broker": self.broker.url, "writers": 1, "client_id": "odd", "flush_timeout": "300ms"}

    def kill_with(self, *parts, committed=(), acknowledged=False):
        daemon = self.ingestd(**self.options)
        self.broker.accept()
        if committed:
            for some in committed:
                self.send(*some)
                self.database.wait_for_rows(sum(map(len, committed[:committed.index(some) + 1])))
                if acknowledged:
                    assert self.broker.acknowledged(0.5, answer=False) == [i for i, *_ in some]
        if parts:
            with self.database.locked() as holder:
                self.send(*parts)
                self.database.wait_for_waiter(holder)
                daemon.kill()
                holder.rollback()
        else:
            daemon.kill()
        self.broker.client.close()
        self.daemon = self.ingestd(**self.options)
        self.broker.accept(True)

    def send(self, *parts):
        self.broker.send(b"".join(packet("t/x", b'{"n": %d}' % n, i, *dup) for i, n, *dup in parts))

    def count(self):
        found = {}
        for n in stored(self.database):
            found[n] = found.get(n, 0) + 1
        return found


@pytest.fixture
def runs(table, ingestd):
    runs = OddRuns(table, ingestd)
    yield runs
    runs.broker.client.close()
    runs.broker.close()


def test_what_died_with_its_supervisor_and_does_not_come_again_is_counted_as_missing(runs):
    runs.kill_with((1, 1), (2, 2), (3, 3), (4, 4))
    # The second has expired at the broker.
    runs.send((1, 1, True), (3, 3, True), (4, 4, True), (5, 5))
    runs.database.wait_for_rows(4)
    assert runs.count() == {1: 1, 3: 1, 4: 1, 5: 1}
    resumed = runs.daemon.wait_log("session_resumed")
    assert (resumed.level, resumed["recognised"], resumed["missing"]) == ("warn", "3", "1")
    assert runs.daemon.stop() == 0


def test_a_session_of_which_nothing_comes_again_after_a_kill_is_said(runs):
    runs.kill_with((1, 1), (2, 2))
    runs.send((3, 3))
    runs.database.wait_for_rows(1)
    assert runs.count() == {3: 1}
    resumed = runs.daemon.wait_log("session_resumed")
    assert (resumed.level, resumed["recognised"], resumed["missing"]) == ("warn", "0", "2")


@pytest.mark.parametrize("again", [[(2, 2), (1, 1), (3, 3)], [(3, 3), (2, 2), (1, 1)], [(1, 1), (3, 3), (2, 2)]])
def test_what_died_with_its_supervisor_and_comes_in_another_order_is_not_lost(runs, again):
    runs.kill_with((1, 1), (2, 2), (3, 3))
    runs.send(*[(i, n, True) for i, n in again], (4, 4))
    runs.database.wait_for_rows(4)
    assert set(runs.count()) == {1, 2, 3, 4}
    assert int(runs.daemon.wait_log("session_resumed")["missing"]) > 0


def test_other_content_under_the_ids_of_what_died_with_its_supervisor_is_stored(runs):
    runs.kill_with((1, 1), (2, 2))
    runs.send((1, 7, True), (2, 8, True))
    runs.database.wait_for_rows(2)
    assert runs.count() == {7: 1, 8: 1}
    assert runs.daemon.wait_log("session_resumed")["missing"] == "2"


def test_equal_messages_without_dup_after_a_kill_are_new(runs):
    runs.kill_with(committed=[[(1, 1)], [(2, 2)]])
    runs.send((1, 1), (2, 2))
    runs.database.wait_for_rows(4)
    assert runs.count() == {1: 2, 2: 2}


def test_that_a_broker_gives_out_the_lowest_free_id_is_still_known_after_a_kill(runs):
    runs.kill_with(committed=[[(1, 1)], [(1, 2)]], acknowledged=True)
    runs.send((1, 2, True))
    runs.database.wait_for_rows(3)
    assert runs.count() == {1: 1, 2: 2}


def test_the_end_of_a_connection_is_no_proof_that_a_stop_has_handed_its_acknowledgements_over(table, ingestd):
    """A proxy ends it as well, when its broker has died with the acknowledgements that it was to get."""
    broker = FakeBroker()
    options = {"broker": broker.url, "writers": 1, "client_id": "odd"}
    daemon = ingestd(**options)
    broker.accept()
    broker.send(packet("t/x", b'{"n": 1}', 1) + packet("t/x", b'{"n": 2}', 2))
    table.wait_for_rows(2)
    daemon.process.send_signal(signal.SIGTERM)
    assert broker.acknowledged(0.5, answer=False) == [1, 2]
    broker.client.close()
    assert daemon.process.wait(20) == 0
    daemon = ingestd(**options)
    broker.accept(session_present=True)
    broker.send(packet("t/x", b'{"n": 1}', 1, True) + packet("t/x", b'{"n": 2}', 2, True)
                + packet("t/x", b'{"n": 3}', 3))
    table.wait_for_rows(3)
    assert daemon.wait_log("session_resumed")["recognised"] == "2"
    assert broker.acknowledged(0.5) == [1, 2, 3]
    assert daemon.stop() == 0
    assert sorted(stored(table)) == [1, 2, 3]
    broker.client.close()
    broker.close()


def test_what_comes_in_front_of_the_brokers_last_word_stays_with_the_broker(table, ingestd):
    broker = FakeBroker()
    daemon = ingestd(broker=broker.url, writers=1, client_id="odd")
    broker.accept()
    broker.send(packet("t/x", b'{"n": 1}', 1))
    table.wait_for_rows(1)
    # The question of the stop, not the one that goes with the acknowledgement.
    assert broker.acknowledged(0.5, answer=False) == [1]
    daemon.process.send_signal(signal.SIGTERM)
    question = broker.packet(10)
    assert question[0] >> 4 == 10
    broker.send(packet("t/x", b'{"n": 2}', 2) + b"\xb0\x04" + question[2:4] + b"\0\x11")
    assert broker.packet(10)[0] >> 4 == 14, "DISCONNECT, and no PUBACK before it"
    broker.client.close()
    assert daemon.process.wait(20) == 0
    assert sorted(stored(table)) == [1]
    broker.close()
