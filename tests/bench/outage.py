"""How fast messages go into the spool while the database takes nothing, and out of it when it does again.

Into it: the clock runs from "mqtt connected" to the last time that the spool was written, with the table locked.
Out of it: from the release of the lock to PostgreSQL's timestamp of the last commit.
"""

import time

import drain
from processes import wait_until
from publisher import publish
from service import Service
from spoolfile import PARTS, spooled
from workload import USUAL

OPTIONS = ("--spool-after", "1ms", "--spool-limit", "4GiB")
QUIET = 0.5


def last_written(state):
    return max((state / part).stat().st_mtime for part in PARTS if (state / part).exists())


def spool(broker, database, command, state, rows):
    """state: the command's state directory. Returns two results: into the spool, and out of it."""
    with Service(command) as service:
        service.wait_event("mqtt_subscribed")
        service.stop()
    publish(broker, USUAL.messages(rows))
    drain.fresh_table(database)
    with database.locked() as holder, Service([*command, *OPTIONS]) as service:
        start = service.wait_event("mqtt_connected")
        wait_until(lambda: time.time() - last_written(state) > QUIET and spooled(state) >= rows, 120, "all is spooled", 0.1)
        into = drain.Result(rows, last_written(state) - start)
        released = time.time()
        holder.rollback()
        drain.wait_for_rows(service, database, rows)
        service.sample_memory()
        peak = service.peak_resident()
        service.stop()
    out = drain.Result(rows, drain.last_commit(database) - released, service.cpu_seconds, peak, service.peak_pss)
    return into, out
