"""
Directed schedules for the spool, as in directed.py, whose table these are put into: the database is away, records go to
the disk, and then comes the one thing that a certain broken promise does not survive.
"""
from directed import kill_everything, kill_supervisor, a_moment, directed, received, stored
from faults import LATE, until
from processes import PATIENCE, cpu_seconds

NEEDS = ("writers", "spool")
HURRY = {"spool_after": "100ms"}
# Small transactions, so that what is to be seen on the way out of the spool lasts.
SLOWLY = {**HURRY, "batch_size": 20, "batch_limit": 20}
PUBACK = 4


def _spooled(world, n):
    """Publishes n more. They are in the spool and acknowledged."""
    before = world.broker_link.passed["up"]
    world.load.publish(n)
    yield received(world)
    yield until(lambda: world.broker_link.passed["up"] >= before + PUBACK * n, f"{n} are acknowledged")


@directed(needs=NEEDS, disk="spool 64", **HURRY)
def everything_killed_with_the_spool_on_a_full_disk(world):
    """What the disk does not take is not acknowledged: the broker has it when the processes are gone."""
    world.stop_database("fast")
    yield from _spooled(world, 1000)
    if not world.disk.fill():
        world.note("no small disk can be had here: nothing is filled")
    world.load.publish(2000)
    # Not all of it is read. An acknowledgement too many would go out now.
    yield a_moment(1.5)
    kill_everything(world)
    world.disk.empty()
    world.start_database()
    world.system.start()
    yield until(world.system.is_ready, "it is ready again")


@directed(needs=NEEDS, disk="spool 64", **HURRY)
def stopped_with_what_is_stored_still_in_the_spool(world):
    """Nothing can be removed from it before the stop: only the database's rows tell that it is stored already."""
    world.stop_database("fast")
    yield from _spooled(world, 2000)
    if not world.disk.fill():
        world.note("no small disk can be had here: nothing is filled")
    world.start_database()
    yield stored(world, 2000)
    # What is stored would be removed now.
    yield a_moment(0.5)
    status = world.system.terminate()
    yield until(lambda: status() is not None, "the end after SIGTERM", LATE)
    world.disk.empty()
    world.system.start()
    yield until(world.system.is_ready, "it is ready again")


@directed(needs=NEEDS, **SLOWLY)
def killed_twice_while_the_spool_is_emptied(world):
    """What the first has left goes before what the second has spooled, for the third as well."""
    world.stop_database("fast")
    for _ in range(6):
        yield from _spooled(world, 1000)
    kill_supervisor(world)
    world.system.start()
    yield from _spooled(world, 6000)
    world.start_database()
    yield stored(world, 1500)
    kill_everything(world)
    world.system.start()
    yield until(world.system.is_ready, "it is ready again")


@directed(needs=NEEDS, disk="spool 64", **HURRY)
def idle_after_the_spool_could_not_be_written(world):
    """The database came back first, so that nothing is to be written any more: it is not busy with trying."""
    filled = world.disk.fill()
    world.stop_database("fast")
    world.load.publish(5000)
    if filled:
        yield until(lambda: world.system.has_logged("spool_failed"), "the spool cannot be written")
    world.start_database()
    yield stored(world, 5000)
    supervisor = world.system.pids()["supervisor"]
    before = cpu_seconds(supervisor)
    yield a_moment(2)
    used = cpu_seconds(supervisor) - before
    if used > 0.3 * PATIENCE:
        world.complain(f"it used {used:.2f} s of CPU in 2 s with nothing to do")
