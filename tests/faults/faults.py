"""
The faults: what can happen to a service and to the two servers it stands between. Those that a service with a spool
is made for stand in database_faults.py and spool_faults.py.

Each is a generator that does its harm step by step, so that several can go on at once: it yields a number of seconds
to wait, or an until(…). Its parameters are drawn before anything starts. Must leave nothing broken at its end that
Sandbox.heal() does not mend, and must never judge what the harm led to.
"""
import inspect
import math
import signal
from dataclasses import dataclass

FAULTS = {}
# Seconds that something may take which nothing disturbs, and which somebody may disturb.
SOON, LATE = 20, 45


@dataclass(frozen=True)
class until:
    """A fault goes on when the condition holds; not in time is a finding, or a matter of course (at_most)."""
    condition: callable
    what: str
    seconds: float = SOON
    at_most: bool = False


@dataclass(frozen=True)
class Kind:
    name: str
    harm: callable
    words: str
    draws: dict
    needs: frozenset
    alone: bool
    # Whether it is drawn with others; and whether alone it is run with little patience before the spool.
    mixed: bool
    spools: bool

    def draw(self, random):
        """The parameters of one occurrence."""
        return {name: draw(random) for name, draw in self.draws.items()}


def fault(name=None, words=None, needs=(), alone=False, mixed=True, spools=False, **draws):
    """Puts a generator function into the table. alone: nothing else may go on meanwhile."""
    def put(harm):
        kind = Kind(name or harm.__name__, harm, words or " ".join(inspect.getdoc(harm).split()), draws,
                    frozenset(needs), alone, mixed, spools)
        FAULTS[kind.name] = kind
        return harm
    return put


# How parameters are drawn. Rounded, so that what is printed is what is done.

def between(low, high):
    """Small values as often as large ones."""
    return lambda random: round(math.exp(random.uniform(math.log(low), math.log(high))), 3)


def count_between(low, high):
    return lambda random: int(math.exp(random.uniform(math.log(low), math.log(high))))


def one_of(*values):
    return lambda random: random.choice(values)


def at_once_or_up_to(seconds):
    return lambda random: random.choice([0, round(random.uniform(0.1, seconds), 3)])


writer = one_of(0, 1)
# The number of writers may be another after a start; mostly it is not.
another_number = one_of(None, None, None, 1, 3, 4)


def _pid(world, number):
    writers = world.system.pids()["writers"]
    return writers[number % len(writers)]


# Processes

@fault(needs=["writers"], number=writer)
def kill_writer(world, number):
    """kill -9 of one writer"""
    world.signal(_pid(world, number), signal.SIGKILL, f"writer {number}")
    yield 0


@fault(needs=["writers"])
def kill_all_writers(world):
    """kill -9 of all writers"""
    for number, pid in enumerate(world.system.pids()["writers"]):
        world.signal(pid, signal.SIGKILL, f"writer {number}")
    yield 0


@fault(wait=at_once_or_up_to(2), writers=another_number)
def kill_supervisor(world, wait, writers):
    """kill -9 of the main process, and a new start"""
    world.note("kill -9 of the main process")
    world.system.kill()
    yield wait
    world.note("start")
    world.system.start(writers=writers)


@fault(needs=["writers"], wait=at_once_or_up_to(2))
def kill_everything(world, wait):
    """kill -9 of the supervisor and all writers at once, and a new start"""
    writers = world.system.pids()["writers"]
    world.note("kill -9 of the main process")
    world.system.kill()
    for number, pid in enumerate(writers):
        world.signal(pid, signal.SIGKILL, f"writer {number}")
    yield wait
    world.note("start")
    world.system.start()


@fault(needs=["writers"], number=writer, seconds=between(0.1, 10))
def pause_writer(world, number, seconds):
    """SIGSTOP of a writer, SIGCONT later"""
    send = world.signal(_pid(world, number), signal.SIGSTOP, f"writer {number}")
    yield seconds
    send(signal.SIGCONT)


@fault(seconds=between(0.1, 10))
def pause_supervisor(world, seconds):
    """SIGSTOP of the main process, SIGCONT later"""
    send = world.signal(world.system.pids()["supervisor"], signal.SIGSTOP, "the main process")
    yield seconds
    send(signal.SIGCONT)


@fault(needs=["writers"], number=writer, wait=at_once_or_up_to(1), seconds=between(0.1, 5))
def pause_writer_over_a_new_supervisor(world, number, wait, seconds):
    """SIGSTOP of a writer, kill -9 of its supervisor, a new start, SIGCONT later"""
    send = world.signal(_pid(world, number), signal.SIGSTOP, f"writer {number}")
    yield wait
    world.note("kill -9 of the main process")
    world.system.kill()
    world.note("start")
    world.system.start()
    yield seconds
    send(signal.SIGCONT)


