"""
What can happen to a service that has records in its spool, or is about to put them there: see faults.py, whose table
these are put into.

Each waits for the state that it is about, but not for ever: with other faults around, or without a spool, that may not
come, and then the harm is done all the same.
"""
import signal

from database_faults import stored_rows
from faults import LATE, another_number, at_once_or_up_to, between, count_between, fault, one_of, until

WHOM = ("the main process", "all writers", "everything")


def spooling_begins(world):
    """Since the current process's start."""
    return until(lambda: world.system.is_spooling(), "it spools", 10, at_most=True)


def _kill(world, whom):
    """True when the main process has to be started again."""
    writers = world.system.pids()["writers"] if whom != "the main process" else []
    if whom != "all writers":
        world.note("kill -9 of the main process")
        world.system.kill()
    for number, pid in enumerate(writers):
        world.signal(pid, signal.SIGKILL, f"writer {number}")
    return whom != "all writers"


@fault(needs=["writers", "spool"], spools=True, mode=one_of("fast", "immediate"), whom=one_of(*WHOM),
       after=at_once_or_up_to(1.5), wait=at_once_or_up_to(1), away=at_once_or_up_to(2), writers=another_number)
def killed_while_spooling(world, mode, whom, after, wait, away, writers):
    """kill -9 while the database is away and records go to the spool, and a new start"""
    world.stop_database(mode)
    yield spooling_begins(world)
    yield after
    if _kill(world, whom):
        yield wait
        world.note("start")
        world.system.start(writers=writers)
    yield away
    world.start_database()


@fault(needs=["writers", "spool"], spools=True, whom=one_of(*WHOM), collected=between(0.3, 4),
       rows=count_between(1, 10_000), wait=at_once_or_up_to(1), writers=another_number, times=one_of(1, 1, 2, 3))
def killed_while_draining(world, whom, collected, rows, wait, writers, times):
    """kill -9 while the spool is being emptied into the database, and a new start"""
    world.stop_database("fast")
    yield spooling_begins(world)
    yield collected
    world.start_database()
    for _ in range(times):
        before = stored_rows(world) or 0
        yield until(lambda: (stored_rows(world) or 0) >= before + rows, f"{rows} more are stored", 5, at_most=True)
        if _kill(world, whom):
            yield wait
            world.note("start")
            world.system.start(writers=writers)


@fault(needs=["writers", "spool"], spools=True, mode=one_of("fast", "immediate", "stopped"),
       after=at_once_or_up_to(2), database=one_of("back before the start", "back after the start"),
       wait=at_once_or_up_to(1.5), writers=another_number)
def terminated_with_the_database_away(world, mode, after, database, wait, writers):
    """SIGTERM with the database away, and a new start before or after it is back"""
    if mode == "stopped":
        world.freeze_database()
    else:
        world.stop_database(mode)
    yield after
    status = world.system.terminate()
    world.note("SIGTERM to the main process")
    yield until(lambda: status() is not None, "the end after SIGTERM", LATE)
    world.note(f"it ended with status {status()}")
    if database == "back before the start":
        _database_is_back(world)
        yield wait
    world.note("start")
    world.system.start(writers=writers)
    if database == "back after the start":
        yield wait
        _database_is_back(world)


def _database_is_back(world):
    world.thaw_database()
    world.start_database()


@fault(needs=["state directory", "spool"], spools=True, disk=one_of("state 64", "spool 64"),
       database=one_of("there", "away", "away"), seconds=between(0.5, 6), longer=at_once_or_up_to(2))
def disk_full(world, disk, database, seconds, longer):
    """the disk of the state directory, or of the spool alone, full for a time"""
    if database == "away":
        world.stop_database("fast")
        yield spooling_begins(world)
    # Of several in one run, the first one's disk is the one.
    if not world.disk.fill():
        world.note("no small disk can be had here: nothing is filled")
    else:
        world.note("the disk is full")
    yield seconds
    world.disk.empty()
    world.note("the disk has room")
    if database == "away":
        yield longer
        world.start_database()
