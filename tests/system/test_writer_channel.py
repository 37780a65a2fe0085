"""ingestd-writer alone, with the test in the supervisor's place: its channel, its database, its end."""
import os
import signal
import socket
import subprocess

import psycopg
import pytest

from daemon import WRITER
from lane import (COMMITTED, CONDEMN, CONFIGURATION_ERROR, DATA_ERROR, DRAINED, READY, TEMPORARY_FAILURE, TROUBLE,
                  VERSION, Lane, message, record)
from processes import PATIENCE, clean_environment, memory_of, read_proc, wait_until

TABLE = "time timestamptz NOT NULL, topic text NOT NULL, payload jsonb NOT NULL"
CLASSES = {0: "transient", 1: "configuration", 2: "data"}


@pytest.fixture
def make_lane(database):
    made = []

    def make(dsn=None, **options):
        made.append(Lane(dsn or database.dsn, **options))
        return made[-1]

    yield make
    for lane in made:
        lane.clean_up()


@pytest.fixture
def lane(make_lane):
    lane = make_lane()
    lane.wait_ready()
    return lane


@pytest.fixture
def role(database):
    """A role that has to give its password, which is 'right horse'."""
    name = f"{database.name}_asked"
    database.query(f"CREATE ROLE {name} LOGIN PASSWORD 'right horse' IN ROLE asks_password")
    yield name
    database.query(f"DROP OWNED BY {name}")
    database.query(f"DROP ROLE {name}")


def assert_heals(lane, database, table="telemetry"):
    """The batch that was held is committed by the same process, and the next one too."""
    pid = lane.pid
    lane.wait_committed(timeout=20)
    lane.publish(b"2")
    lane.wait_committed()
    assert lane.pid == pid and lane.process.poll() is None
    assert database.value(f"SELECT count(*) FROM {table}") >= 2


def held(lane, sqlstate, *words):
    """Sends a record, and returns the text of the trouble that holds it up."""
    lane.publish(b"1")
    kind, state, text = lane.wait_trouble(lambda m: m[1] == sqlstate)
    assert CLASSES[kind] == "configuration"
    for word in words:
        assert word in text, f"'{word}' is not in '{text}'"
    assert not lane.said(COMMITTED)
    return text


# ---- alone ----

def test_it_says_who_starts_it_when_called_by_hand():
    done = subprocess.run([WRITER], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20)
    assert done.returncode == 64
    assert done.stderr == "ingestd-writer is started by ingestd, with its channel on descriptor 3\n"


def test_the_process_title_tells_the_lane(make_lane):
    lane = make_lane(lane=3)
    lane.wait_ready()
    assert read_proc(lane.pid, "cmdline").startswith("ingestd-writer: lane 3")


def test_signals_of_a_terminal_do_not_end_it(lane):
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(lane.pid, signum)
    lane.publish(b"1")
    lane.wait_committed()


# ---- the channel ----

def test_records_become_rows_and_the_watermark_follows(lane, database):
    for n in range(1000):
        lane.publish(b'{"n":%d}' % n, topic=f"t/{n % 7}", time_us=1_700_000_000_000_000 + n)
    lane.wait_committed()
    assert [m[0] for m in lane.said(COMMITTED)] == sorted(m[0] for m in lane.said(COMMITTED))
    assert sum(m[1] for m in lane.said(COMMITTED)) == 1000
    rows = database.query("SELECT (extract(epoch FROM time) * 1000000)::bigint - 1700000000000000, topic,"
                          " (payload->>'n')::int FROM telemetry ORDER BY ctid")
    assert rows == [(n, f"t/{n % 7}", n) for n in range(1000)]


def test_the_end_of_the_channel_commits_all_and_reports_the_totals(lane, database):
    for n in range(1, 3001):
        lane.publish(b"%d" % n if n % 10 else b"\xff")
    lane.end_of_file()
    assert lane.wait_exit() == 0
    watermark, rows, dead_letters, batches = lane.said(DRAINED)[0]
    assert (watermark, rows, dead_letters) == (3000, 2700, 300)
    assert batches == len(lane.said(COMMITTED)) >= 6
    assert database.count() == 2700 and database.count("ingestd.dead_letter") == 300


