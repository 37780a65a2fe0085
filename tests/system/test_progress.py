"""The progress rows, from a writer's end: what they tell, whom they keep out, and how they go away."""
import os
import signal

import pytest

from lane import CLOSE, CLOSED, COMMITTED, DRAINED, FORGET, FORGOTTEN, READY, Lane, message
from processes import wait_until

FENCED = 77


@pytest.fixture
def make_lane(database):
    made = []

    def make(**options):
        made.append(Lane(database.dsn, **options))
        return made[-1]

    yield make
    for lane in made:
        lane.clean_up()


def progress(database):
    """{(stream, lane): (seq, dead letters, closed)}"""
    return {(str(stream), lane): rest for stream, lane, *rest in database.query(
        "SELECT stream, lane, seq, dead_letters, closed FROM ingestd.progress")}


def numbers(database):
    return [n for (n,) in database.query("SELECT payload::int FROM telemetry ORDER BY time, payload::int")]


def publish(lane, *payloads):
    for payload in payloads:
        lane.publish(payload)
    lane.wait_committed()


def test_the_row_moves_with_the_rows_and_counts_the_dead_letters(make_lane, database):
    lane = make_lane(lane=3)
    assert lane.wait_ready()[2:4] == [0, 0]
    publish(lane, b"1", b"2", b"{")
    assert progress(database) == {(lane.stream, 3): [3, 1, False]}


def test_the_next_writer_of_a_lane_is_told_how_far_the_one_before_had_come(make_lane, database):
    first = make_lane()
    publish(first, b"1", b"{", b"3")
    os.kill(first.pid, signal.SIGKILL)
    second = make_lane(stream=first.stream)
    ready = second.wait_ready()
    assert ready[2:4] == [3, 1]
    # Which database it is: the cluster's identifier and the database's.
    system, number = ready[4].split("/")
    assert int(system) > 0 and int(number) == database.value("SELECT oid FROM pg_database"
                                                             " WHERE datname = current_database()")


def test_a_row_that_has_to_be_made_starts_where_the_supervisor_says(make_lane, database):
    lane = make_lane(committed=41)
    assert lane.wait_ready()[2] == 41
    assert progress(database)[lane.stream, 0][0] == 41


def test_the_next_writer_waits_for_the_transaction_of_the_one_before(make_lane, database):
    first = make_lane()
    publish(first, b"1")
    with database.locked() as holder:
        first.publish(b"2")
        database.wait_for_waiter(holder)
        second = make_lane(stream=first.stream)
        wait_until(lambda: holder.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0] == 2,
                   what="the second waits for the first")
        assert second.said(READY) == []
        holder.rollback()
    assert second.wait_ready()[2] == 2
    assert numbers(database) == [1, 2]


@pytest.mark.parametrize("how", ["DELETE FROM ingestd.progress", "DROP TABLE ingestd.progress",
                                 "UPDATE ingestd.progress SET seq = 77", "UPDATE ingestd.progress SET closed = true"])
def test_a_writer_whose_row_has_gone_or_moved_commits_nothing_and_ends(make_lane, database, how):
    lane = make_lane()
    publish(lane, b"1")
    database.query(how)
    lane.publish(b"2")
    assert lane.wait_exit() == FENCED
    assert numbers(database) == [1]
    assert lane.events("writer_fenced")[0]["stream"] == lane.stream


def test_a_row_that_goes_while_a_batch_is_held_lets_that_batch_not_pass(make_lane, database):
    """The connection is lost in the transaction; when the writer comes back, the stream is another's."""
    lane = make_lane()
    publish(lane, b"1")
    with database.locked() as holder:
        lane.publish(b"2")
        database.wait_for_waiter(holder)
        # Both in one: the backend that waits has the row's lock and lets go of it.
        with database.connect() as c:
            c.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ingestd'"
                      " AND datname = current_database() AND state = 'active'")
            c.execute("DELETE FROM ingestd.progress")
        holder.rollback()
    assert lane.wait_exit() == FENCED
    assert numbers(database) == [1]


