"""
payload.c against PostgreSQL itself: what one calls JSON the other must take, and the other way round.

A mistake in one direction holds up a lane for ever, in the other it throws JSON to the dead letters.
"""
import json
import random
import struct
import subprocess

import psycopg
import pytest

from processes import BUILD, PATIENCE, ROOT

HELPER = BUILD / "unit" / "payload_verdict"
# The limit that payload.h sets on purpose, below PostgreSQL's own.
DEPTH_MAX = 512
MUTATIONS = 40_000
ALPHABET = b'0123456789-+.eE"\\{}[],:tfnNuIdDcC8 \n\t\x01aA/\'\x00\xef\xbb\xbf\xed\xa0\x80'

HAND_MADE = [
    # numbers
    b"0", b"-0", b"1", b"01", b"-01", b"1.", b".5", b"1.e5", b"1e5", b"1E+5", b"1e", b"1e+", b"-", b"+1", b"--1",
    b"1.2.3", b"1-2", b"1e5e5", b"0x10", b"1_000", b"[01]", b"[1.]", b"[.5]", b"[-]", b"[1-2]", b"[1.2.3]", b"[--1]",
    b"[1e5e5]", b"[0x10]", b"[1e]", b"[+1]", b"21.10", b"12345678901234567890", b"123456789012345678901234567890",
    b"-12345678901234567890", b"1e400", b"1e131071", b"1e131072", b"9.99e131071", b"10e131070", b"10e131071",
    b"0.1e131072", b"0.1e131073", b"0.00001e131076", b"0.00001e131077", b"1e200000", b"-1e131072", b"[1e131072]",
    b'{"a":1e131072}', b"1e-16383", b"1e-16384", b"-1e-16384", b"1.0e-16383", b"1.0e-16382", b"0.1e-16383",
    b"0.1e-16382", b"1e-20000", b"0e-16383", b"0e-16384", b"0.0e16384", b"0.1e16384", b"1.5e131071",
    b"0e999999", b"0e1073741822", b"0e1073741823", b"0e1073741824", b"0e99999999999", b"0e-1073741823",
    b"1e99999999999", b"1e-99999999999", b"1e9223372036854775807", b"1e99999999999999999999999999",
    b"0e18446744073709551616", b"0e00000000000000000000000001", b"1e00000000000000000000131071",
    b"1e00000000000000000000131072", b"1" * 131072, b"1" * 131073, b"0." + b"1" * 16383, b"0." + b"1" * 16384,
    b"0." + b"0" * 16383, b"0." + b"0" * 16384, b"1" * 131072 + b"." + b"1" * 16383, b"[" + b"9" * 131073 + b"]",
    b"0." + b"0" * 16000 + b"1e147000", b"0." + b"0" * 16000 + b"1e147072", b"0." + b"0" * 16000 + b"1e147073",
    # literals
    b"true", b"false", b"null", b"True", b"TRUE", b"nulL", b"nul", b"n", b"truex", b"true false", b"[truefalse]",
    b"[TRUE]", b"[True]", b"[nul]", b"NaN", b"nan", b"-nan", b"Infinity", b"-Infinity", b"-Inf", b"-I", b"-n",
    b"[NaN]", b"[-NaN]", b'{"a":Infinity}', b'{"a":-Infinity}', b"[inf]", b"[undefined]",
    # strings
    b'""', b'"', b'"\\"', b'"a\nb"', b'"\x01"', b'"\x1f"', b'"\x7f"', b'"\t"', b'"\\t"', b'"\\u0000"', b'"\\u0001"',
    b'{"\\u0000":1}', b'["\\u0000"]', b'"\\u00e9"', b'"\\uD834\\uDD1E"', b'"\\ud834\\udd1e"', b'"\\ud800"',
    b'"\\udc00"', b'"\\ud800x"', b'"\\ud800\\ud800"', b'"\\ud800\\n"', b'"\\ud834\\u0041"', b'"\\udc00\\ud800"',
    b'"\\ud800\\udbff"', b'"\\ud800\\ue000"', b'"\\ud800\\udc00\\udc00"', b'"\\ud800\\udc0"', b'"\\ud800\\"',
    b'"\\ud800\\u"', b'{"\\ud800":1}', b'"\\uffff"', b'"\\ufffe"', b'"\\x"', b'"\\u12g4"', b'"\\u"', b'"\\u123"',
    b'"\\/"', b'"\\b\\f\\n\\r\\t\\\\\\""', b'"\\v"', b'"\\0"', b'"\\\'"', b"'a'", b"['a']", b"{'a':1}",
    b'"\xef\xbf\xbf"', b'"\xed\xa0\x80"', b'"\xed\x9f\xbf"', b'"\xf4\x8f\xbf\xbf"', b'"\xf4\x90\x80\x80"',
    b'"\xc0\xaf"', b'"\xe0\x80\xaf"', b'"\xc2\x80"', b'"\xff"', b'"\xe2\x82"', b'"a\x00b"', b"[\x001]", b'"x"y', b'"x""y"',
    b'"x",', b'"a" "b"', b' "a" ', b'"\\\r\n"',
    # structure
    b"[", b"{", b"]", b"}", b"[]", b"{}", b"[[]", b"[]]", b"{]", b"[}", b"[1,]", b"[,1]", b"[,]", b"[1,,2]", b"{,}",
    b'{"a":1,}', b"{a:1}", b'{"a" 1}', b'{"a":}', b'{"a"}', b'{"a":1 "b":2}', b'{"a":1,"a":2}', b'{"":1}', b"{1:2}",
    b"{null:1}", b"[1 2]", b"[1:2]", b"[1]]", b"[1]x", b"{}{}", b"[][]", b"[1],", b'{"a":[1,{"b":[]}]}', b"[1,\n2]",
    b"[1,\r\n\t2 ]\n", b"/*c*/1", b"[/**/]", b"//x\n1", b"[1]//x", b"#x", b'{"a":1}\x00', b"[1]\x0b", b"[1]\x0c",
    b"[\xc2\xa0]", b"[1]\xc2\xa0", b"[\xe2\x80\xa8]", b'{"a":"b":"c"}', b"{:1}", b'{"a"::1}', b"[\"a\":1]",
    # what stands before and behind
    b"", b" ", b"\n", b" 1 ", b"\t\r\n1", b"1\n", b"\x0b1", b"\x0c1", b"1\x0b", b"\xc2\xa01", b"\xef\xbb\xbf",
    b"\xef\xbb\xbf1", b"\xef\xbb\xbf{}", b" \xef\xbb\xbf{}", b"\xef\xbb\xbf [1]", b"\xef\xbb\xbf\"a\"",
    b"1 2", b"1,2", b"1x", b"-e5", b"\x00", b"a\x00", b"\x001",
]