def test_sigusr1_does_the_same_while_the_channel_stays_open(lane, database):
    for n in range(3000):
        lane.publish(b"%d" % n)
    os.kill(lane.pid, signal.SIGUSR1)
    assert lane.wait_exit() == 0
    assert lane.said(DRAINED)[0][:3] == [3000, 3000, 0]
    assert database.count() == 3000


def test_a_writer_that_holds_nothing_ends_at_once_without_a_database(make_lane):
    lane = make_lane("host=127.0.0.1 port=1")
    lane.wait_trouble()
    os.kill(lane.pid, signal.SIGUSR1)
    assert lane.wait_exit(5) == 0
    assert lane.said(DRAINED) == [[0, 0, 0, 0]]


def test_flush_is_taken_and_large_batches_are_not_split_below_their_size(make_lane, database):
    lane = make_lane(batch_size=100)
    lane.wait_ready()
    lane.send(b"".join(record(n, payload=b"1") for n in range(1, 1001)) + message(3))
    lane.seq = 1000
    lane.wait_committed()
    assert max(m[1] for m in lane.said(COMMITTED)) == 100
    assert database.count() == 1000


def test_what_cannot_be_sent_yet_becomes_one_larger_batch_up_to_its_limit(make_lane, database):
    lane = make_lane(batch_size=10, batch_limit=50)
    lane.wait_ready()

    def send(count):
        lane.send(b"".join(record(n, payload=b"1") for n in range(lane.seq + 1, lane.seq + count + 1)))
        lane.seq += count

    def is_quick():
        """Rows of the last transaction, and its microseconds: fifty would have been through in 200 ms."""
        send(10)
        lane.wait_committed()
        _, rows, _, _, duration = lane.said(COMMITTED)[-1]
        return rows * 200_000 >= 50 * duration

    wait_until(is_quick, what="the database has shown that it is quick")
    first, before = lane.seq, len(lane.said(COMMITTED))
    with database.locked() as holder:
        lane.publish(b"1")
        database.wait_for_waiter(holder)
        send(200)
        lane.wait_read()
        holder.rollback()
    lane.wait_committed()
    sizes = [m[1] for m in lane.said(COMMITTED)]
    assert sizes[before:before + 2] == [1, 50] and max(sizes) == 50
    assert sum(sizes) == database.count() == lane.seq == first + 201


def test_a_slow_database_gets_no_larger_transactions_than_it_stores_in_a_moment(make_lane, database):
    lane = make_lane(batch_size=20, batch_limit=5000)
    lane.wait_ready()
    database.query("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
                   " $$ BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END $$")
    database.query("CREATE TRIGGER slow BEFORE INSERT ON telemetry FOR EACH ROW EXECUTE FUNCTION slow()")
    lane.send(b"".join(record(n, payload=b"1") for n in range(1, 1501)))
    lane.seq = 1500
    lane.wait_committed(timeout=60)
    sizes = [m[1] for m in lane.said(COMMITTED)]
    # 200 ms, at 2 ms a row and more.
    assert max(sizes) <= 100 and sum(sizes) == 1500


@pytest.mark.parametrize("garbage, reason", [
    (b"\xff" * 40, "byte 0xff where a message (an array) belongs"),
    (b"GET / HTTP/1.1\r\n", "byte 0x47"),
    (b"\x91\x63", "no message of type 99"),
    (b"\x92\x03\x00", "FLUSH has 1 elements, not 2"),
    (b"\x90", "an empty array has no type"),
    (message(READY, 1, "x", 0, 0, ""), "READY is a writer's message"),
    (message(2, 1), "RECORD has 11 elements"),
    (message(1, 1, 0, "s", "", 0, 0, 0, 0, 0), "CONFIG has come a second time"),
    # A length of 4 GiB, of an array and of a payload: refused before it is believed.
    (b"\xdd\xff\xff\xff\xff\x02", "4294967295"),
    (b"\x9b\x02\x01\x01\xa1t\xc6\xff\xff\xff\xff", "4294967295 bytes more"),
])
def test_garbage_ends_it_with_the_byte_and_the_reason_and_commits_what_came_before(
        make_lane, database, garbage, reason):
    lane = make_lane()
    lane.wait_ready()
    before = memory_of(lane.pid)
    for n in range(10):
        lane.publish(b"%d" % n)
    lane.send(garbage)
    wait_until(lambda: "channel_malformed" in lane.log(), what="the log line")
    assert memory_of(lane.pid) - before < 8 << 20
    assert lane.wait_exit() == DATA_ERROR
    event = lane.events("channel_malformed")[0]
    assert reason in event["reason"] and event["byte"].isdigit()
    assert database.count() == 10


