"""
Directed schedules: nothing is left to chance in them. Each brings the service into the one state in which a certain
broken promise must show.

A directed schedule is a generator over the same world as a fault, but it makes its load itself, so that it knows what
is where when the harm is done. Must leave everything to Sandbox.heal() that the intact program survives: the same
schedule has to pass with it.
"""
import contextlib
import inspect
import signal
from dataclasses import dataclass, field

from faults import LATE, until

DIRECTED = {}

# COMMIT waits for whoever holds this lock. Two numbers: the locks of one are others, and may be the system's own.
SLOW_COMMIT = """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN PERFORM pg_advisory_xact_lock_shared(70, 1); RETURN NULL; END$$;
    CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON telemetry DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION wait()
"""


@dataclass(frozen=True)
class Directed:
    name: str
    harm: callable
    words: str
    needs: frozenset
    options: dict = field(default_factory=dict)
    patience: float = 8
    disk: str = None
    alone: bool = True


def directed(needs=("writers",), patience=8, disk=None, **options):
    """
    options: of ingestd, beside the usual ones. patience: seconds without a row after which the rest is lost. disk: see
    SmallDisk.
    """
    def put(harm):
        words = " ".join(inspect.getdoc(harm).split())
        DIRECTED[harm.__name__] = Directed(harm.__name__, harm, words, frozenset(needs), options, patience,
                                           disk)
        return harm
    return put


# States to wait for

def stored(world, n):
    return until(lambda: world.system.stored() >= n, f"{n} are stored")


def received(world):
    """All that was published is acknowledged to the publisher and read by the service."""
    return until(lambda: world.load.idle() and world.broker_link.client_has_read_all(), "the service has read all")


def a_moment(seconds=1):
    """For what must not happen: where it happens, it does within this time."""
    return until(lambda: False, "a moment", seconds, at_most=True)


def _waiters(connection):
    return connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0]


def _to_writers(world, signum):
    """Sends it to all; returns a function that sends another to the very same."""
    sends = [world.signal(pid, signum, f"writer {number}")
             for number, pid in enumerate(world.system.pids()["writers"])]
    return lambda signum: [send(signum) for send in sends]


def kill_supervisor(world):
    world.note("kill -9 of the main process")
    world.system.kill()


def kill_everything(world):
    later = _to_writers(world, signal.SIGSTOP)
    kill_supervisor(world)
    later(signal.SIGKILL)


# The schedules

@directed()
def killed_before_the_commit(world):
    """What waits for the database is lost with the processes, unless the broker has it still."""
    with world.database.locked() as holder:
        world.load.publish(2000)
        yield received(world)
        # An acknowledgement too many would go out now.
        yield until(lambda: world.broker_link.passed["up"] >= 4 * 2000, "acknowledgements", 1, at_most=True)
        kill_everything(world)
        holder.rollback()
    world.system.start()
    yield 0


@directed()
def one_writer_behind(world):
    """One lane stands still while the other goes on: what belongs together must not overtake itself."""
    send = world.signal(world.system.pids()["writers"][0], signal.SIGSTOP, "writer 0")
    world.load.publish(2000)
    yield until(lambda: world.system.stored() >= 200, "the other lane's are stored", 3, at_most=True)
    yield a_moment(0.3)
    send(signal.SIGCONT)
    world.load.publish(1000)


@directed()
def writer_killed_with_records_in_its_channel(world):
    """What a writer was sent and did not read is gone with it, but not from the backlog."""
    later = _to_writers(world, signal.SIGSTOP)
    world.load.publish(2000)
    yield received(world)
    yield a_moment(0.3)
    later(signal.SIGKILL)


@directed()
def writer_killed_between_commit_and_its_answer(world):
    """The rows are in the table and nobody has been told: only the database knows it."""
    yield from _commit_without_an_answer(world)
    _to_writers(world, signal.SIGKILL)
    world.database_link.flow()


@directed()
def database_cut_between_commit_and_its_answer(world):
    """The same with the connection instead of the writer: COMMIT went through, its answer did not."""
    yield from _commit_without_an_answer(world)
    world.database_link.cut()
    world.database_link.flow()


@directed()
def supervisor_killed_between_commit_and_its_answer(world):
    """The same once more, and nobody is left who could ask but a new supervisor."""
    yield from _commit_without_an_answer(world)
    kill_everything(world)
    world.database_link.cut()
    world.database_link.flow()
    world.system.start()


@contextlib.contextmanager
def _slow_commit(world):
    """No COMMIT goes through before _let_commit()."""
    world.ask(SLOW_COMMIT)
    with world.database.connect() as holder:
        holder.execute("SELECT pg_advisory_lock(70, 1)")
        yield holder


def _let_commit(holder):
    holder.execute("SELECT pg_advisory_unlock(70, 1)")


