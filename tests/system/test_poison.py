"""Rows that the database refuses: each is found and put aside, in one transaction with the good ones."""
import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from lane import COMMITTED, READY, TROUBLE, Lane, record
from postgres import Database, Server
from processes import PATIENCE, run, wait_until
from publisher import numbered, publish

TRANSIENT, CONFIGURATION, DATA = 0, 1, 2
MAKE_NUMBER = "ALTER TABLE telemetry ADD number integer GENERATED ALWAYS AS ((payload->>'n')::integer) STORED"
SMALL = "ALTER TABLE telemetry ADD CONSTRAINT small CHECK ((payload->>'n')::integer < 1000000)"
BAD = b'{"n": 1000000}'


def trigger(body, when="BEFORE INSERT"):
    return [f"CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$",
            f"CREATE TRIGGER poison {when} ON telemetry FOR EACH ROW EXECUTE FUNCTION poison()"]


def partitioned():
    return ["ALTER TABLE telemetry RENAME TO whole",
            "CREATE TABLE telemetry (LIKE whole INCLUDING IDENTITY) PARTITION BY RANGE (time)",
            "CREATE TABLE now PARTITION OF telemetry FOR VALUES FROM ('2020-01-01') TO ('2030-01-01')"]


# name: (what is made of the table, a record of that kind, the SQLSTATE). Where there is none, no jsonb can hold it
# and the writer knows.
KINDS = {
    "type": ([MAKE_NUMBER], {"payload": b'{"n": "twelve"}'}, "22P02"),
    "range": ([MAKE_NUMBER], {"payload": b'{"n": 99999999999}'}, "22003"),
    "not null": ([MAKE_NUMBER, "ALTER TABLE telemetry ALTER number SET NOT NULL"], {"payload": b'{"m": 1}'}, "23502"),
    "check": ([SMALL], {"payload": BAD}, "23514"),
    "unique": (["CREATE UNIQUE INDEX once ON telemetry ((payload->>'n'))"], {"payload": b'{"n": 1}'}, "23505"),
    "foreign key": ([MAKE_NUMBER, "CREATE TABLE known AS SELECT generate_series(-1, 999) AS n",
                     "ALTER TABLE known ADD PRIMARY KEY (n)",
                     "ALTER TABLE telemetry ADD FOREIGN KEY (number) REFERENCES known"], {"payload": BAD}, "23503"),
    "too long": (["ALTER TABLE telemetry ALTER topic TYPE varchar(20)"], {"topic": "t/" + "x" * 50}, "22001"),
    "too long for an index": (["CREATE INDEX ON telemetry ((payload::text))"],
                              {"payload": b'"%s"' % random.Random(1).randbytes(6000).hex().encode()}, "54000"),
    "\\u0000": ([], {"payload": b'{"a": "\\u0000"}'}, None),
    "depth": ([], {"payload": b"[" * 600 + b"]" * 600}, None),
    "hostile time": (partitioned(), {"time_us": 250_000_000_000_000_000}, "23514"),
    "hostile timestamp": (trigger("PERFORM (NEW.payload->>'at')::timestamptz;"), {"payload": b'{"at": "2024-13-45"}'},
                          "22008"),
    "a trigger that raises": (trigger("IF NEW.payload ? 'bad' THEN RAISE 'not this one'; END IF;"),
                              {"payload": b'{"bad": "caf\xc3\xa9"}'}, "P0001"),
    "a trigger that fails": (trigger("PERFORM 1 / (NEW.payload->>'n')::integer;"), {"payload": b'{"n": 0}'}, "22012"),
    "deferred unique": ([MAKE_NUMBER, "ALTER TABLE telemetry ADD UNIQUE (number) DEFERRABLE INITIALLY DEFERRED"],
                        {"payload": b'{"n": 1}'}, "23505"),
    "deferred trigger": ([f.replace("TRIGGER poison AFTER", "CONSTRAINT TRIGGER poison AFTER").replace(
        "telemetry FOR", "telemetry DEFERRABLE INITIALLY DEFERRED FOR") for f in trigger(
        "IF NEW.payload ? 'bad' THEN RAISE 'not this one'; END IF;", "AFTER INSERT")], {"payload": b'{"bad": 1}'},
        "P0001"),
}


@pytest.fixture
def make_lane(database):
    database.create_numbered_table()
    made = []

    def make(**options):
        made.append(Lane(options.pop("dsn", database.dsn), **options))
        return made[-1]

    yield make
    for lane in made:
        lane.clean_up()