def test_half_a_message_ends_it_with_the_bytes_left_over(lane, database):
    lane.publish(b"1")
    lane.send(record(2, payload=b"x" * 1000)[:500])
    lane.end_of_file()
    assert lane.wait_exit() == DATA_ERROR
    assert lane.events("channel_cut")[0]["bytes_left_over"] == "500"
    assert database.count() == 1


def test_garbage_instead_of_a_configuration_ends_it(make_lane):
    lane = make_lane(configure=False)
    lane.send(record(1))
    assert lane.wait_exit() == DATA_ERROR
    assert "RECORD has come before CONFIG" in lane.log()


def test_another_version_is_named_with_our_own(make_lane):
    lane = make_lane(configure=False)
    lane.configure(version=77)
    assert lane.wait_exit() == CONFIGURATION_ERROR
    event = lane.events("version_mismatch")[0]
    assert (event["supervisor"], event["writer"]) == ("77", str(VERSION))


@pytest.mark.parametrize("conninfo", [
    "host=localhost password=hush hush-too", "postgresql://u:hush%zz@h/d", "password='hush", "hush",
    "postgresql://u:hush/2@h/d",
])
def test_a_connection_string_that_cannot_be_read_ends_it_without_giving_the_password_away(make_lane, conninfo):
    lane = make_lane(conninfo)
    assert lane.wait_exit() == CONFIGURATION_ERROR
    assert lane.events("configuration_bad")[0]["option"] == "--database"
    assert "hush" not in lane.log()


def test_a_supervisor_that_does_not_listen_costs_no_memory_and_no_rows(make_lane, database):
    lane = make_lane(batch_size=1)
    lane.wait_ready()
    lane.socket.shutdown(socket.SHUT_RD)
    for n in range(2000):
        lane.publish(b"1")
    lane.end_of_file()
    assert lane.wait_exit() == 0
    assert database.count() == 2000


# ---- payloads ----

HOSTILE_TOPICS = ["t/\ttab", "t/\nline", "t/\\N", "t/\\.", "\\.", "t/'; DROP TABLE telemetry; --", "t/\x01\x7f",
                  "t/\U0001f600", "x" * 65535, "t/\"quoted\"", "/", " "]


def test_hostile_topics_are_stored_exactly(lane, database):
    for topic in HOSTILE_TOPICS:
        lane.publish(b"{}", topic=topic)
    lane.wait_committed()
    assert [r[0] for r in database.query("SELECT topic FROM telemetry ORDER BY ctid")] == HOSTILE_TOPICS


def test_what_text_and_jsonb_cannot_hold_is_dead_lettered_with_its_exact_bytes(lane, database):
    payloads = [b"\xff\x00\\x\n\t\\.", b'{"a":"\\u0000"}', b'["\\ud800"]', b"1e200000", b'{"a"', bytes(range(256)),
                b"[" * 10000 + b"]" * 10000]
    for payload in payloads:
        lane.publish(payload, qos=0, retain=1, content_type="application/json\0",
                     properties=[("k\0", "v"), (b"\xff\\", b"\xed\xa0\x80\n")])
    lane.publish(b"{}", topic=b"t/\xff\0\n")
    lane.publish(b"first bytes", size=20 << 20)
    lane.publish(b'{"neighbour":"unharmed"}')
    lane.wait_committed()
    rows = database.query("SELECT payload, topic, qos, retain, properties, lane, reason, sqlstate, detail"
                          " FROM ingestd.dead_letter ORDER BY id")
    assert [bytes(r[0]) for r in rows] == payloads + [b"{}", b"first bytes"]
    assert rows[0][1:6] == ("t/1", 0, True, {"content-type": "application/json\\x00",
                            "user": [["k\\x00", "v"], ["\\xff\\", "\\xed\\xa0\\x80\n"]]}, 0)
    assert rows[7][1] == "t/\\xff\\x00\n" and rows[7][4] is None
    assert rows[8][6] == "payload of 20971520 bytes exceeds --payload-limit"
    assert rows[8][8] == "the payload had 20971520 bytes, the first 11 were kept"
    assert all(r[6] and r[7] is None for r in rows)
    assert database.query("SELECT payload FROM telemetry") == [({"neighbour": "unharmed"},)]