# Strings of JSONTestSuite's kinds that are text to us, and what a device would send.
TEXTS = [b"Online", b"nan", "21.5 °C".encode(), b"a\tb", b"\x01\x02", b"\\", b'a"b', "\U0001f600".encode(), b"1,2;3"]


def corpus():
    for line in open(ROOT / "tests" / "data" / "payloads.jsonl"):
        entry = json.loads(line)
        yield entry["payload"].encode() if "payload" in entry else bytes.fromhex(entry["payload_hex"])


def mutations(bases, count, seed):
    rnd = random.Random(seed)
    bases = [b for b in bases if 0 < len(b) < 300]
    for _ in range(count):
        b = bytearray(rnd.choice(bases))
        for _ in range(rnd.randint(1, 3)):
            k = rnd.random()
            if k < 0.4 and b:
                b[rnd.randrange(len(b))] = rnd.choice(ALPHABET)
            elif k < 0.6:
                b.insert(rnd.randint(0, len(b)), rnd.choice(ALPHABET))
            elif k < 0.7 and b:
                # A piece of another payload: tokens in places where they do not belong.
                other, at = rnd.choice(bases), rnd.randint(0, len(b))
                start = rnd.randrange(len(other))
                b[at:at] = other[start:start + rnd.randint(1, 12)]
            elif b:
                del b[rnd.randrange(len(b))]
        yield bytes(b)


