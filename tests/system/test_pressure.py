"""What holds up the flow is said by name: when it begins, once a minute, and when it ends, with how long and how many."""
import time

import pytest

from processes import free_port, wait_until
from publisher import numbered, publish
from wire import Wire

STATES = ["database_unreachable", "database_configuration", "spooling", "spool_full", "backlog_full", "gate_waiting",
          "broker_unreachable"]
LOUD = {"database_unreachable", "database_configuration", "spool_full", "broker_unreachable"}


def seconds(text):
    assert text.endswith("s")
    return float(text[:-1])


def lines(daemon, state):
    return daemon.events(state)


def phases(daemon, state):
    return [e["phase"] for e in lines(daemon, state)]


def assert_well_told(daemon, *states):
    """Each of these states has begun and ended, once, and nothing else has been told."""
    assert {s for s in STATES if lines(daemon, s)} == set(states), daemon.log()
    for state in states:
        begin, end = lines(daemon, state)
        assert (begin["phase"], end["phase"]) == ("begins", "ends")
        assert begin.level == ("error" if state in LOUD else "warn") and end.level == "info"
        assert len(begin["reason"]) > 10 and len(begin["next"]) > 10 and len(end["next"]) > 10
        assert seconds(begin["for"]) <= seconds(end["after"])
        assert int(begin["waiting"]) <= int(end["waiting"])


@pytest.mark.slow
@pytest.mark.parametrize("spool_limit, second", [("1GiB", "spooling"), (0, "gate_waiting")])
def test_an_outage_of_15_s_is_two_lines_a_state_with_how_long_and_how_many(
        broker, database, ingestd, spool_limit, second):
    daemon = ingestd(writers=3, spool_limit=spool_limit).wait_ready(writers=3)
    began = time.monotonic()
    database.server.stop("immediate")
    publish(broker, numbered(300))
    daemon.wait_log(second, 20, phase="begins")
    wait_until(lambda: time.monotonic() - began >= 15, 20, "the outage has lasted for 15 s", 0.1)
    database.server.start()
    database.wait_for_rows(300)
    for state in ("database_unreachable", second):
        daemon.wait_log(state, phase="ends")
    assert_well_told(daemon, "database_unreachable", second)
    begin, end = lines(daemon, "database_unreachable")
    # Each lane alone would have told of it before.
    assert 1 <= int(begin["lanes"]) <= 3 and begin["class"] == "transient"
    assert 14 < seconds(end["after"]) <= time.monotonic() - began
    assert end["waiting"] == "300"
    if second == "gate_waiting":
        assert lines(daemon, second)[0]["unacknowledged"] == "300"
        assert seconds(lines(daemon, second)[0]["for"]) >= 5
    else:
        # It begins with the first lane that is without a commit for so long.
        assert "--spool-after" in lines(daemon, second)[0]["reason"] and lines(daemon, second)[1]["waiting"] == "300"
    assert daemon.stop() == 0


def test_a_table_that_is_locked_for_long_is_told_and_a_commit_ends_it(broker, database, ingestd):
    daemon = ingestd(spool_limit=0).wait_ready()
    with database.locked() as holder:
        publish(broker, numbered(100))
        begin = daemon.wait_log("database_unreachable", 20, phase="begins")
        assert "waiting for the database" in begin["reason"]
        daemon.wait_log("gate_waiting", 20, phase="begins")
        holder.rollback()
    daemon.wait_log("gate_waiting", phase="ends")
    daemon.wait_log("database_unreachable", phase="ends")
    assert_well_told(daemon, "database_unreachable", "gate_waiting")
    assert lines(daemon, "database_unreachable")[1]["waiting"] == "100"


def test_a_backlog_that_is_full_has_its_own_name(broker, database, ingestd):
    daemon = ingestd(qos=0, queue_limit=500, queue_bytes="64MiB", spool_limit=0).wait_ready()
    with database.locked() as holder:
        publish(broker, numbered(2000), qos=0)
        begin = daemon.wait_log("backlog_full", 20, phase="begins")
        assert "--queue-limit" in begin["reason"] and int(begin["waiting"]) >= 500
        daemon.wait_log("database_unreachable", 20, phase="begins")
        holder.rollback()
    database.wait_for_rows(2000)
    daemon.wait_log("backlog_full", phase="ends")
    daemon.wait_log("database_unreachable", phase="ends")
    assert_well_told(daemon, "backlog_full", "database_unreachable")