@fault(wait=at_once_or_up_to(1), writers=another_number)
def terminate(world, wait, writers):
    """SIGTERM, and a new start"""
    world.note("SIGTERM to the main process")
    status = world.system.terminate()
    yield until(lambda: status() is not None, "the end after SIGTERM", LATE)
    world.note(f"it ended with status {status()}")
    yield wait
    world.note("start")
    world.system.start(writers=writers)


@fault(needs=["state directory"], alone=True)
def second_on_the_state_directory(world):
    """a second one on the same state directory"""
    yield until(world.system.is_ready, "the first is ready")
    first = world.system.pids()["supervisor"]
    second = world.system.start_second(own_state_directory=False)
    yield until(lambda: second.poll() is not None, "the second gives up")
    if second.returncode != 75:
        world.complain(f"the second ended with status {second.returncode}, not 75")
    if world.system.pids()["supervisor"] != first:
        world.complain("the first did not go on")


@fault(alone=True, seconds=between(1, 5))
def second_with_the_client_id(world, seconds):
    """a second one with the same client id and database, killed later"""
    yield until(world.system.is_ready, "the first is ready")
    second = world.system.start_second()
    world.note(f"a second one, pid {second.pid}")
    yield seconds
    second.kill()
    second.wait()
    world.note("the second is killed")


# Servers

@fault(away=at_once_or_up_to(2))
def restart_broker(world, away):
    """the broker stopped and started"""
    world.note("the broker is stopped")
    world.broker.stop()
    yield away
    world.start_broker()


def _restart_postgres(world, mode, away):
    world.stop_database(mode)
    yield away
    world.start_database()


@fault(away=at_once_or_up_to(2))
def restart_postgres_fast(world, away):
    """PostgreSQL restarted, fast mode"""
    return _restart_postgres(world, "fast", away)


@fault(away=at_once_or_up_to(2))
def restart_postgres_immediate(world, away):
    """PostgreSQL restarted, immediate mode"""
    return _restart_postgres(world, "immediate", away)


@fault(whom=one_of("all", 0, 1))
def terminate_backends(world, whom):
    """pg_terminate_backend"""
    ports = sorted(world.database_link.server_side_ports())
    chosen = ports if whom == "all" else ports[whom:whom + 1]
    # Its own words for what is not there, and for a server that is not.
    try:
        ended = world.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                          " WHERE client_port = ANY(%s)", chosen)
        world.note(f"pg_terminate_backend of {len(ended)}")
    except world.away as e:
        world.note(f"no pg_terminate_backend: {e}")
    yield 0


# The network. The broker's side and the database's have the same faults; how many bytes go which way differs.

def _network(side, link_of, most):
    @fault(f"{side}_cut", f"connections to the {side} cut", abruptly=one_of(True, False))
    def cut(world, abruptly):
        world.note(f"{link_of(world).cut(abruptly)} connections to the {side} cut")
        yield 0

    @fault(f"{side}_stalled", f"the way to the {side} stalled",
           direction=one_of("up", "down", "both"), seconds=between(0.1, 8))
    def stall(world, direction, seconds):
        directions = ("up", "down") if direction == "both" else (direction,)
        world.note(f"the way to the {side} is stalled, {direction}")
        link_of(world).stall(*directions)
        yield seconds
        link_of(world).flow(*directions)
        world.note(f"the way to the {side} is free, {direction}")

    @fault(f"{side}_cut_after_bytes", f"a connection to the {side} cut after so many bytes",
           direction=one_of("up", "down"), share=between(0.00001, 1), abruptly=one_of(True, False))
    def cut_after(world, direction, share, abruptly):
        n, link = 1 + int(share * most[direction]), link_of(world)
        link.cut_after(direction, n, abruptly)
        yield until(lambda: not link.armed, "so many bytes", 3, at_most=True)
        world.note(f"a connection to the {side} is cut after {n} bytes {direction}" if not link.armed
                   else f"no {n} bytes went {direction}")
        link.disarm()

    @fault(f"{side}_unreachable", f"connections to the {side} cut, new ones refused for a time",
           seconds=between(0.1, 3), abruptly=one_of(True, False))
    def unreachable(world, seconds, abruptly):
        link_of(world).refuse()
        world.note(f"{link_of(world).cut(abruptly)} connections to the {side} cut, new ones refused")
        yield seconds
        link_of(world).accept()
        world.note(f"the {side} can be reached")


_network("broker", lambda world: world.broker_link, {"up": 40_000, "down": 400_000})
_network("database", lambda world: world.database_link, {"up": 400_000, "down": 4_000})
