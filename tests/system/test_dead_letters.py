"""`ingestd dead-letters`: what is listed, stored again or thrown away, and that nothing is so twice or by mistake."""
import fcntl
import json
import os
import pty
import random
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from paho.mqtt.client import topic_matches_sub

from daemon import PROGRAM, options
from lane import Lane
from processes import PATIENCE, clean_environment, die_with_parent, is_running, read_proc, wait_until
from publisher import numbered, publish

DATA = Path(__file__).resolve().parents[1] / "data" / "payloads.jsonl"
T0 = "2026-11-22 17:03:01.123456+00"
DONE, STAYED, USAGE, TEMPORARY, CONFIGURATION = 0, 65, 64, 75, 78


class Command:
    """A run of the command. With terminal=True its standard input and error are a terminal of this test's."""

    def __init__(self, *words, terminal=False, env=None, stdin=subprocess.DEVNULL, width=100, **named):
        self.screen = b""
        self._master = slave = None
        if terminal:
            self._master, slave = pty.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        self.process = subprocess.Popen(
            [str(PROGRAM), "dead-letters", *map(str, words), *options(**named)],
            stdin=slave if terminal else stdin, stdout=subprocess.PIPE,
            stderr=slave if terminal else subprocess.PIPE, env=clean_environment(**(env or {})),
            preexec_fn=die_with_parent())
        if terminal:
            os.close(slave)

    def look(self, text=None, timeout=20):
        """Reads the terminal until it shows the text, or has closed."""
        deadline = time.monotonic() + timeout * PATIENCE
        while text is None or text.encode() not in self.screen:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"not on the terminal: {text!r}; it shows {self.screen!r}"
            try:
                data = os.read(self._master, 4096)
            except OSError:
                break
            if not data:
                break
            self.screen += data
        return self.screen.decode()

    def type(self, text):
        os.write(self._master, text.encode())

    def end(self, timeout=60):
        """(status, output, errors)"""
        if self._master is not None:
            self.look()
        out, err = self.process.communicate(timeout=timeout * PATIENCE)
        if self._master is not None:
            os.close(self._master)
            err = self.screen
        return self.process.returncode, out.decode(), err.decode()

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def letters(database):
    """Runs `ingestd dead-letters` on the test's database to its end: (status, output, errors)."""
    return lambda *words, **named: Command(*words, **{"database": database.dsn, **named}).end()


@pytest.fixture
def start(database):
    """Starts it; what still runs at the end of the test is killed."""
    started = []

    def run(*words, **named):
        started.append(Command(*words, **{"database": database.dsn, **named}))
        return started[-1]

    yield run
    for command in started:
        if command.process.poll() is None:
            command.kill()


@pytest.fixture
def tables(database):
    """The tables, as ingestd makes them."""
    lane = Lane(database.dsn)
    lane.wait_ready()
    lane.end_of_file()
    assert lane.wait_exit() == 0
    lane.clean_up()
    return database


def add(database, payload=b'{"a": 1}', topic="t/1", received=T0, reason="made by the test", **more):
    """One dead letter; returns its id."""
    columns = {"received": received, "topic": topic, "payload": payload, "qos": 1, "retain": False, "lane": 0,
               "reason": reason, **more}
    return database.value(f"INSERT INTO ingestd.dead_letter ({', '.join(columns)}) "
                          f"VALUES ({', '.join(['%s'] * len(columns))}) RETURNING id", *columns.values())


def add_many(database, n, start=0, topics=10):
    """n of them with the payloads {"n": i}, all good."""
    database.query("INSERT INTO ingestd.dead_letter (received, topic, payload, qos, retain, lane, reason) "
                   "SELECT %s::timestamptz + i * interval '1 second', 't/' || i %% %s, "
                   "convert_to(format('{\"n\": %%s}', i), 'UTF8'), 1, false, 0, 'made by the test' "
                   "FROM generate_series(%s::int, %s::int) i", T0, topics, start, start + n - 1)


def left(database):
    """The ids that are there."""
    return [row[0] for row in database.query("SELECT id FROM ingestd.dead_letter ORDER BY id")]


def numbers(database, table="telemetry"):
    return sorted(row[0] for row in database.query(f"SELECT (payload->>'n')::int FROM {table}"))


def letter_numbers(database):
    return sorted(row[0] for row in database.query(
        "SELECT (convert_from(payload, 'UTF8')::jsonb->>'n')::int FROM ingestd.dead_letter"))


# list


def test_list_counts_by_reason_and_topic_with_the_newest(tables, letters):
    for hour in (1, 3, 2):
        add(tables, topic="a/b", reason="no JSON", received=f"2026-11-22 0{hour}:00:00+00")
    last = add(tables, topic="a/c", reason="no JSON", received="2026-11-22 00:30:00+00")
    status, out, err = letters("list")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["COUNT", "NEWEST", "(UTC)", "LAST", "ID", "TOPIC", "REASON"]
    assert lines[1] == ["3", "2026-11-22", "03:00:00", str(last - 1), "a/b", "no", "JSON"]
    assert lines[2] == ["1", "2026-11-22", "00:30:00", str(last), "a/c", "no", "JSON"]
    assert out.splitlines()[3] == "4 dead letters, the oldest of 2026-11-22 00:30:00"


