"""What each thing that can be chosen costs or brings, everything else left at its default: the sizing advice."""

from workload import USUAL, Workload

WRITERS, BATCH, WINDOW, PAYLOAD, TOPICS = "writers", "all batches", "receive maximum", "payload", "topics"
# A batch of one size only: it does not grow.
OPTIONS = {WRITERS: ("--writers",), BATCH: ("--batch-size", "--batch-limit"), WINDOW: ("--receive-maximum",)}
VALUES = {WRITERS: (1, 2, 4), BATCH: (100, 500, 2000, 10_000), WINDOW: (100, 500, 5000, 65535),
          PAYLOAD: (20, 85, 1024, 65536, 4 << 20), TOPICS: (1, 100, 10_000, 100_000)}


def title(what, value):
    if what == PAYLOAD:
        for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
            if value >= size:
                return f"{what} {value // size} {unit}"
        return f"{what} {value} bytes"
    return f"{what} {value:,}"


def workload_of(what, value):
    if what == PAYLOAD:
        return Workload(size=value)
    return Workload(topics=value) if what == TOPICS else USUAL


def rows(smoke=False):
    """(title, what, value) of every row; of a smoke test, of one value each."""
    return [(title(what, value), what, value) for what, values in VALUES.items()
            for value in (values[:1] if smoke else values)]


def measure(bench, smoke=False):
    """One round. A row's own COPY goes before it where its workload is not the usual one."""
    for name, what, value in rows(smoke):
        workload = workload_of(what, value)
        if workload != USUAL:
            bench.copy(workload)
        options = [word for option in OPTIONS.get(what, ()) for word in (option, str(value))]
        bench.drain(name, options, workload)