def test_a_broker_that_is_away_is_told_once_with_the_attempts_and_the_first_reason(broker, database, ingestd):
    daemon = ingestd(log_level="debug").wait_ready()
    broker.stop()
    begin = daemon.wait_log("broker_unreachable", phase="begins")
    assert str(broker.port) in begin["broker"] and seconds(begin["for"]) >= 1
    wait_until(lambda: len(daemon.events("mqtt_attempt_failed")) >= 2, 20, "it tries again")
    broker.start()
    end = daemon.wait_log("broker_unreachable", 40, phase="ends")
    assert seconds(end["after"]) >= seconds(begin["for"])
    assert_well_told(daemon, "broker_unreachable")
    failed = daemon.events("mqtt_connect_failed")
    assert len(failed) == 1 and "refused" in failed[0]["reason"].lower()
    # The next series has its own first failure.
    mark = daemon.mark()
    broker.stop()
    daemon.wait_log("mqtt_connect_failed", 20, after=mark)


def test_a_broker_that_never_was_there_is_told_as_well(database, ingestd):
    daemon = ingestd(broker=f"mqtt://127.0.0.1:{free_port()}")
    begin = daemon.wait_log("broker_unreachable", phase="begins")
    assert "refused" in begin["reason"].lower() and int(begin["attempts"]) >= 1
    assert len(daemon.events("mqtt_connect_failed")) == 1
    assert daemon.stop() == 0


def test_what_waits_for_a_broker_are_the_messages_that_are_not_acknowledged(broker, database, ingestd):
    wire = Wire(broker.port)
    daemon = ingestd(broker=wire.url, spool_limit=0).wait_ready()
    with database.locked() as holder:
        publish(broker, numbered(40))
        daemon.wait_log("gate_waiting", 20, phase="begins", waiting=40)
        wire.close()
        begin = daemon.wait_log("broker_unreachable", 20, phase="begins")
        holder.rollback()
    assert begin["waiting"] == "40"


def test_a_connection_that_is_back_at_once_is_no_news_but_its_loss(broker, database, ingestd):
    wire = Wire(broker.port)
    daemon = ingestd(broker=wire.url).wait_ready()
    lost = time.monotonic()
    wire.cut()
    wait_until(lambda: len(daemon.events("mqtt_connected")) == 2, 20, "it is back")
    back = time.monotonic() - lost
    assert len(daemon.events("mqtt_connection_lost")) == 1
    assert back >= 0.9 or lines(daemon, "broker_unreachable") == []
    wire.close()


def test_a_gate_that_works_is_no_news(broker, database, ingestd):
    daemon = ingestd(receive_maximum=10).wait_ready()
    publish(broker, numbered(3000))
    database.wait_for_rows(3000)
    assert_well_told(daemon)


def test_what_comes_and_goes_is_summed_up(broker, database, ingestd):
    daemon = ingestd(log_level="debug", writers=1).wait_ready(writers=1)

    def trouble_it():
        database.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                       " AND application_name LIKE 'ingestd%%'")
        return len(daemon.events("lane_recovered")) >= 6

    # A writer tells of trouble at most once a second: not each of them is heard of.
    wait_until(trouble_it, 60, "it has come and gone six times", 0.2)
    assert phases(daemon, "database_unreachable") == ["begins", "ends", "begins", "ends", "begins"]


def test_a_database_that_comes_back_and_refuses_passes_from_one_state_to_the_other(broker, database, ingestd):
    database.query("CREATE VIEW telemetry AS SELECT now() AS time, ''::text AS topic, 'null'::jsonb AS payload")
    database.server.stop()
    daemon = ingestd()
    daemon.wait_log("database_unreachable", phase="begins")
    database.server.start()
    begin = daemon.wait_log("database_configuration", 20, phase="begins")
    assert "view" in begin["reason"] and begin["class"] == "configuration"
    assert "database_configuration" in daemon.wait_log("database_unreachable", phase="ends")["next"]
    with database.connect() as c:
        c.execute("DROP VIEW telemetry")
    daemon.wait_log("database_configuration", 20, phase="ends")
    assert_well_told(daemon, "database_unreachable", "database_configuration")
    assert daemon.stop() == 0


def test_a_database_that_can_be_reached_and_refuses_every_commit_is_one_state(broker, database, ingestd):
    daemon = ingestd(log_level="debug", writers=1).wait_ready(writers=1)
    database.query("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                   " $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '40001'; END $$")
    database.query("CREATE TRIGGER refuse BEFORE INSERT ON telemetry FOR EACH ROW EXECUTE FUNCTION refuse()")
    began = time.monotonic()
    publish(broker, numbered(10))
    # Each time it has connected anew; and a writer tells of trouble once a second.
    wait_until(lambda: len(daemon.events("database_refused")) >= 5 and time.monotonic() - began >= 3, 40,
               "it is refused again and again")
    database.query("DROP TRIGGER refuse ON telemetry")
    database.wait_for_rows(10)
    end = daemon.wait_log("database_unreachable", phase="ends")
    assert phases(daemon, "database_unreachable") == ["begins", "ends"] and end["waiting"] == "10"
