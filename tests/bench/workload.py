"""What the benchmark stores: small JSON objects on a hundred topics, all of one size, unless a row asks for others."""

import random
import time
from dataclasses import dataclass

FILTER = "plant/#"
FIRST = 1_000_000  # so that every number has seven digits
SMALL = 20  # bytes of the smallest payload

TABLE = """
    CREATE TABLE telemetry (time timestamptz NOT NULL, topic text NOT NULL, payload jsonb NOT NULL)
        WITH (autovacuum_enabled = off);
    CREATE INDEX ON telemetry (time);
"""

# Digits that no compression gets anything out of, so that a large payload costs what it looks like.
_FILLER = random.Random(1).randbytes(1 << 20).hex() * 4


@dataclass(frozen=True)
class Workload:
    """size: bytes of a payload, 20 or from 85 on. topics: how many take turns."""

    size: int = 85
    topics: int = 100

    def topic(self, i):
        number = i % self.topics
        return f"plant/line-{number // 10}/press-{number:02}/state"

    def payload(self, number):
        if self.size == SMALL:
            return f'{{"n":{number},"v":{10 + number % 90}}}'
        text = (f'{{"n":{number},"temperature":{20 + number % 9973 / 1000:.3f},'
                f'"humidity":{40 + number % 997 / 100:.2f},"status":"running","force":14{number % 90 + 10}.5}}')
        more = self.size - len(text)
        return f'{text[:-1]},"raw":"{_FILLER[:more - 9]}"}}' if more > 0 else text

    def messages(self, count, start=0):
        """count pairs of topic and payload."""
        for i in range(start, start + count):
            yield self.topic(i), self.payload(FIRST + i)

    def write_copy_file(self, path, count):
        """The same rows in COPY's text format, 10 µs apart. Nothing in them needs escaping."""
        start = int(time.time())
        with open(path, "w") as f:
            for i, (topic, text) in enumerate(self.messages(count)):
                second, step = divmod(i, 100_000)
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(start + second))
                f.write(f"{when}.{step * 10:06}+00\t{topic}\t{text}\n")


USUAL = Workload()
