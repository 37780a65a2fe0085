"""
What the harness publishes: JSON with an id and its topic's own number, real payloads inside some of it, and a few
that are no JSON.

Drawn from one random.Random, so that a seed always gives the same messages in the same order. Must never repeat an
id, and never make a good payload that jsonb could not hold.
"""
import itertools
import json
import re
from pathlib import Path

from ledger import Message, canonical

DATA = Path(__file__).resolve().parents[1] / "data" / "payloads.jsonl"
FILTER = "faults/#"

# Of a hundred messages so many are long, carry a real payload, or are no JSON. The rest are of about 85 bytes.
LONG, REAL, BROKEN = 4, 4, 1
# A real payload that is longer would make the load depend on which of them come first.
REAL_MAX = 8192
LETTERS = "abcdefghijklmnopqrstuvwxyz  ,.;:-_0123456789\"\\/\t\nÄßé°€🌡"

# Where the tail of a JSON object would stand. Each is refused by jsonb for another reason.
BROKEN_TAILS = [b"", b",}", b',"t":21.', b',"t":NaN}', b',"t":"\\u0000"}', b',"t":"\\ud800"}', b',"t":"\xb0C"}',
                b"} and more", b',"t":"a\nb"}']


def _fits_jsonb(text):
    """Not all that is JSON does: jsonb has no NUL, no lone surrogate, and numbers and depth have an end."""
    if text.count("[") + text.count("{") > 2000 or re.search(r"[eE][-+]?\d{3}", text):
        return False
    try:
        json.dumps(canonical(text), ensure_ascii=False).encode()
    except ValueError:
        return False
    return "\\u0000" not in text


def real_payloads():
    """The samples of tests/data as JSON values: as they stand where they are JSON, else as a string of their text."""
    found = []
    for line in DATA.read_text().splitlines():
        text = json.loads(line).get("payload")
        if text is None or len(text) > REAL_MAX:
            continue
        if not _fits_jsonb(text):
            text = json.dumps(text)
        if _fits_jsonb(text):
            found.append(text.strip())
    return found


class Messages:
    def __init__(self, random, topics=40, with_broken=True):
        self._random = random
        self._with_broken = with_broken
        # (share, tails): so many of all are good JSON that the table refuses; see poison.py. Another thread sets it.
        self.poison = None
        self._numbers = itertools.count(1)
        self._topics = {f"faults/{i}": itertools.count(1) for i in range(topics)}
        self._names = list(self._topics)
        self._real = real_payloads()
        self._fillers = [json.dumps("".join(random.choices(LETTERS, k=random.randrange(1000, 4000))),
                                    ensure_ascii=False) for _ in range(16)]

    def next(self):
        r = self._random
        id, topic = f"m{next(self._numbers):07}", self._names[int(r.random() * len(self._names))]
        n = next(self._topics[topic])
        head = f'{{"id":"{id}","n":{n}'
        kind = r.random() * 100
        is_json, poison = True, self.poison
        if poison and r.random() < poison[0]:
            payload, is_json = head.encode() + r.choice(poison[1]), False
        elif kind < LONG:
            payload = f'{head},"filler":{r.choice(self._fillers)}}}'.encode()
        elif kind < LONG + REAL:
            payload = f'{head}, "real" : {r.choice(self._real)} }}'.encode()
        elif kind < LONG + REAL + BROKEN and self._with_broken:
            payload, is_json = head.encode() + r.choice(BROKEN_TAILS), False
        else:
            payload = (f'{head},"temperature":{20 + kind / 10:.3f},"humidity":{40 + n % 997 / 10:.2f},'
                       f'"status":"running"}}').encode()
        return Message(id, topic, n, payload, is_json)