def test_a_stream_that_is_closed_tells_its_lanes_and_its_writers_commit_nothing_more(make_lane, database):
    old = [make_lane(lane=0)]
    old.append(make_lane(lane=7, stream=old[0].stream))
    publish(old[0], b"1", b"2")
    publish(old[1], b"3")
    new = make_lane()
    new.wait_ready()
    new.send(message(CLOSE, old[0].stream))
    assert new.wait_for(CLOSED) == [old[0].stream, [0, 2, 7, 1]]
    for lane in old:
        lane.publish(b"99")
        assert lane.wait_exit() == FENCED
    assert numbers(database) == [1, 2, 3]
    # The rows stay until the supervisor has written down what they say: asked again, they say it again.
    new.messages.clear()
    new.send(message(CLOSE, old[0].stream))
    assert new.wait_for(CLOSED) == [old[0].stream, [0, 2, 7, 1]]
    publish(new, b"4")
    assert numbers(database) == [1, 2, 3, 4]


def test_closing_waits_for_a_transaction_that_has_begun_and_counts_it(make_lane, database):
    old, new = make_lane(), make_lane()
    publish(old, b"1")
    new.wait_ready()
    with database.locked() as holder:
        old.publish(b"2")
        database.wait_for_waiter(holder)
        new.send(message(CLOSE, old.stream))
        wait_until(lambda: holder.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0] == 2,
                   what="closing waits")
        holder.rollback()
    assert new.wait_for(CLOSED) == [old.stream, [0, 2]]
    assert numbers(database) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["close", "take"])
def test_a_predecessor_that_stands_still_in_its_transaction_is_ended_and_commits_nothing(make_lane, database, what):
    old = make_lane()
    publish(old, b"1")
    with database.locked() as holder:
        old.publish(b"2")
        database.wait_for_waiter(holder)
        os.kill(old.pid, signal.SIGSTOP)
        # It has been let into the table, and has only to be fed: it holds its row for as long as it stands still.
        holder.rollback()
    wait_until(lambda: database.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientRead'"
                                      " AND state = 'active' AND datname = current_database()") == 1,
               what="its backend waits for it")
    new = make_lane(stream=old.stream if what == "take" else None)
    if what == "close":
        new.wait_ready()
        new.send(message(CLOSE, old.stream))
        assert new.wait_for(CLOSED, timeout=20) == [old.stream, [0, 1]]
    else:
        assert new.wait_ready()[2] == 1
    assert new.events("predecessor_ended")[0]["backends"] == "1"
    publish(new, b"3")
    if what == "close":
        # Of a lane that has a successor the supervisor has killed and reaped the one before: see lane.c.
        os.kill(old.pid, signal.SIGCONT)
        assert old.wait_exit() == FENCED
    assert numbers(database) == [1, 3]


def test_a_lock_of_somebody_else_on_the_row_is_said_and_nobody_is_ended(make_lane, database):
    first = make_lane()
    publish(first, b"1")
    os.kill(first.pid, signal.SIGKILL)
    with database.connect() as holder:
        holder.autocommit = False
        holder.execute("SELECT * FROM ingestd.progress FOR UPDATE")
        second = make_lane(stream=first.stream)
        second.wait_trouble(lambda m: m[1] == "55P03" and "ingestd.progress" in m[2])
        holder.rollback()
    assert second.wait_ready(30)[2] == 1


def test_rows_are_removed_when_that_is_asked_for(make_lane, database):
    old, new = make_lane(), make_lane()
    publish(old, b"1")
    publish(new, b"2")
    new.send(message(FORGET, old.stream))
    assert new.wait_for(FORGOTTEN) == [old.stream]
    assert set(progress(database)) == {(new.stream, 0)}
    # Its own goes with the writer, behind the last commit.
    new.publish(b"3")
    new.send(message(FORGET, new.stream))
    new.end_of_file()
    assert new.wait_exit() == 0
    assert new.said(DRAINED)[0][0] == 2 and new.said(COMMITTED)[-1][0] == 2
    assert progress(database) == {}
    assert numbers(database) == [1, 2, 3]


