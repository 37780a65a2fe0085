"""The time from publish to visible row, at a low and steady rate.

One loop sends and looks: the clock of a message starts just before its bytes are given to the
socket and ends when the answer to a query that holds its row has arrived. While messages are out the
query is repeated without a pause, about every half millisecond: the result is never too short, and
too long by one query at most. The query asks only for rows received since the oldest message that is
still out, so that its cost does not grow with the table.
"""

import time
from dataclasses import dataclass

from publisher import Publisher
from workload import FIRST, USUAL

QUERY = "SELECT (payload->>'n')::int FROM telemetry WHERE time >= to_timestamp(%s)"
# The supervisor's receive time and ours come from one clock; this is for its steps and rounding.
SLACK = 0.05
GIVE_UP = 10


@dataclass
class Latency:
    milliseconds: list
    longest_poll: float

    def quantile(self, q):
        return sorted(self.milliseconds)[int(q * (len(self.milliseconds) - 1))]


def measure(broker, database, count, rate):
    """Publishes count messages, rate of them a second, to a service that is ready."""
    publisher = Publisher(broker.port, "bench-latency")
    out, result, longest_poll = {}, [], 0.0
    begin = time.monotonic()
    todo = enumerate(USUAL.messages(count))
    with database.connect() as connection:
        while len(result) < count:
            due = begin + (len(result) + len(out)) / rate
            if len(result) + len(out) < count and time.monotonic() >= due:
                index, message = next(todo)
                out[index] = time.time(), time.perf_counter()
                publisher.publish([message])
            if not out:
                time.sleep(max(0, due - time.monotonic()))
                continue
            asked = time.perf_counter()
            rows = connection.execute(QUERY, [min(out.values())[0] - SLACK], prepare=True).fetchall()
            seen = time.perf_counter()
            longest_poll = max(longest_poll, seen - asked)
            for (number,) in rows:
                sent = out.pop(number - FIRST, None)
                if sent:
                    result.append((seen - sent[1]) * 1000)
            if time.monotonic() - due > GIVE_UP:
                raise RuntimeError(f"{len(out)} messages did not become rows within {GIVE_UP} s")
    publisher.close()
    return Latency(result, longest_poll * 1000)