def test_numbers_reach_jsonb_as_they_stood(lane, database):
    numbers = ["21.10", "12345678901234567890", "1.000", "-0", "0.1e1", "1E5", "1e-400"]
    for number in numbers:
        lane.publish(number.encode())
        lane.publish(b'{"v":%s}' % number.encode())
    lane.wait_committed()
    assert database.value("SELECT count(*) FROM ingestd.dead_letter") == 0
    stored = [r[0] for r in database.query("SELECT payload::text FROM telemetry ORDER BY ctid")]
    own = [database.value("SELECT %s::text::jsonb::text", p) for n in numbers for p in (n, '{"v":%s}' % n)]
    assert stored == own
    assert stored[:2] == ["21.10", '{"v": 21.10}']


def test_a_payload_at_the_limit_and_one_of_no_bytes_are_stored(make_lane, database):
    lane = make_lane(payload_limit=16 << 20)
    lane.wait_ready()
    large = b'"' + b"x" * ((16 << 20) - 2) + b'"'
    lane.publish(large)
    lane.publish(b"")
    lane.publish(b"\x01" * (1 << 20))
    lane.wait_committed(timeout=60)
    rows = database.query("SELECT jsonb_typeof(payload), length(payload #>> '{}') FROM telemetry ORDER BY ctid")
    assert rows == [("string", len(large) - 2), ("null", None), ("string", 1 << 20)]


# ---- a database that refuses ----

def test_a_wrong_password_is_named_held_and_heals(make_lane, database, role):
    lane = make_lane(database.server.dsn(database.name, role) + " password=wrong")
    text = held(lane, "28P01", "password authentication failed", role, "--database")
    assert "wrong" not in lane.log() and "wrong" not in text
    assert "\n" not in text and "LOCATION" not in text
    database.query(f"GRANT CREATE ON DATABASE {database.name} TO {role}")
    database.query(f"GRANT CREATE ON SCHEMA public TO {role}")
    database.query(f"ALTER ROLE {role} PASSWORD 'wrong'")
    assert_heals(lane, database)


def test_a_missing_password_is_named(make_lane, database, role):
    lane = make_lane(database.server.dsn(database.name, role), env={"PGPASSFILE": "/dev/null"})
    held(lane, "28P01", "no password supplied", role)


def test_a_role_that_does_not_exist_is_named(make_lane, database):
    held(make_lane(database.server.dsn(database.name, "nobody_at_all")), "28000", "nobody_at_all")


def test_a_database_that_does_not_exist_is_named_held_and_heals(make_lane, database):
    name = database.name + "_later"
    lane = make_lane(database.server.dsn(name))
    held(lane, "3D000", name, f'CREATE DATABASE "{name}"')
    with database.server.connect() as c:
        c.execute(f"CREATE DATABASE {name}")
    try:
        lane.wait_committed()
    finally:
        lane.clean_up()
        with database.server.connect() as c:
            c.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_table_without_the_columns_is_named_held_and_heals(make_lane, database):
    database.query("CREATE TABLE telemetry (time timestamptz, payload integer)")
    lane = make_lane()
    held(lane, "42703", "telemetry lacks columns", "topic (text)", "payload is integer and should be jsonb")
    database.query("ALTER TABLE telemetry ADD topic text, ALTER payload TYPE jsonb USING to_jsonb(payload)")
    assert_heals(lane, database)


def test_a_column_of_another_type_is_named_held_and_heals(make_lane, database):
    database.query("CREATE TABLE telemetry (time text, topic text, payload jsonb)")
    lane = make_lane()
    held(lane, "42804", "time is text and should be timestamp with time zone", "ALTER TABLE")
    database.query("ALTER TABLE telemetry ALTER time TYPE timestamptz USING time::timestamptz")
    assert_heals(lane, database)