def one_batch(lane, database, records):
    """Sends the records so that they are one batch, or as few as --batch-size allows: a dict of fields each."""
    with database.connect() as holder:
        holder.autocommit = False
        # Its own transaction waits for the first record's until all others are read.
        holder.execute("LOCK TABLE telemetry IN ACCESS EXCLUSIVE MODE")
        lane.publish(b'{"n": -1}')
        database.wait_for_waiter(holder)
        blob = b""
        for fields in records:
            lane.seq += 1
            blob += record(lane.seq, **{"payload": b"{}", **fields})
        lane.send(blob)
        lane.wait_read()
        holder.rollback()


def good(n):
    return {"payload": b'{"n": %d}' % n}


def numbers(database):
    return [n for n, in database.query("SELECT (payload->>'n')::integer FROM telemetry ORDER BY id")]


def dead_letters(database):
    return database.query("SELECT topic, payload, reason, sqlstate, detail FROM ingestd.dead_letter ORDER BY id")


def statements(database, mark):
    """What the writers have sent since: a simple query each."""
    text = database.server.log()[mark:]
    return [line for line in text.splitlines() if "ingestd LOG:  statement: " in line]


def dead_letters_of_the_stream(database):
    return database.value("SELECT sum(dead_letters)::integer FROM ingestd.progress")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_row_becomes_a_dead_letter_and_its_neighbours_rows(make_lane, database, kind):
    make, fields, sqlstate = KINDS[kind]
    for sql in make:
        database.query(sql)
    lane = make_lane(lane=3)
    lane.wait_ready()
    fields = {"topic": "t/1", "payload": b'{"n": 25}', "content_type": "a/b", "qos": 0, "retain": 1,
              "properties": [("k", "v")], **fields}
    one_batch(lane, database, [*map(good, range(1, 21)), fields, *map(good, range(21, 41))])
    lane.wait_committed()
    assert numbers(database) == [-1, *range(1, 41)]
    [(topic, payload, reason, state, detail)] = dead_letters(database)
    assert (topic, payload, state) == (fields["topic"], fields["payload"], sqlstate)
    if sqlstate is not None:
        assert reason.startswith("refused by the database") and detail
    assert database.query("SELECT qos, retain, lane, properties FROM ingestd.dead_letter") == [
        (0, True, 3, {"content-type": "a/b", "user": [["k", "v"]]})]
    assert sum(m[1] for m in lane.said(COMMITTED)) == 41 and sum(m[2] for m in lane.said(COMMITTED)) == 1
    assert dead_letters_of_the_stream(database) == 1
    [line] = lane.events("dead_lettered")
    assert (line["topic"], line.get("sqlstate"), line["seq"]) == (fields["topic"], sqlstate, "22")
    assert not [m for m in lane.said(TROUBLE) if m[2]]


def test_the_detail_is_the_server_s_and_the_reason_names_the_constraint(make_lane, database):
    database.query(SMALL.replace("small", '"Größe, line 1"'))
    lane = make_lane()
    lane.publish(BAD)
    lane.wait_committed()
    [(_, _, reason, _, detail)] = dead_letters(database)
    assert reason == "refused by the database: constraint Größe, line 1"
    assert detail.startswith('new row for relation "telemetry" violates check constraint')
    assert "; Failing row contains (" in detail


@pytest.mark.parametrize("where", [0, 1, 250, 498, 499])
def test_one_bad_row_of_500_costs_a_handful_of_round_trips(make_lane, database, where):
    database.query(SMALL)
    database.query(f"ALTER DATABASE {database.name} SET log_statement = 'all'")
    lane = make_lane()
    lane.wait_ready()
    mark = len(database.server.log())
    one_batch(lane, database, [{"payload": BAD} if n == where else good(n) for n in range(500)])
    lane.wait_committed()
    assert numbers(database) == [-1, *(n for n in range(500) if n != where)]
    # The first record's, and the one that was refused; the others are what it has cost.
    assert 1 <= len(statements(database, mark)) - 2 <= 4


