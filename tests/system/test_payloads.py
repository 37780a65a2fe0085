"""What is in a message reaches the database exactly, as a row or as a dead letter, and harms no neighbour."""
import json
from pathlib import Path

import pytest

from processes import SANITIZED, wait_until
from publisher import publish

DATA = Path(__file__).resolve().parents[1] / "data" / "payloads.jsonl"
# The same and, where it lies beside the work tree, more: samples whose licence does not let them into it.
MORE_DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "payloads.jsonl"

STORED = {
    "an integer": ("21", "21"),
    "a trailing zero": ("21.10", "21.10"),
    "twenty digits": ("12345678901234567890", "12345678901234567890"),
    "forty digits": ("0.1234567890123456789012345678901234567891", "0.1234567890123456789012345678901234567891"),
    "an object": ('{"b":1, "a" : [ 1.50,null ]}', '{"a": [1.50, null], "b": 1}'),
    "a key given twice": ('{"a":1,"a":2}', '{"a": 2}'),
    "surrounding blanks": (' \r\n\t{"a":1}\n', '{"a": 1}'),
    "true": ("true", "true"),
    "null": ("null", "null"),
    "a JSON string": ('"on"', '"on"'),
    "an emoji": ('{"e":"🌡️"}', '{"e": "🌡️"}'),
    "an escaped emoji": ('{"e":"\\ud83c\\udf21"}', '{"e": "🌡"}'),
    "plain words": ("Online", '"Online"'),
    "words with a unit": ("21.5 °C", '"21.5 °C"'),
    "nan": ("nan", '"nan"'),
    "Infinity": ("-Infinity", '"-Infinity"'),
    "a leading zero": ("007", '"007"'),
    "nothing": ("", "null"),
    "a tab": ("a\tb", '"a\\tb"'),
    "a newline": ("a\nb\r\nc", '"a\\nb\\r\\nc"'),
    "the end mark of COPY": ("\\.", '"\\\\."'),
    "the end mark of COPY on its own line": ("a\n\\.\nb", '"a\\n\\\\.\\nb"'),
    "COPY's null": ("\\N", '"\\\\N"'),
    "backslashes": ("a\\b\\\\c\\", '"a\\\\b\\\\\\\\c\\\\"'),
    "quotes in text": ('say "x" and \'y\'', '"say \\"x\\" and \'y\'"'),
    "control characters": ("a\x01\x1f\x7fb", '"a\\u0001\\u001f\x7fb"'),
    "SQL": ("'); DROP TABLE telemetry; --", '"\'); DROP TABLE telemetry; --"'),
    "a backslash in JSON": ('{"p":"C:\\\\temp\\n"}', '{"p": "C:\\\\temp\\n"}'),
    "tabs in JSON's strings, escaped": ('["\\t","\\u0009"]', '["\\t", "\\t"]'),
}

DEAD = {
    "JSON cut short": b'{"a": 1',
    "JSON with something after it": b'{"a": 1} x',
    "a trailing comma": b'{"a": 1,}',
    "single quotes": b"{'a': 1}",
    "an unterminated string": b'"abc',
    "NaN in JSON": b'{"a": NaN}',
    "an escaped NUL": b'{"a": "x\\u0000y"}',
    "a lone surrogate": b'{"a": "\\ud800"}',
    "a raw newline in a JSON string": b'["a\nb"]',
    "a NUL": b"a\x00b",
    "only a NUL": b"\x00",
    "Latin-1": "21 °C".encode("latin-1"),
    "Latin-1 in JSON": '{"u": "°C"}'.encode("latin-1"),
    "an overlong sequence": b"\xc0\xaf",
    "a surrogate in UTF-8": b"\xed\xa0\x80",
    "binary with the end mark of COPY": b"\xff\n\\.\n\x00",
    "JSON nested 10,000 deep": b"[" * 10_000 + b"]" * 10_000,
    "100,000 opening brackets": b"[" * 100_000,
}


def settle(broker, database, messages, timeout=60):
    """Publishes with a good neighbour before and after each and waits until all is a row or a dead letter."""
    sent = []
    for i, (topic, payload) in enumerate(messages):
        sent += [(topic, payload), ("neighbour", f'{{"neighbour": {i}}}')]
    publish(broker, sent)
    publish(broker, [("last", '"last"')])
    sent_total = len(sent) + 1

    def done():
        return database.count() + database.count("ingestd.dead_letter") >= sent_total

    wait_until(done, timeout, "every message is a row or a dead letter", 0.05)
    neighbours = database.query("SELECT (payload->>'neighbour')::int FROM telemetry WHERE topic = 'neighbour'")
    assert sorted(n for n, in neighbours) == list(range(len(messages)))
    return (database.query("SELECT topic, payload::text FROM telemetry WHERE topic NOT IN ('neighbour', 'last')"),
            database.query("SELECT topic, payload, reason, qos, retain FROM ingestd.dead_letter"))


def test_what_jsonb_can_hold_is_stored_exactly(broker, database, ingestd):
    daemon = ingestd(subscribe="#").wait_ready()
    rows, dead = settle(broker, database, [("t/" + name, given) for name, (given, _) in STORED.items()])
    assert dead == []
    assert {topic[2:]: text for topic, text in rows} == {name: text for name, (_, text) in STORED.items()}
    assert daemon.stop() == 0