def test_a_row_that_cannot_be_removed_holds_up_nobody(make_lane, database):
    lane = make_lane()
    publish(lane, b"1")
    database.server.stop("immediate")
    lane.send(message(FORGET, lane.stream))
    lane.end_of_file()
    assert lane.wait_exit(10) == 0
    database.server.start()


def test_another_instance_for_the_same_session_is_refused_and_lets_the_first_alone(make_lane, database):
    first = make_lane(instance=1)
    publish(first, b"1")
    second = make_lane(instance=2)
    kind, _, text = second.wait_trouble(lambda m: m[1] == "IG001")
    assert kind == 1 and "client id" in text
    publish(first, b"2")
    assert second.said(READY) == []
    # The lanes of one instance are no rivals.
    third = make_lane(instance=1, lane=1)
    third.wait_ready()


def test_rows_that_another_instance_has_left_keep_the_session_for_it(make_lane, database):
    """It may have lost its database for a moment only, and has messages in its hands."""
    first = make_lane(instance=1)
    publish(first, b"1")
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: database.sessions() == [], what="its connection has ended")
    second = make_lane(instance=2)
    kind, _, text = second.wait_trouble(lambda m: m[1] == "IG001")
    assert kind == 1 and "may come back" in text
    # It does, and finds everything as it was.
    third = make_lane(instance=1, stream=first.stream)
    assert third.wait_ready()[2] == 1
    second.wait_trouble(lambda m: m[1] == "IG001" and "writes into this database" in m[2])


@pytest.mark.slow
def test_an_instance_that_has_been_away_for_long_loses_the_session_and_commits_nothing_more(make_lane, database):
    first = make_lane(instance=1)
    publish(first, b"1")
    # Its database is away for it, and for nobody else.
    os.kill(first.pid, signal.SIGSTOP)
    database.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ingestd'"
                   " AND datname = current_database()")
    second = make_lane(instance=2)
    second.wait_ready(50)
    assert progress(database)[first.stream, 0] == [1, 0, True]
    publish(second, b"3")
    second.send(message(FORGET, second.stream))
    second.end_of_file()
    assert second.wait_exit() == 0
    os.kill(first.pid, signal.SIGCONT)
    first.publish(b"4")
    # Its row is closed: what it has is the broker's to send again.
    assert first.wait_exit(40) == FENCED
    assert numbers(database) == [1, 3]


@pytest.mark.parametrize("ddl, words", [
    ("CREATE TABLE ingestd.progress (stream text, lane integer, seq bigint, dead_letters bigint, closed boolean)",
     "stream is text and should be uuid"),
    ("CREATE TABLE ingestd.progress (stream uuid, lane integer, seq bigint)", "lacks columns"),
    ("CREATE UNLOGGED TABLE ingestd.progress (stream uuid, lane integer, seq bigint, dead_letters bigint,"
     " closed boolean)", "UNLOGGED"),
    ("CREATE VIEW ingestd.progress AS SELECT 1", "is a view"),
])
def test_a_progress_table_of_another_shape_is_named_and_nothing_stored(make_lane, database, ddl, words):
    database.query("CREATE SCHEMA ingestd")
    database.query(ddl)
    lane = make_lane()
    lane.publish(b"1")
    kind, _, text = lane.wait_trouble(lambda m: words in m[2])
    assert kind == 1 and "ingestd.progress" in text
    assert database.count() == 0


@pytest.mark.parametrize("stream", ["", "x" * 36, "0A2B4C6D-0000-4000-8000-00000000000A", "0a2b4c6d-0000-4000-8000-00000000000a0",
                                    "'; DROP TABLE telemetry; --"])
def test_what_is_no_stream_never_gets_into_sql(make_lane, database, stream):
    lane = make_lane()
    lane.wait_ready()
    lane.send(message(CLOSE, stream))
    assert lane.wait_exit() == 65
    assert "CLOSE names no stream" in lane.log()
