"""What the benchmark stores: small JSON objects on a hundred topics, all of one size."""

import time

TOPICS = [f"plant/line-{i // 10}/press-{i:02}/state" for i in range(100)]
FILTER = "plant/#"
FIRST = 1_000_000  # so that every number has seven digits

TABLE = """
    CREATE TABLE telemetry (time timestamptz NOT NULL, topic text NOT NULL, payload jsonb NOT NULL)
        WITH (autovacuum_enabled = off);
    CREATE INDEX ON telemetry (time);
"""


def payload(number):
    """85 bytes."""
    return (f'{{"n":{number},"temperature":{20 + number % 9973 / 1000:.3f},'
            f'"humidity":{40 + number % 997 / 100:.2f},"status":"running","force":14{number % 90 + 10}.5}}')


def messages(count):
    """count pairs of topic and payload; the topics take turns."""
    for i in range(count):
        yield TOPICS[i % len(TOPICS)], payload(FIRST + i)


def write_copy_file(path, count):
    """The same rows in COPY's text format, 10 µs apart. Nothing in them needs escaping."""
    start = int(time.time())
    with open(path, "w") as f:
        for i, (topic, text) in enumerate(messages(count)):
            second, step = divmod(i, 100_000)
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(start + second))
            f.write(f"{when}.{step * 10:06}+00\t{topic}\t{text}\n")
