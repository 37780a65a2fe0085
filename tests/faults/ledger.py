"""
The publisher's book, and the verdict on a table: what was lost, doubled, invented, changed or reordered.

Pure: no socket, no database, no clock. Must never be lenient: what the book does not explain is counted in
a column, and what is counted is counted once.

A message that the broker acknowledged to its publisher is `acknowledged`: it has to be stored, once. One whose
connection ended before that is a `maybe`: the broker took it once or not at all, both are right. It is never
sent again, so twice is wrong for it as well.
"""
import json
import re
from dataclasses import dataclass, field
from decimal import Decimal

COLUMNS = ("lost", "duplicated", "phantom", "corrupt", "reordered")
EXAMPLES = 5

# Digits before the point that PostgreSQL's numeric, and so jsonb, can hold.
NUMERIC_MAX = 131072

_ID = re.compile(rb'"id": ?"(m\d+)"')


@dataclass
class Message:
    """n counts the messages of its topic. is_json: what is none, or is poison, has to become a dead letter."""
    id: str
    topic: str
    n: int
    payload: bytes
    is_json: bool = True
    acknowledged: bool = False
    at: float = 0.0

    def __str__(self):
        state = "acknowledged" if self.acknowledged else "maybe"
        return f"{self.id} (topic {self.topic}, its number {self.n}, {state}, published at {self.at:.3f} s)"


class Book:
    """
    Whole payloads are kept, not hashes of them: a run's are some MiB, and a payload that has changed can be
    shown. One thread writes; counting while it does is fine, judging is for afterwards.
    """

    def __init__(self):
        self.messages = {}
        self.acknowledged = 0

    def write(self, message):
        assert message.id not in self.messages, f"{message.id} was published twice"
        self.messages[message.id] = message

    def acknowledge(self, id):
        message = self.messages[id]
        assert not message.acknowledged, f"{message} was acknowledged twice"
        message.acknowledged = True
        self.acknowledged += 1

    def __len__(self):
        return len(self.messages)


def _number(text):
    """
    A number as jsonb keeps it: every digit, trailing zeros included, no exponent, no sign of zero. NUL before
    it, which no string in jsonb can hold, tells it from a string of the same digits.
    """
    value = Decimal(text)
    if abs(value.adjusted()) > NUMERIC_MAX:
        raise ValueError(f"{text:.40} is beyond numeric")
    return "\0" + format(value if value else abs(value), "f")


def _no_json(word):
    raise ValueError(f"{word} is no JSON")


_decoder = json.JSONDecoder(parse_float=_number, parse_int=_number, parse_constant=_no_json)


def canonical(text):
    """
    What a JSON text means to jsonb, for comparing: order of keys, blanks, escapes and the spelling of numbers do
    not count, every digit does. ValueError where it is no JSON.
    """
    return _decoder.decode(text)


@dataclass
class Verdict:
    published: int = 0
    acknowledged: int = 0
    stored: int = 0
    lost: int = 0
    duplicated: int = 0
    phantom: int = 0
    corrupt: int = 0
    reordered: int = 0
    examples: dict = field(default_factory=dict)

    @property
    def clean(self):
        return not any(getattr(self, column) for column in COLUMNS)

    def count(self, column, example):
        setattr(self, column, getattr(self, column) + 1)
        shown = self.examples.setdefault(column, [])
        if len(shown) < EXAMPLES:
            shown.append(example)

    def words(self):
        lines = [f"published {self.published}, of these acknowledged {self.acknowledged}; stored {self.stored}"]
        for column in COLUMNS:
            lines.append(f"{column} {getattr(self, column)}")
            lines += ["    " + example for example in self.examples.get(column, ())]
        return "\n".join(lines)


class _Judge:
    def __init__(self, book):
        self.book = book
        self.verdict = Verdict(len(book), book.acknowledged)
        self.places = {}
        self.last = {}

    def note(self, message, place):
        """True at the first occurrence."""
        places = self.places.setdefault(message.id, [])
        places.append(place)
        self.verdict.stored += 1
        if len(places) > 1:
            self.verdict.count("duplicated", f"{message}: {', '.join(places)}")
        return len(places) == 1

    def row(self, place, topic, text):
        try:
            content = canonical(text)
            message = self.book.messages.get(content["id"])
        except (ValueError, KeyError, TypeError):
            message = None
        if message is None:
            self.verdict.count("phantom", f"{place}: topic {topic}, {text[:200]}")
            return
        self._compare(place, message, topic, content)
        if self.note(message, place):
            self._order(place, message)

    def _compare(self, place, message, topic, content):
        if topic != message.topic:
            self.verdict.count("corrupt", f"{message}: {place} has topic {topic}")
        elif not message.is_json:
            self.verdict.count("corrupt", f"{message}: {place}, though it is no JSON")
        elif content != canonical(message.payload.decode()):
            self.verdict.count("corrupt", f"{message}: {place} has another payload: {content!r:.300}"
                                          f" instead of {message.payload!r:.300}")

    def _order(self, place, message):
        before = self.last.get(message.topic)
        if before is not None and message.n < before[0].n:
            self.verdict.count("reordered", f"{message}: {place}, after number {before[0].n} in {before[1]}")
        self.last[message.topic] = message, place

    def dead_letter(self, place, topic, payload):
        found = _ID.search(payload)
        message = self.book.messages.get(found[1].decode()) if found else None
        if message is None:
            self.verdict.count("phantom", f"{place}: topic {topic}, {payload[:200]!r}")
            return
        if message.is_json:
            self.verdict.count("corrupt", f"{message}: {place}, though it is good JSON")
        elif (topic, payload) != (message.topic, message.payload):
            self.verdict.count("corrupt", f"{message}: {place} is {topic}, {payload[:200]!r}"
                                          f" instead of {message.payload[:200]!r}")
        self.note(message, place)

    def missing(self):
        for message in self.book.messages.values():
            if message.acknowledged and message.id not in self.places:
                self.verdict.count("lost", str(message))


def judge(book, rows, dead_letters):
    """
    rows: (topic, JSON text) in the order of insertion. dead_letters: (topic, bytes). The order of a topic is
    judged over first occurrences, so that a duplicate is not counted a second time as out of order.
    """
    j = _Judge(book)
    for at, (topic, text) in enumerate(rows, 1):
        j.row(f"row {at}", topic, text)
    for at, (topic, payload) in enumerate(dead_letters, 1):
        j.dead_letter(f"dead letter {at}", topic, payload)
    j.missing()
    return j.verdict
