"""`ingestd dead-letters list` and `replay`: what is chosen, what becomes a row, what stays and why."""
import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from paho.mqtt.client import topic_matches_sub

from lane import Lane
from letters import DONE, STAYED, T0, add, add_many, left, letter_numbers, numbers

DATA = Path(__file__).resolve().parents[1] / "data" / "payloads.jsonl"


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