def test_a_further_column_that_wants_a_value_is_named_held_and_heals(make_lane, database):
    database.query(f"CREATE TABLE telemetry ({TABLE}, site text NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY,"
                   " at timestamptz NOT NULL DEFAULT now())")
    lane = make_lane()
    held(lane, "42P16", "NOT NULL", "site;")
    database.query("ALTER TABLE telemetry ALTER site SET DEFAULT 'here'")
    assert_heals(lane, database)


def test_a_view_is_named_held_and_heals(make_lane, database):
    database.query("CREATE VIEW telemetry AS SELECT now() AS time, ''::text AS topic, '{}'::jsonb AS payload")
    lane = make_lane()
    held(lane, "42809", "telemetry is a view; ingestd writes into tables")
    database.query("DROP VIEW telemetry")
    assert_heals(lane, database)


def test_an_unlogged_table_is_refused_and_heals(make_lane, database):
    database.query(f"CREATE UNLOGGED TABLE telemetry ({TABLE})")
    lane = make_lane()
    held(lane, "42P16", "UNLOGGED", "ALTER TABLE telemetry SET LOGGED")
    database.query("ALTER TABLE telemetry SET LOGGED")
    assert_heals(lane, database)


def test_a_missing_schema_is_named_held_and_heals(make_lane, database):
    lane = make_lane(table="plant.Line \"1\"")
    held(lane, "3F000", 'CREATE SCHEMA "plant"')
    database.query("CREATE SCHEMA plant")
    assert_heals(lane, database, 'plant."Line ""1"""')


def test_a_missing_privilege_is_named_held_and_heals(make_lane, database, role):
    database.query(f"CREATE TABLE telemetry ({TABLE})")
    other = make_lane(table="elsewhere")
    other.wait_ready()
    database.query(f"GRANT USAGE ON SCHEMA ingestd TO {role}")
    database.query(f"GRANT INSERT ON ingestd.dead_letter TO {role}")
    lane = make_lane(database.server.dsn(database.name, role) + " password='right horse'")
    held(lane, "42501", "telemetry", f'GRANT INSERT ON telemetry TO "{role}"')
    database.query(f"GRANT INSERT ON telemetry TO {role}")
    grant = f'GRANT INSERT, SELECT, UPDATE, DELETE ON ingestd.progress TO "{role}"'
    assert grant in lane.wait_trouble(lambda m: "ingestd.progress" in m[2])[2]
    database.query(grant)
    assert_heals(lane, database)


def test_a_dead_letter_table_of_another_shape_is_named(make_lane, database):
    database.query("CREATE SCHEMA ingestd")
    database.query("CREATE TABLE ingestd.dead_letter (topic text)")
    held(make_lane(), "42703", "ingestd.dead_letter lacks columns", "payload (bytea)")


def test_an_encoding_other_than_utf8_is_named(make_lane, database):
    name = database.name + "_ascii"
    with database.server.connect() as c:
        c.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    lane = make_lane(database.server.dsn(name))
    try:
        held(lane, "0A000", "SQL_ASCII", "UTF8")
    finally:
        lane.clean_up()
        with database.server.connect() as c:
            c.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_table_that_changes_under_a_running_writer_is_named_held_and_heals(lane, database):
    lane.publish(b"1")
    lane.wait_committed()
    database.query("ALTER TABLE telemetry RENAME topic TO subject")
    lane.publish(b"2")
    assert CLASSES[lane.wait_trouble(lambda m: m[1] == "42703")[0]] == "configuration"
    ready = len(lane.said(READY))
    database.query("ALTER TABLE telemetry RENAME subject TO topic")
    lane.wait_committed()
    assert database.count() == 2
    assert len(lane.said(READY)) == ready, "it must not call itself ready while a batch is refused"


def test_a_row_that_a_constraint_refuses_holds_nothing_up_and_is_never_dropped(lane, database):
    database.query("ALTER TABLE telemetry ADD CONSTRAINT small CHECK (payload <> '13')")
    lane.publish(b"13")
    lane.wait_committed()
    lane.publish(b"14")
    lane.wait_committed()
    assert database.query("SELECT payload FROM telemetry") == [(14,)]
    assert database.query("SELECT payload FROM ingestd.dead_letter") == [(b"13",)]
    assert [m[1:3] for m in lane.said(COMMITTED)] == [[0, 1], [1, 0]]