def test_what_jsonb_cannot_hold_becomes_a_dead_letter_with_its_exact_bytes(broker, database, ingestd):
    daemon = ingestd(subscribe="#").wait_ready()
    rows, dead = settle(broker, database, [("t/" + name, given) for name, given in DEAD.items()])
    assert rows == []
    assert {topic[2:]: bytes(payload) for topic, payload, *_ in dead} == DEAD
    for topic, _, reason, qos, retain in dead:
        assert reason, topic
        assert (qos, retain) == (1, False)
    assert daemon.stop() == 0
    totals = daemon.totals()
    assert totals["dead_lettered"] == len(DEAD)
    assert totals["received"] == totals["committed"] + totals["dead_lettered"]


NUMBERS = ["1e400", "-1e400", "1E-400", "1e131071", "1e131072", "1e999999999", "-0", "0.1e1", "1.0", "9" * 200,
           "0." + "0" * 16382 + "1", "0." + "0" * 17000 + "1"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: n if len(n) < 20 else f"{len(n)} characters")
def test_a_number_is_stored_as_jsonb_reads_it_or_not_at_all(broker, database, ingestd, number):
    """PostgreSQL itself is the judge of what it makes of a number."""
    try:
        expected = database.value("SELECT %s::jsonb::text", number)
    except Exception:
        expected = None
    ingestd(subscribe="#").wait_ready()
    rows, dead = settle(broker, database, [("t/n", number)])
    if expected is None:
        # No jsonb holds it: its text does, or the dead letter.
        assert rows == [("t/n", f'"{number}"')] or [bytes(d[1]) for d in dead] == [number.encode()]
        assert len(rows) + len(dead) == 1
    else:
        assert dead == [] and rows == [("t/n", expected)]


def test_json_as_deep_as_it_is_allowed_is_stored(broker, database, ingestd):
    text = "[" * 30 + "1" + "]" * 30
    ingestd(subscribe="#").wait_ready()
    assert settle(broker, database, [("t/d", text)])[0] == [("t/d", text)]


def test_a_topic_of_65535_bytes_and_topics_of_any_letters_are_stored(broker, database, ingestd):
    topics = ["x" * 65535, "ü" * 32767, "a\\.\\N'\"", "🌡️/😀", " ", "/", "//", "a;DROP TABLE telemetry", "%s%n$1"]
    ingestd(subscribe="#").wait_ready()
    rows, dead = settle(broker, database, [(t, "1") for t in topics])
    assert dead == []
    assert sorted(topic for topic, _ in rows) == sorted(topics)


def test_a_payload_above_the_limit_becomes_a_dead_letter_with_its_size_and_first_bytes(broker, database, ingestd):
    size = 20 << 20
    text = (b'"' + bytes(range(97, 123)) * (size // 26 + 1))[:size - 1] + b'"'
    daemon = ingestd(subscribe="#").wait_ready()
    rows, dead = settle(broker, database, [("t/big", text)], 60)
    assert rows == [] and len(dead) == 1
    kept = bytes(dead[0][1])
    assert 0 < len(kept) < len(text) and text.startswith(kept)
    detail = " ".join(str(x) for x in database.query("SELECT reason, detail, properties FROM ingestd.dead_letter")[0])
    assert str(len(text)) in detail
    assert daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [1 << 20, (16 << 20) - 2])
def test_a_payload_just_below_the_limit_is_stored_exactly(broker, database, ingestd, size):
    if SANITIZED and size > 1 << 20:
        pytest.skip("minutes under a sanitizer")
    text = '"' + "x" * size + '"'
    ingestd(subscribe="#").wait_ready()
    rows, dead = settle(broker, database, [("t/big", text)], 60)
    assert dead == [] and rows == [("t/big", text)]


def test_a_limit_of_ones_own_holds(broker, database, ingestd):
    ingestd(subscribe="#", payload_limit="1KiB").wait_ready()
    at, above = "7" * 1024, "7" * 1025
    rows, dead = settle(broker, database, [("t/at", at), ("t/above", above)])
    assert rows == [("t/at", at)]
    assert [d[0] for d in dead] == ["t/above"]


def samples():
    for line in (MORE_DATA if MORE_DATA.exists() else DATA).read_text().splitlines():
        one = json.loads(line)
        yield bytes.fromhex(one["payload_hex"]) if "payload_hex" in one else one["payload"].encode()


def expected_jsonb(connection, payload):
    """What the manual promises for a payload: jsonb's text, or None for a dead letter."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    if not text:
        return "null"
    try:
        return connection.execute("SELECT %s::text::jsonb::text", [text]).fetchone()[0]
    except Exception:
        if text.removeprefix("\ufeff").lstrip(" \t\r\n")[:1] in ("{", "[", '"'):
            return None
        return connection.execute("SELECT to_jsonb(%s::text)::text", [text]).fetchone()[0]


def test_every_sample_of_real_devices_is_stored_exactly_or_dead_lettered_exactly(broker, database, ingestd):
    payloads = list(samples())
    assert len(payloads) > 100
    ingestd(subscribe="#").wait_ready()
    rows, dead = settle(broker, database, [(f"s/{i}", p) for i, p in enumerate(payloads)])
    with database.connect() as connection:
        expected = {f"s/{i}": expected_jsonb(connection, p) for i, p in enumerate(payloads)}
    assert dict(rows) == {topic: text for topic, text in expected.items() if text is not None}
    assert {topic: bytes(payload) for topic, payload, *_ in dead} == {
        f"s/{i}": p for i, p in enumerate(payloads) if expected[f"s/{i}"] is None}