def test_list_as_json_holds_everything_uncut(tables, letters):
    long = "x" * 500
    add(tables, topic=long + "\n\x1b[31mö", reason="r" * 300)
    last = add(tables, topic=long + "\n\x1b[31mö", reason="r" * 300, received="2026-11-23 00:00:00.5+00")
    add(tables, topic="t", sqlstate="23514")
    status, out, err = letters("list", "--json")
    assert (status, err) == (0, "")
    said = json.loads(out)
    assert (said["total"], said["oldest"], said["newest"]) == (
        3, "2026-11-22T17:03:01.123456Z", "2026-11-23T00:00:00.500000Z")
    assert said["groups"][0] == {"count": 2, "newest": "2026-11-23T00:00:00.500000Z", "last_id": last,
                                 "topic": long + "\n\x1b[31mö", "reason": "r" * 300, "sqlstate": None}
    assert said["groups"][1]["sqlstate"] == "23514"


def test_list_of_nothing(tables, letters):
    assert letters("list") == (0, "no dead letters\n", "")
    assert json.loads(letters("list", "--json")[1]) == {"total": 0, "oldest": None, "newest": None, "groups": []}


def test_the_table_escapes_control_characters_and_keeps_to_its_columns(tables, letters):
    add(tables, topic="bell\x07 esc\x1b[2J csi\u009b31m nl\n turned\u202e", reason="tab\there\r")
    add(tables, topic="ö" * 100, reason="ä" * 200)
    status, out, _ = letters("list")
    assert status == 0
    assert re.fullmatch(r"[ -~ä-ö…\n]*", out), repr(out)
    lines = out.splitlines()
    assert len(lines) == 4
    assert "bell\\x07 esc\\x1b[2J csi\\u009b31m nl\\n" in out and "tab\\there\\r" in out
    assert "ö" * 39 + "…  " + "ä" * 79 + "…" in out
    assert lines[0].index("REASON") == lines[1].index("tab\\there") == lines[2].index("ä"), out


def test_list_takes_the_same_selection(tables, letters):
    add(tables, topic="a/b")
    chosen = add(tables, topic="a/c")
    for selection in (["--topic", "+/c"], ["--id", chosen]):
        groups = json.loads(letters("list", "--json", *selection)[1])["groups"]
        assert [g["last_id"] for g in groups] == [chosen]


# replay


def test_replay_stores_all_and_deletes_them(tables, letters):
    add_many(tables, 25)
    assert letters("replay") == (DONE, "replayed 25, stayed 0\n", "")
    assert left(tables) == [] and numbers(tables) == list(range(25))
    assert tables.value("SELECT time = %s::timestamptz + 7 * interval '1 second' AND topic = 't/7' FROM telemetry "
                        "WHERE payload->>'n' = '7'", T0)


def test_replay_of_nothing_is_well(tables, letters):
    assert letters("replay") == (DONE, "replayed 0, stayed 0\n", "")