def test_one_bad_row_of_500_that_no_line_is_named_of_is_found_by_bisection(make_lane, database):
    make, fields, _ = KINDS["foreign key"]
    for sql in make:
        database.query(sql)
    database.query(f"ALTER DATABASE {database.name} SET log_statement = 'all'")
    lane = make_lane()
    lane.wait_ready()
    mark = len(database.server.log())
    one_batch(lane, database, [fields if n == 333 else good(n) for n in range(500)])
    lane.wait_committed()
    assert numbers(database) == [-1, *(n for n in range(500) if n != 333)]
    assert 4 < len(statements(database, mark)) - 2 <= 24


def test_500_bad_rows_of_500_cost_no_more_than_one_by_one(make_lane, database):
    database.query(SMALL)
    database.query(f"ALTER DATABASE {database.name} SET log_statement = 'all'")
    lane = make_lane(log_level=2)
    lane.wait_ready()
    mark = len(database.server.log())
    one_batch(lane, database, [{"payload": BAD}] * 500)
    lane.wait_committed()
    assert numbers(database) == [-1] and len(dead_letters(database)) == 500
    # The refused batch, one attempt a row, and the end.
    assert 500 <= len(statements(database, mark)) - 1 <= 502
    assert dead_letters_of_the_stream(database) == 500
    # A flood gets a few lines, and their number.
    assert len(lane.events("dead_lettered")) == 5
    lane.end_of_file()
    assert lane.wait_exit() == 0
    assert sum(int(e["count"]) for e in lane.events("dead_letters_not_logged")) == 495


@pytest.mark.parametrize("share", [1, 20, 60])
def test_good_rows_keep_their_order_and_bad_ones_theirs(make_lane, database, share):
    database.query(SMALL)
    dice = random.Random(share)
    lane = make_lane(batch_size=200, log_level=3, dead_letter_share=100)
    lane.wait_ready()
    sent = [(n, dice.randrange(100) < share, dice.randrange(10) == 0) for n in range(2000)]
    one_batch(lane, database, [{"topic": f"t/{n % 7}", "payload": b'{"i": %d, "n": %s' % (
        n, (b"1000000" if bad else b"1") + (b"" if broken else b"}"))} for n, bad, broken in sent])
    lane.wait_committed(timeout=60)
    stored = [i for i, in database.query("SELECT (payload->>'i')::integer FROM telemetry WHERE payload ? 'i'"
                                         " ORDER BY id")]
    assert stored == [n for n, bad, broken in sent if not bad and not broken]
    put = database.query("SELECT substring(convert_from(payload, 'UTF8') from '[0-9]+')::integer, sqlstate IS NULL"
                         " FROM ingestd.dead_letter ORDER BY id")
    assert [n for n, broken in put if broken] == [n for n, _, broken in sent if broken]
    assert [n for n, broken in put if not broken] == [n for n, bad, broken in sent if bad and not broken]
    assert dead_letters_of_the_stream(database) == len(put)
    assert sum(m[1] for m in lane.said(COMMITTED)) == len(stored) + 1
    assert sum(m[2] for m in lane.said(COMMITTED)) == len(put)


def test_of_two_rows_that_exclude_each_other_the_first_is_kept(make_lane, database):
    database.query("CREATE UNIQUE INDEX once ON telemetry (topic, (payload->>'n'))")
    lane = make_lane()
    lane.wait_ready()
    one_batch(lane, database, [good(n) for n in (1, 2, 1, 3, 3, 2, 4)])
    lane.wait_committed()
    assert numbers(database) == [-1, 1, 2, 3, 4]
    assert [payload for _, payload, *_ in dead_letters(database)] == [b'{"n": 1}', b'{"n": 3}', b'{"n": 2}']


# ---- one transaction ----

def isolate_up_to_the_dead_letters(lane, database, holder):
    """The bad row is found, the good ones are in, and the transaction waits for the table of dead letters."""
    holder.execute("LOCK TABLE ingestd.dead_letter IN ACCESS EXCLUSIVE MODE")
    lane.send(b"".join(record(n, payload=BAD if n == 7 else b'{"n": %d}' % n) for n in range(1, 21)))
    lane.seq = 20
    database.wait_for_waiter(holder)


