"""
received = committed + dead_lettered + spooled + in flight, wherever the log shows all of it, and over a stop and the
next start.

Pure: events in, complaints out. Must never explain a difference away: what a line does not account for is in flight,
and only a line that says so accounts for that.
"""
KEPT = ("committed", "dead_lettered", "spooled")


def _number(event, key):
    return int(event[key])


def _missing(event):
    return _number(event, "received") - sum(_number(event, key) for key in KEPT)


def of_the_lines(events):
    """Every line that shows all five."""
    for event in events:
        if all(key in event for key in ("received", "in_flight", *KEPT)):
            if _missing(event) != _number(event, "in_flight"):
                yield f"the balance does not hold: {event.name} {dict(event)}"


def of_the_end(events, status):
    """shutdown_complete: what is missing is in flight, which records_left says; nothing is where the status is 0."""
    end = next(event for event in events if event.name == "shutdown_complete")
    left = sum(_number(event, "qos0_lost") + _number(event, "qos1_kept") for event in events
               if event.name == "records_left" and "qos1_kept" in event)
    if _missing(end) != left:
        yield f"the balance does not hold at the end: {dict(end)}, in flight {left}"
    if status == 0 and (_missing(end) != 0 or _number(end, "unacknowledged") != 0):
        yield f"exit status 0, and not everything was durable and acknowledged: {dict(end)}"


def of_two_runs(before, after):
    """
    What a stop leaves in the spool the next start finds there. It may find more: the first records of a row can be
    committed, which the database tells it, and with a disk that takes no writes whole rows.
    """
    ends = [event for event in before if event.name == "shutdown_complete"]
    # It has come as far as that only if it went on behind it.
    if not ends or not any(event.name == "writer_started" for event in after):
        return
    found = sum(_number(event, "records") for event in after if event.name == "spool_found")
    left = _number(ends[0], "spooled")
    could_not_remove = any(event.name == "spool_failed" for event in before)
    if found < left or (left == 0 and found > 0 and not could_not_remove):
        yield f"it has found {found} records in the spool, and {left} were left there"