def _commit_under_way(world, holder):
    """Each writer gets all of its records at once, so that its first transaction holds them all."""
    later = _to_writers(world, signal.SIGSTOP)
    world.load.publish(400)
    yield received(world)
    yield a_moment(0.3)
    later(signal.SIGCONT)
    yield until(lambda: _waiters(holder) >= len(world.system.pids()["writers"]), "all COMMITs wait")


def _commit_without_an_answer(world):
    """Publishes 400. At the end some are committed, and no answer of the database gets through."""
    with _slow_commit(world) as holder:
        yield from _commit_under_way(world, holder)
        world.database_link.stall("down")
        _let_commit(holder)
        yield until(lambda: _waiters(holder) == 0 and world.system.stored() > 0, "something is committed")
    yield a_moment(0.3)
    world.note(f"{world.system.stored()} are committed, and nobody was told")


@directed()
def broker_cut_with_acknowledgements_under_way(world):
    """Everything is committed and nothing acknowledged when the connection ends: the broker sends it all again."""
    world.broker_link.stall("up")
    world.load.publish(2000)
    yield stored(world, 2000)
    yield a_moment(0.5)
    world.broker_link.cut()
    world.broker_link.flow()
    yield until(world.broker_link.client_has_read_all, "the service has read all")


@directed()
def supervisor_killed_with_acknowledgements_under_way(world):
    """The same, and the process that knew it is gone: only its state directory knows it."""
    world.broker_link.stall("up")
    world.load.publish(2000)
    yield stored(world, 2000)
    yield a_moment(0.5)
    kill_everything(world)
    world.broker_link.cut()
    world.broker_link.flow()
    world.system.start()
    yield until(world.system.is_ready, "it is ready again")


@directed()
def old_writer_wakes_after_its_successor(world):
    """A writer that was stopped with records in its channel wakes when a new supervisor has stored them."""
    later = _to_writers(world, signal.SIGSTOP)
    world.load.publish(800)
    yield received(world)
    yield a_moment(0.5)
    kill_supervisor(world)
    world.system.start()
    yield stored(world, 800)
    later(signal.SIGCONT)
    # It reads to the end of its channel, and would commit that.
    yield until(lambda: world.system.stored() > 800, "what it must not store", 3, at_most=True)


@directed()
def old_writer_wakes_in_its_transaction(world):
    """The same, but it was stopped when its transaction had begun: it may end that, or its successor may."""
    with world.database.locked() as holder:
        world.load.publish(800)
        yield received(world)
        yield until(lambda: _waiters(holder) > 0, "a writer waits")
        later = _to_writers(world, signal.SIGSTOP)
        kill_supervisor(world)
        holder.rollback()
    world.system.start()
    yield until(lambda: world.system.stored() >= 800, "the new one has stored them", 3, at_most=True)
    later(signal.SIGCONT)


@directed()
def writer_killed_while_its_commit_is_under_way(world):
    """The server goes on with a COMMIT whose client is dead: the successor has to wait for how that ends."""
    with _slow_commit(world) as holder:
        yield from _commit_under_way(world, holder)
        _to_writers(world, signal.SIGKILL)
        yield a_moment()
        _let_commit(holder)


@directed()
def everything_killed_while_a_commit_is_under_way(world):
    """The same for a new supervisor: what the old stream's backends are about to commit is not known yet."""
    with _slow_commit(world) as holder:
        yield from _commit_under_way(world, holder)
        kill_everything(world)
        world.system.start()
        yield a_moment()
        _let_commit(holder)


# QoS 0 and no spool: what was received before SIGTERM never comes again, so all of it has to be committed before the
# end.

@directed(qos=0, spool_limit=0)
def stopped_with_a_full_queue(world):
    """QoS 0, and at SIGTERM most of it is not with the writers yet: the supervisor has to hand it over."""
    with world.database.locked() as holder:
        world.load.publish(20_000)
        yield received(world)
        yield until(lambda: _waiters(holder) > 0, "a writer waits")
        status = world.system.terminate()
        yield until(world.system.is_stopping, "it has begun to stop")
        yield a_moment(0.3)
        holder.rollback()
    yield from _ended_and_started_again(world, status)


@directed(qos=0, drain_timeout="1s", spool_limit=0)
def stopped_with_records_at_the_writers(world):
    """QoS 0, and when the writers are told to end they hold all of it: they have to commit it first."""
    with world.database.locked() as holder:
        world.load.publish(800)
        yield received(world)
        yield until(lambda: _waiters(holder) > 0, "a writer waits")
        status = world.system.terminate()
        yield until(lambda: status() is not None or world.system.has_drained(), "it has drained its queue")
        yield a_moment(0.3)
        holder.rollback()
    yield from _ended_and_started_again(world, status)


def _ended_and_started_again(world, status):
    yield until(lambda: status() is not None, "the end after SIGTERM", LATE)
    world.note(f"it ended with status {status()}")
    world.system.start()
    yield until(world.system.is_ready, "it is ready again")