def test_a_writer_killed_between_rows_and_dead_letters_has_stored_neither(make_lane, database):
    database.query(SMALL)
    lane = make_lane()
    lane.wait_ready()
    with database.connect() as holder:
        holder.autocommit = False
        isolate_up_to_the_dead_letters(lane, database, holder)
        assert database.count() == 0
        os.kill(lane.pid, signal.SIGKILL)
        lane.wait_exit()
        holder.rollback()
    second = make_lane(stream=lane.stream)
    assert second.wait_ready()[2] in (0, 20)
    second.send(b"".join(record(n, payload=BAD if n == 7 else b'{"n": %d}' % n) for n in range(1, 21)
                         if second.said(READY)[0][2] == 0))
    second.seq = 20
    if second.said(READY)[0][2] == 0:
        second.wait_committed()
    assert numbers(database) == [n for n in range(1, 21) if n != 7]
    assert len(dead_letters(database)) == 1 and dead_letters_of_the_stream(database) == 1


def test_a_connection_lost_in_the_middle_is_no_fault_of_a_row(make_lane, database):
    database.query(SMALL)
    lane = make_lane()
    lane.wait_ready()
    with database.connect() as holder:
        holder.autocommit = False
        isolate_up_to_the_dead_letters(lane, database, holder)
        with database.server.connect() as c:
            c.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
                      " AND application_name = 'ingestd'", (database.name,))
        assert lane.wait_trouble(lambda m: m[2])[0] == TRANSIENT
        assert database.count() == 0
        holder.rollback()
    lane.wait_committed()
    assert numbers(database) == [n for n in range(1, 21) if n != 7]
    assert len(dead_letters(database)) == 1 and dead_letters_of_the_stream(database) == 1
    assert sum(m[2] for m in lane.said(COMMITTED)) == 1


@pytest.mark.parametrize("sqlstate", ["40001", "53100", "57014", "55P03", "XX000"])
def test_what_waiting_may_mend_makes_no_dead_letter(make_lane, database, sqlstate):
    # A row that is bad, and another of which the database says something else.
    raises = f"IF NEW.payload ? 'later' THEN RAISE 'not now' USING ERRCODE = '{sqlstate}'; END IF;"
    for sql in [SMALL, *trigger(raises)]:
        database.query(sql)
    lane = make_lane()
    lane.wait_ready()
    one_batch(lane, database, [good(1), {"payload": BAD}, good(2), {"payload": b'{"n": 3, "later": 1}'}, good(4)])
    assert lane.wait_trouble(lambda m: m[1] == sqlstate)[0] == TRANSIENT
    assert dead_letters(database) == [] and numbers(database) == [-1]
    database.query("DROP TRIGGER poison ON telemetry")
    lane.wait_committed()
    assert numbers(database) == [-1, 1, 2, 3, 4] and len(dead_letters(database)) == 1


# ---- a table of dead letters that takes none ----

def held_for_dead_letters(lane, database, sqlstate):
    """One record, whose row is refused; and its dead letter as well."""
    lane.publish(b'{"n": 1}')
    lane.wait_committed()
    one_batch(lane, database, [good(2), {"payload": BAD}, good(3)])
    kind, state, text = lane.wait_trouble(lambda m: m[1] == sqlstate)
    assert kind == CONFIGURATION and "dead_letter" in text
    # The first record's batch and no other; and tried again slowly.
    assert numbers(database) == [1, -1] and database.count("ingestd.dead_letter") == 0


def healed_for_dead_letters(lane, database):
    lane.wait_committed()
    assert numbers(database) == [1, -1, 2, 3]
    assert [payload for _, payload, *_ in dead_letters(database)] == [BAD]
    assert dead_letters_of_the_stream(database) == 1


@pytest.mark.parametrize("make, mend, sqlstate", [
    ("ALTER TABLE ingestd.dead_letter ADD CONSTRAINT never CHECK (false)",
     "ALTER TABLE ingestd.dead_letter DROP CONSTRAINT never", "23514"),
    ("ALTER TABLE ingestd.dead_letter ALTER detail TYPE varchar(3)",
     "ALTER TABLE ingestd.dead_letter ALTER detail TYPE text", "22001"),
    ("ALTER TABLE ingestd.dead_letter DROP detail", "ALTER TABLE ingestd.dead_letter ADD detail text", "42703"),
], ids=["a constraint", "a column too short", "a column dropped"])
def test_a_table_of_dead_letters_that_refuses_holds_the_batch_and_heals(make_lane, database, make, mend, sqlstate):
    database.query(SMALL)
    lane = make_lane()
    lane.wait_ready()
    database.query(make)
    held_for_dead_letters(lane, database, sqlstate)
    database.query(mend)
    healed_for_dead_letters(lane, database)