def ask_writer(payloads):
    data = b"".join(struct.pack("=I", len(p)) + p for p in payloads)
    done = subprocess.run([HELPER], input=data, capture_output=True, timeout=120 * PATIENCE)
    assert done.returncode == 0, done.stderr
    verdicts = done.stdout.decode().splitlines()
    assert len(verdicts) == len(payloads)
    return verdicts


def ask_jsonb(connection, payloads):
    """None where jsonb takes the payload, else its reason; many to one round trip."""
    connection.execute("""
        CREATE OR REPLACE FUNCTION pg_temp.refusal(payload bytea) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM convert_from(payload, 'UTF8')::jsonb;
            RETURN NULL;
        EXCEPTION WHEN OTHERS THEN
            RETURN SQLSTATE || ' ' || SQLERRM;
        END $$""")
    answers = []
    for at in range(0, len(payloads), 2000):
        answers += [row[0] for row in connection.execute(
            "SELECT pg_temp.refusal(p) FROM unnest(%b::bytea[]) WITH ORDINALITY AS u(p, n) ORDER BY n",
            (payloads[at:at + 2000],))]
    return answers


def starts_like_json(payload):
    text = payload.lstrip(b" \t\r\n").removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    return text[:1] in (b"{", b"[", b'"')


def is_number(payload):
    """A number as JSON spells them: json.loads reads each without a limit, into a string here."""
    try:
        text = payload.decode().strip(" \t\r\n")
        value = json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda name: None)
        return isinstance(value, str) and not text.startswith('"')
    except ValueError:
        return False


def expected(payload, refusal):
    if payload == b"":
        return "null"
    if refusal is None:
        return "json"
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return "dead"
    if "\0" in text or starts_like_json(payload) or is_number(payload):
        return "dead"
    return "text"


def differences(connection, payloads):
    verdicts, refusals = ask_writer(payloads), ask_jsonb(connection, payloads)
    return [(p[:80], v, r) for p, v, r in zip(payloads, verdicts, refusals) if v.split(" ")[0] != expected(p, r)]


@pytest.fixture
def connection(database):
    with psycopg.connect(database.dsn, autocommit=True) as c:
        yield c


def test_the_verdict_on_known_payloads_is_jsonbs_own(connection):
    assert differences(connection, [*corpus(), *HAND_MADE, *TEXTS]) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_verdict_on_mutated_payloads_is_jsonbs_own(connection, seed):
    bases = [*corpus(), *HAND_MADE]
    assert differences(connection, list(mutations(bases, MUTATIONS // PATIENCE, seed))) == []


@pytest.mark.parametrize("opening, inner, closing", [("[", "", "]"), ('{"a":', "1", "}"), ('[{"a":', "1", "}]")])
def test_nesting_is_bounded_where_postgres_is_still_safe(connection, opening, inner, closing):
    def nested(levels):
        n = levels // (opening.count("[") + opening.count("{"))
        return (opening * n + inner + closing * n).encode()

    payloads = [nested(n) for n in (2, 100, DEPTH_MAX, DEPTH_MAX + 2, 10_000)]
    assert [v.split(" ")[0] for v in ask_writer(payloads)] == ["json", "json", "json", "dead", "dead"]
    assert ask_writer([nested(10_000)]) == [f"dead nested deeper than {DEPTH_MAX} levels"]
    # The smallest stack that a server can be given.
    connection.execute("SET max_stack_depth = '100kB'")
    for payload in payloads[:3]:
        connection.execute("SELECT %s::text::jsonb", (payload.decode(),))