@pytest.mark.parametrize("n", [1, 9, 10, 11, 20, 35])
def test_no_letter_falls_between_two_batches(tables, letters, n):
    add_many(tables, n)
    assert letters("replay", "--batch-size", 10)[:2] == (DONE, f"replayed {n}, stayed 0\n")
    assert numbers(tables) == list(range(n)) and left(tables) == []
    transactions = tables.value("SELECT count(DISTINCT xmin::text) FROM telemetry")
    assert transactions == -(-n // 10)


def test_large_letters_make_small_batches(tables, letters):
    for i in range(6):
        add(tables, payload=b'{"n": %d, "x": "%s"}' % (i, b"x" * 700_000))
    assert letters("replay")[:2] == (DONE, "replayed 6, stayed 0\n")
    assert numbers(tables) == list(range(6))
    assert tables.value("SELECT count(DISTINCT xmin::text) FROM telemetry") == 6


def test_replay_by_id_takes_exactly_these(tables, letters):
    ids = [add(tables, payload=b'{"n": %d}' % i) for i in range(6)]
    assert letters("replay", "--id", ids[4], "--id", ids[1], "--id", ids[1], "--id", 10**9)[:2] == (
        DONE, "replayed 2, stayed 0\n")
    assert numbers(tables) == [1, 4]
    assert left(tables) == [ids[0], *ids[2:4], ids[5]]


TOPICS = ["a", "a/", "/a", "a/b", "a/b/c", "a//c", "a/b/", "ab", "ab/c", "$SYS", "$SYS/a", "$a/b", "a/$SYS", "/", "//",
          "a.b", "a.c", "axb", "a\\b", "a*b", "(a|b)", "[ab]/b", "a b", "ä/b", "a/ö", "A/b", "a\nb/c", "a/b\n", "^a$",
          "a$", "a{2}", "aa", "x" * 3000 + "/b"]
FILTERS = ["#", "+", "+/+", "+/#", "/#", "/+", "a/#", "a/+", "a/+/c", "+/b", "+/b/#", "a", "a/b", "a.b", "$SYS/#",
           "$SYS/+", "$SYS", "+/a", "a\\b", "a*b", "(a|b)", "[ab]/b", "ä/+", "a/ö", "a//c", "//", "+//+", "^a$", "a$",
           "a{2}", "a b", "x" * 3000 + "/+", "a/+/#"]


def test_a_topic_filter_means_what_mqtt_says(tables, letters):
    """Against paho's own matching, for every filter and topic."""
    ids = {topic: add(tables, topic=topic) for topic in TOPICS}
    for one in FILTERS:
        groups = json.loads(letters("list", "--json", "--topic", one)[1])["groups"]
        expected = {t for t in TOPICS if topic_matches_sub(one, t)}
        assert {g["topic"] for g in groups} == expected, one
        assert {g["last_id"] for g in groups} == {ids[t] for t in expected}, one


def test_replay_by_topic_leaves_the_others(tables, letters):
    add(tables, topic="plant/1/state", payload=b'{"n": 1}')
    add(tables, topic="plant/2/state", payload=b'{"n": 2}')
    other = add(tables, topic="plant/2/alarm")
    assert letters("replay", "--topic", "plant/+/state")[:2] == (DONE, "replayed 2, stayed 0\n")
    assert numbers(tables) == [1, 2] and left(tables) == [other]


def test_a_shared_subscription_s_filter_is_what_stands_behind_its_group(tables, letters):
    add(tables, topic="a/b")
    other = add(tables, topic="b")
    assert letters("replay", "--topic", "$share/group/a/#")[0] == DONE
    assert left(tables) == [other]


@pytest.mark.parametrize("since", ["2026-11-22 17:00:00.000001+00", "2026-11-22T18:00:00.000001+01:00"])
def test_replay_since_a_time_takes_that_and_later_ones(tables, letters, since):
    before = add(tables, received="2026-11-22 17:00:00+00")
    add(tables, received="2026-11-22 17:00:00.000001+00", payload=b'{"n": 1}')
    add(tables, received="2026-11-22 17:00:01+00", payload=b'{"n": 2}')
    assert letters("replay", "--since", since)[:2] == (DONE, "replayed 2, stayed 0\n")
    assert left(tables) == [before] and numbers(tables) == [1, 2]


def test_since_without_a_zone_is_in_the_session_s_zone(tables, letters):
    add(tables, received="2026-11-22 16:30:00+00")
    kept = add(tables, received="2026-11-22 15:30:00+00")
    assert letters("replay", "--since", "2026-11-22 17:00", env={"PGTZ": "Europe/Berlin"})[0] == DONE
    assert left(tables) == [kept]


def test_replay_since_a_duration_counts_back_from_now(tables, letters):
    now = tables.value("SELECT now()")
    old = add(tables, received=now - timedelta(minutes=130))
    add(tables, received=now - timedelta(minutes=110))
    assert letters("replay", "--since", "2h")[:2] == (DONE, "replayed 1, stayed 0\n")
    assert left(tables) == [old]


def test_selections_add_up(tables, letters):
    ids = [add(tables, topic=t, received=f"2026-11-22 {h}:00:00+00") for t in "ab" for h in (10, 20)]
    assert letters("replay", "--topic", "a", "--since", "2026-11-22 15:00+00", "--id", ids[0], "--id", ids[1],
                   "--id", ids[3])[:2] == (DONE, "replayed 1, stayed 0\n")
    assert left(tables) == [ids[0], *ids[2:]]


def test_rows_are_what_ingestd_itself_stores_and_what_it_refuses_stays_with_its_reason(tables, letters):
    messages = []
    for line in DATA.read_text().splitlines():
        sample = json.loads(line)
        payload = bytes.fromhex(sample["payload_hex"]) if "payload_hex" in sample else sample["payload"].encode()
        messages.append((sample["topic"], payload))
    messages += [("t", p) for p in (b"", b"a\0b", b"\xff\xfe", b"21.10", b"a\tb\\N\n\\.", "21 °C".encode(),
                                    b'{"a": NaN}', b'{"a":"\\u0000"}', b"[" * 600 + b"]" * 600, b"1e400000")]
    lane = Lane(tables.dsn)
    lane.wait_ready()
    for i, (topic, payload) in enumerate(messages):
        lane.publish(payload, topic, time_us=1_700_000_000_000_000 + i)
    lane.wait_committed()
    lane.end_of_file()
    assert lane.wait_exit() == 0
    lane.clean_up()
    kept = "SELECT received, topic, payload, reason, sqlstate, detail FROM ingestd.dead_letter ORDER BY 1"
    refused = tables.query(kept)
    assert 5 < len(refused) < len(messages)

    tables.query("TRUNCATE ingestd.dead_letter")
    tables.query("CREATE TABLE again (time timestamptz NOT NULL, topic text NOT NULL, payload jsonb NOT NULL)")
    for i, (topic, payload) in enumerate(messages):
        add(tables, payload, topic, f"2023-11-14 22:13:20.{i:06}+00", sqlstate="23514", detail="x")
    status, out, err = letters("replay", "--table", "again", "--batch-size", 37)
    assert (status, out, err) == (
        STAYED, f"replayed {len(messages) - len(refused)}, stayed {len(refused)}\n", "")
    for one, other in (("telemetry", "again"), ("again", "telemetry")):
        assert tables.query(f"SELECT time, topic, payload::text FROM {one} EXCEPT ALL "
                            f"SELECT time, topic, payload::text FROM {other}") == []
    assert tables.query(kept) == refused


def test_what_fails_again_stays_with_the_new_reason_and_harms_no_neighbour(tables, letters):
    tables.query("ALTER TABLE telemetry ADD CHECK (payload->>'n' IS DISTINCT FROM '13')")
    add_many(tables, 40)
    bad = add(tables, payload=b'{"n": 1', reason="refused by the database", sqlstate="23514", detail="old")
    status, out, err = letters("replay")
    assert (status, out, err) == (STAYED, "replayed 39, stayed 2\n", "")
    assert numbers(tables) == [n for n in range(40) if n != 13]
    (check, json_error) = tables.query("SELECT id, reason, sqlstate, detail FROM ingestd.dead_letter ORDER BY id")
    assert check[1:3] == ("refused by the database", "23514") and "check constraint" in check[3]
    assert json_error == (bad, "no JSON: it ends too early, after 7 bytes", None, None)

    tables.query("ALTER TABLE telemetry DROP CONSTRAINT telemetry_payload_check")
    assert letters("replay")[:2] == (STAYED, "replayed 1, stayed 1\n")
    assert numbers(tables) == list(range(40)) and left(tables) == [bad]


RULES = {
    "a unique index": ("CREATE UNIQUE INDEX ON telemetry (topic)", "23505"),
    "a range": ("ALTER TABLE telemetry ADD year date GENERATED ALWAYS AS "
                "(make_date((payload->>'n')::int - 3, 1, 1)) STORED", "22008"),
    "a trigger that raises": (["CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                               "IF NEW.topic = 't/3' THEN RAISE 'not this one'; END IF; RETURN NEW; END $$",
                               "CREATE TRIGGER no BEFORE INSERT ON telemetry FOR EACH ROW EXECUTE FUNCTION no()"],
                              "P0001"),
}


@pytest.mark.parametrize("rule", RULES)
def test_whatever_rule_refuses_a_row_the_others_are_stored(tables, letters, rule):
    sql, sqlstate = RULES[rule]
    tables.query("INSERT INTO telemetry VALUES (now(), 't/3', '{\"n\": -1}')")
    for statement in sql if isinstance(sql, list) else [sql]:
        tables.query(statement)
    add_many(tables, 10)
    assert letters("replay")[:2] == (STAYED, "replayed 9, stayed 1\n")
    assert numbers(tables) == [-1, 0, 1, 2, *range(4, 10)] and letter_numbers(tables) == [3]
    assert tables.value("SELECT sqlstate FROM ingestd.dead_letter") == sqlstate


def test_a_batch_of_nothing_but_bad_ones_stays_as_a_whole(tables, letters):
    tables.query("ALTER TABLE telemetry ADD CHECK (payload->>'n' = 'none')")
    add_many(tables, 30)
    assert letters("replay", "--batch-size", 20)[:2] == (STAYED, "replayed 0, stayed 30\n")
    assert tables.count() == 0 and letter_numbers(tables) == list(range(30))
    assert tables.query("SELECT DISTINCT sqlstate FROM ingestd.dead_letter") == [("23514",)]


def test_what_is_checked_at_the_commit_only_is_checked_for_each_letter(tables, letters):
    tables.query("CREATE TABLE known (topic text PRIMARY KEY)")
    tables.query("INSERT INTO known VALUES ('t/1')")
    tables.query("ALTER TABLE telemetry ADD FOREIGN KEY (topic) REFERENCES known DEFERRABLE INITIALLY DEFERRED")
    add_many(tables, 10, topics=2)
    assert letters("replay")[:2] == (STAYED, "replayed 5, stayed 5\n")
    assert tables.query("SELECT DISTINCT topic FROM ingestd.dead_letter") == [("t/0",)]
    assert numbers(tables) == [1, 3, 5, 7, 9]


def test_a_payload_that_was_cut_is_refused_and_stays_cut(tables, letters):
    lane = Lane(tables.dsn)
    lane.wait_ready()
    lane.publish(b'{"a": 1}', size=20_000_000)
    lane.wait_committed()
    lane.end_of_file()
    lane.wait_exit()
    lane.clean_up()
    before = tables.query("SELECT * FROM ingestd.dead_letter")
    for _ in range(2):
        assert letters("replay")[:2] == (STAYED, "replayed 0, stayed 1\n")
        assert tables.query("SELECT * FROM ingestd.dead_letter") == before
    assert "exceeds --payload-limit" in str(before) and tables.count() == 0


def test_a_letter_whose_topic_was_no_text_stays_since_its_topic_is_not_known(tables, letters):
    lane = Lane(tables.dsn)
    lane.wait_ready()
    lane.publish(b"{}", b"a/\xff")
    lane.wait_committed()
    lane.end_of_file()
    lane.wait_exit()
    lane.clean_up()
    before = tables.query("SELECT * FROM ingestd.dead_letter")
    assert letters("replay")[:2] == (STAYED, "replayed 0, stayed 1\n")
    assert tables.query("SELECT * FROM ingestd.dead_letter") == before and tables.count() == 0


def test_replay_into_another_table_and_from_the_environment(tables, letters):
    tables.query('CREATE SCHEMA "other place"')
    tables.query('CREATE TABLE "other place"."Rows" (time timestamptz, topic text, payload text)')
    add(tables, payload=b'{"n":  1}')
    assert letters("replay", "--table", "other place.Rows")[0] == DONE
    add(tables, payload=b"on")
    assert letters("replay", database=None, env={"INGESTD_TABLE": "other place.Rows",
                                                 "INGESTD_DATABASE": tables.dsn})[0] == DONE
    assert tables.query('SELECT payload FROM "other place"."Rows" ORDER BY 1') == [('"on"',), ('{"n":  1}',)]
    assert tables.count() == 0


# Several at once


def test_two_replays_at_once_store_everything_once(tables, start):
    add_many(tables, 20_000)
    both = [start("replay", "--batch-size", 100) for _ in range(2)]
    ends = [command.end() for command in both]
    assert [e[0] for e in ends] == [DONE, DONE], ends
    assert left(tables) == [] and numbers(tables) == list(range(20_000))
    said = [dict(zip(("replayed", "stayed", "others"), map(int, re.findall(r"\d+", e[1])))) for e in ends]
    assert sum(s["replayed"] for s in said) == 20_000, said
    assert all(s["replayed"] > 0 for s in said), "one of them did everything: they were not at it at once"
    assert all(s["replayed"] + s["stayed"] + s.get("others", 0) == 20_000 for s in said), said


def test_what_another_holds_is_left_to_it_and_the_others_are_stored(tables, start):
    add_many(tables, 30)
    with tables.connect() as holder:
        holder.autocommit = False
        holder.execute("SELECT FROM ingestd.dead_letter WHERE convert_from(payload, 'UTF8') = '{\"n\": 3}' FOR UPDATE")
        command = start("replay", "--batch-size", 10)
        tables.wait_for_rows(29)
        tables.wait_for_waiter(holder)
        holder.execute("DELETE FROM ingestd.dead_letter WHERE convert_from(payload, 'UTF8') = '{\"n\": 3}'")
        holder.commit()
    assert command.end() == (DONE, "replayed 29, stayed 0, taken by others 1\n", "")
    assert numbers(tables) == [n for n in range(30) if n != 3]


def test_what_another_lets_go_is_stored(tables, start):
    add_many(tables, 30)
    with tables.connect() as holder:
        holder.autocommit = False
        holder.execute("SELECT FROM ingestd.dead_letter WHERE convert_from(payload, 'UTF8') = '{\"n\": 3}' FOR UPDATE")
        command = start("replay", "--batch-size", 10)
        tables.wait_for_waiter(holder)
        holder.rollback()
    assert command.end() == (DONE, "replayed 30, stayed 0\n", "")
    assert numbers(tables) == list(range(30))


def test_what_another_holds_for_long_is_said_and_stays(tables, letters):
    add_many(tables, 3)
    with tables.connect() as holder:
        holder.autocommit = False
        holder.execute("SELECT FROM ingestd.dead_letter WHERE convert_from(payload, 'UTF8') = '{\"n\": 1}' FOR UPDATE")
        status, out, err = letters("replay")
    assert (status, out) == (TEMPORARY, "replayed 2, stayed 0, not tried 1\n")
    assert "another session has locked" in err and "55P03" in err and "try again later" in err
    assert letter_numbers(tables) == [1]


@pytest.mark.slow
def test_replay_while_ingestd_adds_rows_and_dead_letters(broker, database, ingestd, start):
    daemon = ingestd().wait_ready()
    add_many(database, 5000, start=100_000)
    messages = []
    for i, good in enumerate(numbered(6000)):
        messages.append(good if i % 3 else ("t/bad", '{"n": %d' % i))
    sender = threading.Thread(target=publish, args=(broker, messages))
    sender.start()
    runs = []
    while sender.is_alive() or not runs:
        runs.append(start("replay", "--batch-size", 50).end())
    sender.join()
    assert daemon.stop() == 0
    assert all(status in (DONE, STAYED) for status, _, _ in runs), runs
    good = [i for i in range(6000) if i % 3] + list(range(100_000, 105_000))
    assert numbers(database) == sorted(good)
    assert database.count("ingestd.dead_letter") == 2000
    assert database.value("SELECT count(DISTINCT payload) FROM ingestd.dead_letter") == 2000


# Ending in the middle

HOLD = 4711


def hold_deletions(database):
    """From now on whoever deletes a dead letter waits as long as the lock HOLD is held."""
    database.query("CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                   f"PERFORM pg_advisory_xact_lock({HOLD}); RETURN OLD; END $$")
    database.query("CREATE TRIGGER hold BEFORE DELETE ON ingestd.dead_letter FOR EACH ROW EXECUTE FUNCTION hold()")


def test_kill_between_storing_and_deleting_leaves_the_letters_and_no_rows(tables, letters, start):
    add_many(tables, 30)
    hold_deletions(tables)
    with tables.connect() as holder:
        holder.execute(f"SELECT pg_advisory_lock({HOLD})")
        command = start("replay", "--batch-size", 10)
        tables.wait_for_waiter(holder)
        command.kill()
        # The server itself notices, although nobody lets the lock go.
        wait_until(lambda: tables.sessions() == [], what="its backend has ended")
    assert tables.count() == 0 and letter_numbers(tables) == list(range(30))
    assert letters("replay")[:2] == (DONE, "replayed 30, stayed 0\n")
    assert numbers(tables) == list(range(30)) and left(tables) == []


@pytest.mark.slow
def test_kill_at_any_moment_leaves_each_either_stored_or_a_letter(tables, letters, start):
    total, choose = 6000, random.Random(5)
    add_many(tables, total)
    kills = 0
    while kills < 15 and left(tables):
        before = tables.count()
        command = start("replay", "--batch-size", 40)
        wait_until(lambda: tables.count() > before or command.process.poll() is not None, what="it is at work",
                   interval=choose.random() / 100)
        kills += command.process.poll() is None
        command.kill()
        wait_until(lambda: tables.sessions() == [], what="its backend has ended")
        assert sorted(numbers(tables) + letter_numbers(tables)) == list(range(total))
    assert kills >= 5
    assert letters("replay")[0] == DONE
    assert numbers(tables) == list(range(total)) and left(tables) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_takes_back_the_batch_in_hand_and_says_what_was_done(tables, start, signum):
    add_many(tables, 30)
    hold_deletions(tables)
    tables.query("ALTER TABLE ingestd.dead_letter DISABLE TRIGGER hold")
    tables.query("CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                 "IF convert_from(OLD.payload, 'UTF8') = '{\"n\": 15}' THEN "
                 f"PERFORM pg_advisory_xact_lock({HOLD}); END IF; RETURN OLD; END $$")
    tables.query("ALTER TABLE ingestd.dead_letter ENABLE TRIGGER hold")
    with tables.connect() as holder:
        holder.execute(f"SELECT pg_advisory_lock({HOLD})")
        command = start("replay", "--batch-size", 10)
        tables.wait_for_waiter(holder)
        command.process.send_signal(signum)
        status, out, err = command.end()
        wait_until(lambda: tables.sessions() == [], what="its backend has ended")
    assert status == 128 + signum
    assert out == "replayed 10, stayed 0, not tried 20\n"
    assert signum.name in err and "nothing is half done" in err
    assert numbers(tables) == list(range(10)) and letter_numbers(tables) == list(range(10, 30))


def hold_commits(database):
    """From now on the commit of who has stored a row waits as long as the lock HOLD is held."""
    database.query("CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                   "SET CONSTRAINTS ALL DEFERRED; RETURN NULL; END $$")
    database.query("CREATE TRIGGER late BEFORE INSERT ON telemetry FOR EACH STATEMENT EXECUTE FUNCTION late()")
    database.query("CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                   f"PERFORM pg_advisory_xact_lock({HOLD}); RETURN NULL; END $$")
    database.query("CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON telemetry DEFERRABLE INITIALLY DEFERRED "
                   "FOR EACH ROW EXECUTE FUNCTION hold()")


def wait_for_commit(database):
    """Until its COMMIT waits."""
    wait_until(lambda: database.value("SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT'"
                                      " AND state = 'active' AND wait_event_type = 'Lock'"
                                      " AND datname = current_database()"), what="it commits")


def test_a_commit_that_has_been_sent_is_waited_for(tables, start):
    """An interrupt does not make it a matter of luck what has happened."""
    add_many(tables, 20)
    hold_commits(tables)
    with tables.connect() as holder:
        holder.execute(f"SELECT pg_advisory_lock({HOLD})")
        command = start("replay", "--batch-size", 10, terminal=True)
        wait_for_commit(tables)
        command.process.send_signal(signal.SIGINT)
        wait_until(lambda: not int(re.search(r"ShdPnd:\t(\w+)", read_proc(command.process.pid, "status"))[1], 16),
                   what="it has taken the signal")
        assert is_running(command.process.pid)
    status, out, screen = command.end()
    assert (status, out) == (130, "replayed 10, stayed 0, not tried 10\n") and "nothing is half done" in screen
    assert numbers(tables) == list(range(10)) and letter_numbers(tables) == list(range(10, 20))


def test_a_commit_whose_answer_is_lost_is_said_to_be_in_doubt(tables, start):
    add_many(tables, 20)
    hold_commits(tables)
    with tables.connect() as holder:
        holder.execute(f"SELECT pg_advisory_lock({HOLD})")
        command = start("replay", "--batch-size", 10)
        wait_for_commit(tables)
        holder.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                       "WHERE application_name = 'ingestd dead-letters' AND datname = current_database()")
        status, out, err = command.end()
    assert status == TEMPORARY and "not known" in err and "as a whole or not at all" in err
    assert letter_numbers(tables) == list(range(20)) and tables.count() == 0


# What stands in the way


def test_the_table_has_gone(tables, letters):
    add_many(tables, 3)
    tables.query("DROP TABLE telemetry")
    status, out, err = letters("replay")
    assert (status, out) == (CONFIGURATION, "")
    assert "no table telemetry" in err and "--table" in err and tables.name in err
    assert letter_numbers(tables) == [0, 1, 2]
    assert not tables.value("SELECT to_regclass('telemetry') IS NOT NULL"), "it is ingestd that makes tables"


def test_the_table_goes_in_the_middle(tables, start):
    add_many(tables, 20)
    with tables.locked() as holder:
        command = start("replay", "--batch-size", 10)
        tables.wait_for_waiter(holder)
        holder.execute("DROP TABLE telemetry")
        holder.commit()
    status, out, err = command.end()
    assert (status, out) == (CONFIGURATION, "replayed 0, stayed 0, not tried 20\n")
    assert "cannot store the rows" in err and "42P01" in err and "--table" in err
    assert letter_numbers(tables) == list(range(20))


@pytest.mark.parametrize("words", [["list"], ["replay"], ["discard", "--yes"]], ids=lambda w: w[0])
def test_there_is_no_table_of_dead_letters(database, letters, words):
    database.query("CREATE TABLE telemetry (time timestamptz, topic text, payload jsonb)")
    status, out, err = letters(*words)
    assert (status, out) == (CONFIGURATION, "")
    assert "dead_letter" in err and database.name in err and "--database" in err


@pytest.fixture
def guest(tables):
    """A role that may do nothing here yet; its name."""
    name = f"guest_{tables.name}"
    tables.query(f"CREATE ROLE {name} LOGIN")
    tables.query(f"GRANT USAGE ON SCHEMA ingestd TO {name}")
    yield name
    tables.query(f"DROP OWNED BY {name}")
    tables.query(f"DROP ROLE {name}")


RIGHTS = {
    "list without SELECT": (["list"], [], "SELECT"),
    "replay without SELECT": (["replay"], ["INSERT ON telemetry"], "SELECT, UPDATE, DELETE"),
    "replay without UPDATE": (["replay"], ["INSERT ON telemetry", "SELECT, DELETE ON ingestd.dead_letter"], "UPDATE"),
    "replay without DELETE": (["replay"], ["INSERT ON telemetry", "SELECT, UPDATE ON ingestd.dead_letter"], "DELETE"),
    "replay without INSERT": (["replay"], ["SELECT, UPDATE, DELETE ON ingestd.dead_letter"], "INSERT"),
    "discard without DELETE": (["discard", "--yes"], ["SELECT, UPDATE ON ingestd.dead_letter"], "DELETE"),
}


@pytest.mark.parametrize("name", RIGHTS)
def test_a_right_is_missing(tables, guest, letters, name):
    words, granted, missing = RIGHTS[name]
    add_many(tables, 3)
    for grant in granted:
        tables.query(f"GRANT {grant} TO {guest}")
    status, _, err = letters(*words, database=tables.server.dsn(tables.name, guest))
    assert status == CONFIGURATION
    assert "permission denied" in err and "GRANT" in err and missing in err and guest in err and "42501" in err
    assert letter_numbers(tables) == [0, 1, 2] and tables.count() == 0


def test_the_rights_that_it_names_are_enough(tables, guest, letters):
    add_many(tables, 3)
    tables.query(f"GRANT SELECT, UPDATE, DELETE ON ingestd.dead_letter TO {guest}")
    tables.query(f"GRANT INSERT ON telemetry TO {guest}")
    dsn = tables.server.dsn(tables.name, guest)
    assert letters("replay", "--id", left(tables)[0], database=dsn)[:2] == (DONE, "replayed 1, stayed 0\n")
    assert letters("discard", "--yes", database=dsn)[:2] == (DONE, "discarded 2\n")


def test_a_rule_that_keeps_letters_from_being_deleted_keeps_them_from_being_stored(tables, letters):
    add_many(tables, 3)
    tables.query("CREATE RULE keep AS ON DELETE TO ingestd.dead_letter DO INSTEAD NOTHING")
    status, out, err = letters("replay")
    assert (status, out) == (CONFIGURATION, "replayed 0, stayed 0, not tried 3\n")
    assert "DELETE" in err and tables.count() == 0 and letter_numbers(tables) == [0, 1, 2]


def test_a_table_that_ingestd_would_not_write_into_is_refused(tables, letters):
    add_many(tables, 1)
    tables.query("CREATE TABLE wrong (time date, topic text, payload jsonb)")
    status, _, err = letters("replay", "--table", "wrong")
    assert status == CONFIGURATION and "time is date" in err
    assert letters("replay", "--table", "nowhere.telemetry")[0] == CONFIGURATION
    assert letter_numbers(tables) == [0]


def test_the_database_is_away(database, letters):
    for words in (["list"], ["replay"], ["discard", "--yes"]):
        status, out, err = letters(*words, database="host=127.0.0.1 port=1 dbname=x password=s3cret")
        assert (status, out) == (TEMPORARY, "")
        assert err.count("\n") == 1 and "cannot get a connection" in err and "s3cret" not in err


def test_the_database_is_unknown(database, letters):
    status, _, err = letters("list", database=database.server.dsn("nosuch"))
    assert status == CONFIGURATION and "3D000" in err and "nosuch" in err


def test_a_connection_string_that_cannot_be_read_is_not_shown(database, letters):
    status, _, err = letters("list", database="s3cret")
    assert status == CONFIGURATION and "--database" in err and "s3cret" not in err


def test_the_connection_goes_in_the_middle(tables, start):
    add_many(tables, 20)
    with tables.locked() as holder:
        command = start("replay")
        tables.wait_for_waiter(holder)
        holder.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                       "WHERE application_name = 'ingestd dead-letters' AND datname = current_database()")
    status, out, err = command.end()
    assert (status, out) == (TEMPORARY, "replayed 0, stayed 0, not tried 20\n")
    assert "nothing is half done" in err
    assert letter_numbers(tables) == list(range(20)) and tables.count() == 0


# The command line

BAD_USAGE = {
    "no command": ([], ["list", "replay", "discard"]),
    "an unknown command": (["mend"], ["mend", "list", "replay", "discard"]),
    "an unknown command with control characters": (["me\x1b[1mnd"], ["me\\x1b[1mnd"]),
    "an option first": (["--json", "list"], ["list, replay or discard"]),
    "an unknown option": (["list", "--no-such"], ["--no-such"]),
    "an option of another command": (["list", "--yes"], ["--yes", "list"]),
    "an option of another command, replay": (["replay", "--json"], ["--json", "replay"]),
    "a missing value": (["replay", "--id"], ["--id"]),
    "a word too many": (["replay", "password=s3cret"], ["argument 1"]),
    "an id in words": (["replay", "--id", "one"], ["--id", "one", "1"]),
    "an id of zero": (["replay", "--id", "0"], ["--id", "0", "1"]),
    "an id past all": (["replay", "--id", "9" * 30], ["--id"]),
    "a bad filter": (["replay", "--topic", "a/#/b"], ["--topic", "a/#/b", "#"]),
    "two filters": (["discard", "--topic", "a", "--topic", "b"], ["--topic", "twice"]),
    "two times": (["discard", "--since", "1h", "--since", "2h"], ["--since", "twice"]),
    "a bad table": (["replay", "--table", "a."], ["--table", "a."]),
    "a batch of nothing": (["replay", "--batch-size", "0"], ["--batch-size", "0", "1"]),
}


@pytest.mark.parametrize("name", BAD_USAGE)
def test_bad_usage_ends_with_64_and_one_line_that_names_what_is_wrong_and_what_is_allowed(name):
    words, expected = BAD_USAGE[name]
    status, out, err = Command(*words).end()
    assert (status, out) == (USAGE, "") and err.count("\n") == 1 and err.startswith("ingestd dead-letters")
    for one in expected:
        assert one in err, err
    assert "s3cret" not in err


@pytest.mark.parametrize("since", ["yesteryear", "2026-13-01", "10 parsecs", "", "infinity", "99999999999999h"])
def test_a_since_that_is_no_time_ends_with_64(tables, letters, since):
    status, out, err = letters("replay", "--since", since)
    assert (status, out) == (USAGE, "")
    assert "--since" in err and since in err and "2h" in err


def test_a_bad_variable_is_named_and_one_of_the_daemon_s_own_does_not_matter(tables, letters):
    status, _, err = letters("list", env={"INGESTD_BATCH_SIZE": "none"})
    assert status == USAGE and "INGESTD_BATCH_SIZE" in err
    assert letters("list", env={"INGESTD_QOS": "7"})[0] == DONE


def test_without_its_writer_beside_it_ingestd_says_so(tmp_path):
    alone = tmp_path / "ingestd"
    alone.write_bytes(PROGRAM.read_bytes())
    alone.chmod(0o755)
    done = subprocess.run([alone, "dead-letters", "list"], capture_output=True, text=True, env=clean_environment())
    assert done.returncode == CONFIGURATION and "ingestd-writer" in done.stderr


def test_the_process_list_does_not_show_a_password(tables, start):
    add_many(tables, 1)
    with tables.locked() as holder:
        command = start("replay", database=tables.dsn + " password=s3cret")
        tables.wait_for_waiter(holder)
        title = read_proc(command.process.pid, "cmdline")
    assert "s3cret" not in title and "dead-letters replay" in title
    assert command.end()[0] == DONE


def test_output_that_cannot_be_written_is_an_error(tables):
    with open("/dev/full", "w") as full:
        done = subprocess.run([PROGRAM, "dead-letters", "list", "--database", tables.dsn], stdout=full,
                              stderr=subprocess.PIPE, text=True, env=clean_environment())
    assert done.returncode == 74 and "No space left" in done.stderr


# The terminal


def test_a_bar_is_drawn_on_a_terminal_in_one_line_and_taken_away(tables, start):
    add_many(tables, 3000)
    status, out, screen = start("replay", "--batch-size", 100, terminal=True).end()
    assert (status, out) == (DONE, "replayed 3000, stayed 0\n")
    drawn = screen.split("\r\x1b[K")
    assert re.fullmatch(r"replay \[-{40}\] 0/3000 0/s", drawn[1]), drawn
    assert re.fullmatch(r"replay \[#{40}\] 3000/3000 [1-9]\d*/s", drawn[-2]), drawn
    assert drawn[-1] == "" and "\n" not in screen


def test_the_bar_never_wraps(tables, start):
    add_many(tables, 300)
    _, _, screen = start("replay", "--batch-size", 10, terminal=True, width=20).end()
    assert screen and max(map(len, screen.split("\r\x1b[K"))) < 20


def test_words_of_trouble_get_a_line_of_their_own(tables, start):
    add_many(tables, 20)
    with tables.locked() as holder:
        command = start("replay", "--batch-size", 10, terminal=True)
        tables.wait_for_waiter(holder)
        command.look("0/20")
        command.process.send_signal(signal.SIGINT)
        _, out, screen = command.end()
    assert re.search(r"\r\x1b\[Kingestd dead-letters replay: stopped by SIGINT[^\n]*\r\n$", screen), repr(screen)


def test_no_bar_without_a_terminal(tables, letters):
    add_many(tables, 100)
    assert letters("replay", "--batch-size", 10)[2] == ""


# discard


def test_discard_asks_and_a_yes_throws_away_what_was_counted(tables, start):
    add_many(tables, 12)
    command = start("discard", terminal=True)
    command.look("discard 12 dead letters? [y/N] ")
    later = add(tables)
    command.type("y\n")
    assert command.end()[:2] == (DONE, "discarded 12\n")
    assert left(tables) == [later] and tables.count() == 0


@pytest.mark.parametrize("answer", ["n\n", "\n", "\x04", "yeah\n"])
def test_discard_takes_nothing_else_for_a_yes(tables, start, answer):
    add_many(tables, 3)
    command = start("discard", terminal=True)
    command.look("[y/N] ")
    command.type(answer)
    assert command.end()[:2] == (1, "discarded 0, kept 3\n")
    assert letter_numbers(tables) == [0, 1, 2]


def test_an_interrupt_at_the_question_discards_nothing(tables, start):
    add_many(tables, 3)
    command = start("discard", terminal=True)
    command.look("[y/N] ")
    command.process.send_signal(signal.SIGINT)
    assert command.end()[0] == 130
    assert letter_numbers(tables) == [0, 1, 2]


def test_discard_without_a_terminal_needs_yes(tables, letters):
    add_many(tables, 3)
    status, out, err = letters("discard")
    assert (status, out) == (USAGE, "") and "--yes" in err
    assert letter_numbers(tables) == [0, 1, 2]


def test_discard_with_yes_takes_exactly_the_selection_in_batches(tables, letters):
    add_many(tables, 95, topics=2)
    assert letters("discard", "--yes", "--topic", "t/1", "--batch-size", 10) == (DONE, "discarded 47\n", "")
    assert letter_numbers(tables) == list(range(0, 95, 2))
    assert letters("discard", "--yes")[:2] == (DONE, "discarded 48\n")
    assert letters("discard", "--yes")[:2] == (DONE, "discarded 0\n")


def test_discard_does_not_take_one_whose_number_is_lower_and_that_came_later(tables, start):
    """A writer's transaction has its numbers before it is visible."""
    with tables.connect() as writer:
        writer.autocommit = False
        early = writer.execute("INSERT INTO ingestd.dead_letter (received, topic, payload, qos, retain, lane, reason) "
                               "VALUES (now(), 't', '', 1, false, 0, 'r') RETURNING id").fetchone()[0]
        assert add(tables) > early
        command = start("discard", terminal=True)
        command.look("discard 1 dead letter? ")
        writer.commit()
    command.type("yes\n")
    assert command.end()[:2] == (DONE, "discarded 1\n")
    assert left(tables) == [early]
