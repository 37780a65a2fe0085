"""How fast a backlog gets into the table, and how fast psql's \\copy puts the same rows there.

A backlog is what the broker has queued for a session whose client is away. The clock runs from the
service's "mqtt connected" to PostgreSQL's timestamp of the last commit (track_commit_timestamp),
which is taken just before that commit is flushed: one fsync too early, in seconds of run time.
Nothing is polled meanwhile but the size of the table's file.
"""

import re
import subprocess
import time
from dataclasses import dataclass

from processes import clean_environment
from publisher import publish
from service import Service
from workload import TABLE

GROWTH_POLL = 0.02
MEMORY_POLL = 0.2
# A table that has not grown for this long is counted; a service that does not finish is given up.
QUIET = 0.2
GIVE_UP = 20


@dataclass
class Result:
    rows: int
    seconds: float
    cpu_seconds: float = None
    peak_resident: int = None
    peak_pss: int = None


def fresh_table(database):
    database.query("DROP TABLE IF EXISTS telemetry")
    database.query(TABLE)
    database.query("CHECKPOINT")


def copy(database, path, rows):
    """psql's \\copy from a file into an empty table, timed by psql itself: its own start does not count."""
    done = subprocess.run(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", r"\timing on", "-c",
                           rf"\copy telemetry from '{path}'", database.dsn], check=True,
                          capture_output=True, text=True, env=clean_environment())
    milliseconds = re.search(r"Time: ([\d.]+) ms", done.stdout)[1]
    assert database.count() == rows
    return Result(rows, float(milliseconds) / 1000)


def drain(broker, database, command, messages, rows):
    """Runs the command twice: to make the session, and to empty what was queued for it meanwhile."""
    with Service(command) as service:
        service.wait_event("mqtt_subscribed")
        service.stop()
    publish(broker, messages)
    fresh_table(database)
    with Service(command) as service:
        start = service.wait_event("mqtt_connected")
        wait_for_rows(service, database, rows)
        service.sample_memory()
        peak_resident = service.peak_resident()
        service.stop()
    return Result(rows, last_commit(database) - start, service.cpu_seconds, peak_resident,
                  service.peak_pss)


def wait_for_rows(service, database, rows):
    size, grown, weighed = 0, time.monotonic(), 0.0
    while True:
        now = time.monotonic()
        if now - weighed > MEMORY_POLL:
            service.sample_memory()
            weighed = now
        size_now = database.value("SELECT pg_relation_size('telemetry')")
        if size_now != size:
            size, grown = size_now, now
        elif now - grown > QUIET:
            count = database.count()
            if count >= rows:
                break
            if now - grown > GIVE_UP:
                raise RuntimeError(f"stuck at {count} of {rows} rows:\n" + "".join(service.lines[-20:]))
        time.sleep(GROWTH_POLL)
    distinct = database.value("SELECT count(*) FROM (SELECT DISTINCT payload->>'n' FROM telemetry) d")
    if (count, distinct) != (rows, rows):
        raise RuntimeError(f"{rows} messages became {count} rows, {distinct} of them different")


def last_commit(database):
    return database.value("SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin)))::float8"
                          " FROM telemetry")