def test_a_payload_that_is_no_json_and_refused_there_holds_the_batch_as_well(make_lane, database):
    lane = make_lane()
    lane.wait_ready()
    database.query("ALTER TABLE ingestd.dead_letter ADD CONSTRAINT never CHECK (false)")
    one_batch(lane, database, [good(1), {"payload": b"{"}, good(2)])
    kind, _, text = lane.wait_trouble(lambda m: m[1] == "23514")
    assert kind == CONFIGURATION and "ingestd.dead_letter" in text
    assert numbers(database) == [-1]
    database.query("ALTER TABLE ingestd.dead_letter DROP CONSTRAINT never")
    lane.wait_committed()
    assert numbers(database) == [-1, 1, 2] and len(dead_letters(database)) == 1


def test_dead_letters_without_the_privilege_hold_the_batch_and_heal(make_lane, database):
    role = f"meter_{database.name}"
    database.query(f"CREATE ROLE {role} LOGIN")
    try:
        database.query(f"GRANT INSERT ON telemetry TO {role}")
        database.query(SMALL)
        make_lane(stream="00000000-0000-0000-0000-00000000000a").wait_ready()
        database.query(f"GRANT USAGE ON SCHEMA ingestd TO {role}")
        database.query(f"GRANT INSERT ON ingestd.dead_letter TO {role}")
        database.query(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ingestd.progress TO {role}")
        lane = make_lane(dsn=database.server.dsn(database.name, role))
        lane.wait_ready()
        database.query(f"REVOKE INSERT ON ingestd.dead_letter FROM {role}")
        held_for_dead_letters(lane, database, "42501")
        database.query(f"GRANT INSERT ON ingestd.dead_letter TO {role}")
        healed_for_dead_letters(lane, database)
        lane.clean_up()
    finally:
        database.query(f"DROP OWNED BY {role}")
        database.query(f"DROP ROLE {role}")


def test_a_commit_that_is_refused_though_every_row_was_taken_is_held_and_not_tried_hotly(make_lane, database):
    # It defers itself again, whatever the writer has set.
    for sql in [*KINDS["deferred trigger"][0],
                "CREATE FUNCTION defer() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN SET CONSTRAINTS ALL DEFERRED; RETURN NEW; END $$",
                "CREATE TRIGGER defer BEFORE INSERT ON telemetry FOR EACH ROW EXECUTE FUNCTION defer()",
                f"ALTER DATABASE {database.name} SET log_statement = 'all'"]:
        database.query(sql)
    lane = make_lane()
    lane.wait_ready()
    mark = len(database.server.log())
    one_batch(lane, database, [good(1), {"payload": b'{"n": 2, "bad": 1}'}, good(3)])
    kind, _, text = lane.wait_trouble(lambda m: m[1] == "P0001")
    assert kind == DATA and "COMMIT" in text
    wait_until(lambda: len(lane.said(TROUBLE)) >= 3, what="two seconds of trouble")
    assert len(statements(database, mark)) < 30 * PATIENCE
    assert numbers(database) == [-1] and dead_letters(database) == []
    database.query("DROP TRIGGER defer ON telemetry")
    lane.wait_committed()
    assert numbers(database) == [-1, 1, 3] and len(dead_letters(database)) == 1


# ---- a broken schema, not broken data ----

def test_when_most_rows_of_a_minute_are_refused_they_are_held_and_it_heals(make_lane, database):
    database.query("ALTER TABLE telemetry ADD CONSTRAINT never CHECK ((payload->>'n')::integer < 0)")
    lane = make_lane(log_level=3)
    lane.wait_ready()
    one_batch(lane, database, map(good, range(2000)))
    kind, _, text = lane.wait_trouble(lambda m: m[1] == "IG002", timeout=30)
    assert kind == CONFIGURATION
    assert text.startswith("more than 50 % of the last 1000 rows are refused") and "never" in text
    assert "--dead-letter-share" in text
    # One batch less than the thousand that it takes to judge, and none more however long it lasts.
    assert (len(dead_letters(database)), numbers(database)) == (500, [-1])
    wait_until(lambda: len([m for m in lane.said(TROUBLE) if m[1] == "IG002"]) >= 7, 30, "it was tried once more")
    assert (len(dead_letters(database)), numbers(database)) == (500, [-1])
    database.query("ALTER TABLE telemetry DROP CONSTRAINT never")
    lane.wait_committed()
    assert numbers(database) == [-1, *range(500, 2000)] and len(dead_letters(database)) == 500


def test_payloads_that_are_no_json_do_not_count_for_it(make_lane, database):
    lane = make_lane(log_level=3)
    lane.wait_ready()
    one_batch(lane, database, [{"payload": b"{"}] * 2000)
    lane.wait_committed()
    assert len(dead_letters(database)) == 2000


@pytest.mark.parametrize("share, refused, held", [(10, 9, False), (10, 11, True), (100, 100, False)])
def test_the_share_is_the_user_s(make_lane, database, share, refused, held):
    database.query(SMALL)
    lane = make_lane(log_level=3, dead_letter_share=share)
    lane.wait_ready()
    one_batch(lane, database, [{"payload": BAD} if n % 100 < refused else good(n) for n in range(1499)])
    if held:
        lane.wait_trouble(lambda m: m[1] == "IG002")
        assert not [m for m in lane.said(COMMITTED) if m[0] == lane.seq]
    else:
        lane.wait_committed()
        assert not [m for m in lane.said(TROUBLE) if m[1] == "IG002"]


# ---- the whole service ----

@pytest.mark.slow
def test_with_poison_among_them_every_message_is_stored_or_put_aside_and_acknowledged(broker, database, ingestd):
    database.create_numbered_table()
    database.query(SMALL)
    daemon = ingestd().wait_ready()
    bad = {n for n in range(20000) if n % 97 == 0}
    publish(broker, ((topic, payload if n not in bad else '{"i": %d, "n": 1000000}' % n)
                     for n, (topic, payload) in enumerate(numbered(20000, topics=11))))
    wait_until(lambda: database.count() + database.count("ingestd.dead_letter") >= 20000, 60, "all is somewhere", 0.1)
    found = [n for n, in database.query("SELECT (payload->>'n')::integer FROM telemetry")]
    put = [n for n, in database.query("SELECT substring(convert_from(payload, 'UTF8') from '[0-9]+')::integer"
                                      " FROM ingestd.dead_letter WHERE sqlstate = '23514'")]
    assert sorted(found) == [n for n in range(20000) if n not in bad] and sorted(put) == sorted(bad)
    assert database.query("SELECT topic FROM (SELECT topic, (payload->>'n')::integer n, lag((payload->>'n')::integer)"
                          " OVER (PARTITION BY topic ORDER BY id) before FROM telemetry) o WHERE n < before") == []
    assert daemon.events("database_configuration") == []
    assert daemon.stop() == 0
    totals = daemon.totals()
    assert (totals["received"], totals["committed"], totals["dead_lettered"], totals["unacknowledged"]) == (
        20000, 20000 - len(bad), len(bad), 0)
    assert daemon.events("dead_lettered", sqlstate="23514")


@pytest.fixture
def german_database(monkeypatch):
    """On a server of its own, which finds a locale that was made for it and no other."""
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/de_DE").exists():
        pytest.skip("no sources of a German locale")
    with tempfile.TemporaryDirectory(prefix="ingestd-locale-") as home:
        os.chmod(home, 0o755)
        run("localedef", "-i", "de_DE", "-f", "UTF-8", f"{home}/de_DE.UTF-8")
        os.symlink("/usr/lib/locale/C.utf8", f"{home}/C.utf8")
        monkeypatch.setenv("LOCPATH", home)
        server = Server()
        database = Database(server)
        database.query(f"ALTER DATABASE {database.name} SET lc_messages = 'de_DE.UTF-8'")
        yield database
        database.drop()
        server.destroy()


def test_the_line_is_found_whatever_language_the_server_speaks(german_database):
    database = german_database
    database.create_numbered_table()
    database.query(SMALL)
    database.query(f"ALTER DATABASE {database.name} SET log_statement = 'all'")
    lane = Lane(database.dsn)
    try:
        lane.wait_ready()
        mark = len(database.server.log())
        one_batch(lane, database, [{"payload": BAD} if n == 333 else good(n) for n in range(500)])
        lane.wait_committed()
        assert numbers(database) == [-1, *(n for n in range(500) if n != 333)]
        [(*_, detail)] = dead_letters(database)
        if "verletzt" not in detail:
            pytest.skip("the server has no German messages")
        lines = [line for line in database.server.log()[mark:].splitlines() if "ingestd LOG:  " in line]
        assert 1 <= len(lines) - 2 <= 4
    finally:
        lane.clean_up()