def test_trouble_is_repeated_once_a_second_while_it_lasts(make_lane):
    lane = make_lane("host=127.0.0.1 port=1")
    wait_until(lambda: len(lane.said(TROUBLE)) >= 4, what="four TROUBLE messages")
    times = [at for at, m in lane.messages if m[0] == TROUBLE]
    assert all(0.9 < b - a < 2 * PATIENCE for a, b in zip(times, times[1:]))
    assert lane.said(TROUBLE)[0][:2] == [0, ""] and "Connection refused" in lane.said(TROUBLE)[0][2]


def test_a_transaction_that_has_to_wait_is_told_as_well(lane, database):
    with database.connect() as other, other.transaction():
        other.execute("LOCK TABLE telemetry")
        lane.publish(b"1")
        kind, state, text = lane.wait_trouble(lambda m: m[2])
        assert (kind, state) == (0, "") and text.startswith("waiting for the database for ")
        assert not lane.said(COMMITTED)
    lane.wait_committed()


def test_a_server_that_swallows_packets_is_given_up_after_its_timeout(make_lane):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        # The queue of a listening socket that nobody accepts from takes one; the next are swallowed.
        with socket.create_connection(("127.0.0.1", port)):
            lane = make_lane(f"host=127.0.0.1 port={port} connect_timeout=2")
            lane.wait_trouble(lambda m: "no answer within 2 s" in m[2])


# ---- a connection that is lost ----

def terminate_sessions(database):
    with database.server.connect() as c:
        return c.execute("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s"
                         " AND application_name = 'ingestd'", (database.name,)).fetchone()[0]


def test_an_idle_connection_that_is_ended_is_noticed_and_made_again(lane, database):
    assert terminate_sessions(database) == 1
    assert lane.wait_trouble()[:2] == [0, "57P01"]
    wait_until(lambda: len(lane.said(READY)) == 2, what="a second READY")
    lane.publish(b"1")
    lane.wait_committed()


def test_a_batch_whose_connection_is_ended_is_sent_again(lane, database):
    with database.connect() as other, other.transaction():
        other.execute("LOCK TABLE telemetry")
        for n in range(300):
            lane.publish(b"%d" % n)
        wait_until(lambda: any(s[2] == "active" for s in database.sessions()), what="a transaction in flight")
        assert terminate_sessions(database) == 1
        lane.wait_trouble(lambda m: m[1] == "57P01")
    lane.wait_committed()
    assert database.value("SELECT count(DISTINCT payload) FROM telemetry") == 300


@pytest.mark.slow
def test_connections_ended_again_and_again_lose_nothing(lane, database):
    total = 20_000
    for n in range(total):
        lane.publish(b"%d" % n)
        if n % 2000 == 1999:
            terminate_sessions(database)
    lane.wait_committed(timeout=60)
    assert database.value("SELECT count(DISTINCT payload) FROM telemetry") == total


def test_an_end_without_the_database_is_given_up_after_the_flush_timeout(make_lane, database):
    lane = make_lane(flush_timeout=2_000_000)
    lane.wait_ready()
    with database.connect() as other, other.transaction():
        other.execute("LOCK TABLE telemetry")
        for n in range(300):
            lane.publish(b"%d" % n)
        lane.end_of_file()
        assert lane.wait_exit() == TEMPORARY_FAILURE
    assert lane.events("records_left")[0]["records"] == "300"
    assert not lane.said(DRAINED)


def test_a_writer_that_is_full_notices_the_end_of_its_supervisor(make_lane):
    lane = make_lane("host=127.0.0.1 port=1", flush_timeout=1_000_000, batch_size=10)
    lane.wait_trouble()
    # More than two batches, and few enough for the socket to take: nobody reads them.
    for n in range(100):
        lane.publish(b"%d" % n)
    lane.end_of_file()
    assert lane.wait_exit() == TEMPORARY_FAILURE
    assert lane.events("records_left")[0]["records"] == "20"


def test_memory_is_bounded_by_two_batches_while_the_database_is_away(make_lane):
    lane = make_lane("host=127.0.0.1 port=1")
    lane.wait_trouble()
    one = record(1, payload=b'"' + b"x" * 10_000 + b'"')
    lane.socket.setblocking(False)
    sent, goal = 0, 64 << 20
    while sent < goal:
        try:
            sent += lane.socket.send(one * 20)
        except BlockingIOError:
            break
    # It has stopped reading: what was sent is in two batches and the sockets' own buffers.
    assert sent < 8 << 20
    assert memory_of(lane.pid) < (24 << 20) * PATIENCE * PATIENCE


