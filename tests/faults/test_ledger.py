"""The judge finds exactly what is wrong, and nothing in a table that is right."""
import json
import random

import pytest

from ledger import COLUMNS, Book, Message, canonical, judge
from messages import Messages, real_payloads

EXACT = '{"id": "m%07d", "n": %d, "v": 21.10}'


@pytest.fixture
def book():
    """
    Ten messages on two topics, numbered from 1 in each; the sixth is no JSON, the last was not acknowledged. Message
    m0000001 is topic a's first.
    """
    book = Book()
    for i in range(10):
        payload = EXACT % (i + 1, i // 2 + 1)
        message = Message(f"m{i + 1:07}", "ab"[i % 2], i // 2 + 1, payload.encode())
        if i == 5:
            message.payload, message.is_json = message.payload[:-1], False
        book.write(message)
        if i < 9:
            book.acknowledge(message.id)
    return book


@pytest.fixture
def rows(book):
    return [(m.topic, m.payload.decode()) for m in book.messages.values() if m.is_json]


@pytest.fixture
def dead(book):
    return [(m.topic, m.payload) for m in book.messages.values() if not m.is_json]


def assert_only(verdict, **expected):
    assert {c: getattr(verdict, c) for c in COLUMNS} == {**dict.fromkeys(COLUMNS, 0), **expected}, verdict.words()


def test_a_right_table_is_right(book, rows, dead):
    verdict = judge(book, rows, dead)
    assert_only(verdict)
    assert verdict.clean and (verdict.published, verdict.acknowledged, verdict.stored) == (10, 9, 10)


def test_what_was_not_acknowledged_may_be_missing(book, rows, dead):
    assert_only(judge(book, rows[:-1], dead))


def test_what_was_not_acknowledged_must_not_be_there_twice(book, rows, dead):
    assert_only(judge(book, [*rows, rows[-1]], dead), duplicated=1)


def test_what_was_acknowledged_and_is_nowhere_is_lost(book, rows, dead):
    verdict = judge(book, rows[2:], dead)
    assert_only(verdict, lost=2)
    assert "m0000001" in verdict.examples["lost"][0] and "m0000001" in verdict.words()


def test_a_missing_dead_letter_is_lost(book, rows, dead):
    assert_only(judge(book, rows, []), lost=1)


def test_nothing_stored_is_all_lost(book):
    assert_only(judge(book, [], []), lost=9)


def test_each_surplus_row_is_a_duplicate_and_not_out_of_order_as_well(book, rows, dead):
    verdict = judge(book, rows + rows[:3] + rows[:1], dead)
    assert_only(verdict, duplicated=4)
    assert "row 1, row 10, row 13" in verdict.examples["duplicated"][3]


def test_a_dead_letter_that_is_there_twice_is_a_duplicate(book, rows, dead):
    assert_only(judge(book, rows, dead * 2), duplicated=1)


def test_a_row_and_a_dead_letter_of_one_message_are_a_duplicate(book, rows, dead):
    as_dead = (rows[0][0], rows[0][1].encode())
    assert_only(judge(book, rows, [*dead, as_dead]), duplicated=1, corrupt=1)


@pytest.mark.parametrize("text", [EXACT % (11, 1), '{"n": 1}', '{"id": 7}', '{"id": ["m0000001"]}', "21", '"Online"',
                                  "null", "[]"])
def test_a_row_that_nobody_published_is_a_phantom(book, rows, dead, text):
    assert_only(judge(book, [*rows, ("a", text)], dead), phantom=1)


def test_a_dead_letter_that_nobody_published_is_a_phantom(book, rows, dead):
    assert_only(judge(book, rows, [*dead, ("a", b'{"id": "m0000099", '), ("a", b"\xff")]), phantom=2)


@pytest.mark.parametrize("old, new", [("21.10", "21.1"), ("21.10", "21.100"), ("21.10", '"21.10"'), ("21.10", "null"),
                                      ('"v"', '"w"'), ("}", ', "w": 1}'), ('"n": 1', '"n": 2'), (', "v": 21.10', "")])
def test_a_payload_that_has_changed_in_any_way_is_corrupt(book, rows, dead, old, new):
    changed = rows[0][1].replace(old, new)
    assert changed != rows[0][1]
    assert_only(judge(book, [("a", changed), *rows[1:]], dead), corrupt=1)


def test_what_jsonb_does_to_a_payload_is_no_corruption(book, rows, dead):
    respelt = json.dumps(dict(reversed(json.loads(rows[0][1]).items())), indent=3).replace("21.1", "2110e-2")
    assert_only(judge(book, [("a", respelt), *rows[1:]], dead))


@pytest.mark.parametrize("one, other", [("1e2", "100"), ("-0.0", "0.0"), ("1.50e-3", "0.00150"),
                                        ('"\\u00e9"', '"é"'), ('{"a":1,"a":2}', '{"a": 2}'),
                                        ("12345678901234567890123", " 12345678901234567890123\n")])
def test_two_spellings_of_one_value_are_the_same(one, other):
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize("one, other", [("1.0", "1.00"), ("1", "1.0"), ('"1"', "1"), ("true", '"true"'), ("[]", "{}"),
                                        ("0.1", "0.10"), ("12345678901234567890", "12345678901234567891")])
def test_two_values_are_not(one, other):
    assert canonical(one) != canonical(other)


def test_a_row_of_another_topic_is_corrupt(book, rows, dead):
    assert_only(judge(book, [("c", rows[0][1]), *rows[1:]], dead), corrupt=1)


def test_a_dead_letter_with_other_bytes_is_corrupt(book, rows, dead):
    assert_only(judge(book, rows, [(dead[0][0], dead[0][1] + b" ")]), corrupt=1)


def test_good_json_among_the_dead_letters_is_corrupt(book, rows, dead):
    assert_only(judge(book, rows[1:], [*dead, (rows[0][0], rows[0][1].encode())]), corrupt=1)


def test_a_row_that_stands_behind_a_later_one_of_its_topic_is_out_of_order(book, rows, dead):
    rows[0], rows[2] = rows[2], rows[0]
    verdict = judge(book, rows, dead)
    assert_only(verdict, reordered=1)
    assert "m0000001" in verdict.examples["reordered"][0] and "row 3" in verdict.examples["reordered"][0]


def test_the_order_between_topics_is_free(book, rows, dead):
    assert_only(judge(book, sorted(rows, key=lambda row: row[0], reverse=True), dead))


def test_each_column_counts_for_itself(book, rows, dead):
    wrong = [rows[2], rows[0], rows[0], *rows[3:], ("a", "1"), ("b", rows[4][1])]
    assert_only(judge(book, wrong, dead), lost=1, duplicated=2, phantom=1, corrupt=1, reordered=1)


def test_only_some_examples_are_kept():
    book = Book()
    for i in range(100):
        book.write(Message(f"m{i}", "a", i, b"{}"))
        book.acknowledge(f"m{i}")
    verdict = judge(book, [], [])
    assert verdict.lost == 100 and len(verdict.examples["lost"]) == 5


def test_the_same_seed_gives_the_same_messages():
    one, other = (Messages(random.Random("x")) for _ in range(2))
    assert [one.next() for _ in range(500)] == [other.next() for _ in range(500)]


def test_messages_are_of_every_kind_and_unique():
    source = Messages(random.Random(1))
    found = [source.next() for _ in range(5000)]
    assert len({m.id for m in found}) == 5000
    assert len({(m.topic, m.n) for m in found}) == 5000
    assert len(real_payloads()) > 100
    for m in found:
        if m.is_json:
            assert canonical(m.payload.decode())["id"] == m.id
        assert m.payload.startswith(b"{")
    assert 20 < sum(not m.is_json for m in found) < 100
    assert sum(b'"real"' in m.payload for m in found) > 100
    assert sum(len(m.payload) > 1000 for m in found) > 100