# ---- what it makes ----

def test_it_makes_the_tables_once_though_two_start_together(make_lane, database):
    lanes = [make_lane(lane=n) for n in range(4)]
    for lane in lanes:
        lane.wait_ready()
    created = [e["table"] for lane in lanes for e in lane.events("table_created")]
    assert sorted(created) == ["ingestd.dead_letter", "ingestd.progress", "telemetry"]
    columns = database.query("SELECT column_name, data_type, is_nullable FROM information_schema.columns"
                             " WHERE table_name = 'telemetry' ORDER BY ordinal_position")
    assert columns == [("time", "timestamp with time zone", "NO"), ("topic", "text", "NO"), ("payload", "jsonb", "NO")]


def test_a_table_that_is_there_is_left_as_it_is(make_lane, database):
    database.query("CREATE TABLE telemetry (time timestamp, topic varchar(99), payload json, more text)")
    lane = make_lane()
    lane.publish(b'{"a": 1}')
    lane.wait_committed()
    assert [e["table"] for e in lane.events("table_created")] == ["ingestd.dead_letter", "ingestd.progress"]
    assert database.query("SELECT topic, payload::text, more FROM telemetry") == [("t/1", '{"a": 1}', None)]


def test_commits_are_synchronous_whatever_the_server_says(make_lane, database):
    database.query(f"ALTER DATABASE {database.name} SET synchronous_commit = off")
    database.query(f"CREATE TABLE telemetry ({TABLE}, sync text DEFAULT current_setting('synchronous_commit'))")
    lane = make_lane()
    lane.publish(b"1")
    lane.wait_committed()
    assert database.query("SELECT sync FROM telemetry") == [("on",)]
    assert lane.events("synchronous_commit_set")[0]["was"] == "off"


def test_a_wait_for_a_standby_that_is_cancelled_is_no_commit(lane, database):
    """The server then has the rows but says COMMIT with a warning only: not durable, sent again."""
    with database.server.connect() as c:
        c.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        c.execute("SELECT pg_reload_conf()")
        try:
            sql = ("SELECT pid FROM pg_stat_activity WHERE application_name = 'ingestd' AND wait_event = 'SyncRep'"
                   " AND datname = %s")

            def waiting():
                # The checkpointer makes the setting known to all, when it comes to it.
                lane.publish(b"1")
                return c.execute(sql, (database.name,)).fetchone()

            pid = wait_until(waiting, what="a wait for the standby", interval=0.1)[0]
            c.execute("SELECT pg_cancel_backend(%s)", (pid,))
            lane.wait_trouble(lambda m: "standby" in m[2])
            assert all(m[0] < lane.seq for m in lane.said(COMMITTED))
        finally:
            c.execute("ALTER SYSTEM RESET synchronous_standby_names")
            c.execute("SELECT pg_reload_conf()")
    lane.wait_committed()


def test_a_trigger_that_raises_is_told_with_its_own_words(lane, database):
    database.query("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                   " $$BEGIN RAISE EXCEPTION 'not on a Sunday'; END$$")
    database.query("CREATE TRIGGER refuse BEFORE INSERT ON telemetry FOR EACH ROW EXECUTE FUNCTION refuse()")
    lane.publish(b"1")
    lane.wait_committed()
    assert database.query("SELECT sqlstate, detail FROM ingestd.dead_letter") == [("P0001", "not on a Sunday")]


def test_a_condemned_record_becomes_a_dead_letter_without_a_look_at_it(lane, database):
    lane.send(message(CONDEMN, 2, "crashed its writer"))
    for n in range(4):
        lane.publish(b'{"n": %d}' % n)
    lane.wait_committed()
    assert database.query("SELECT payload FROM telemetry ORDER BY ctid") == [({"n": n},) for n in (0, 2, 3)]
    assert database.query("SELECT payload, reason, sqlstate FROM ingestd.dead_letter") == [
        (b'{"n": 1}', "crashed its writer", None)]
    assert sum(m[2] for m in lane.said(COMMITTED)) == 1
