"""
Every step between reading a PUBLISH and writing its PUBACK, and of stopping, as a place where a process is
killed, stopped, or fails: nothing is lost and nothing is stored twice.

The places are the FAILPOINT("…") of the sources, in a build of its own (make FAILPOINTS=1). Every one goes
through the same life: a run that is killed with messages in hand, a run with the failpoint, one without.
"""
import os
import re
import signal
import threading

import pytest

import daemon as daemon_module
from processes import ROOT, SANITIZED, make, state_of, wait_until
from publisher import numbered, publish
from wire import Wire

pytestmark = [pytest.mark.slow, pytest.mark.skipif(SANITIZED, reason="one build with failpoints is enough")]

PROGRAM = ROOT / "build.failpoints" / "ingestd"
SOURCES = [p for d in ("supervisor", "worker") for p in sorted((ROOT / d).glob("*.c"))]
PLACES = sorted({name for p in SOURCES for name in re.findall(r'FAILPOINT\("(\w+)"\)', p.read_text())})
# Those on the way of a record through the spool.
SPOOLING = [name for name in PLACES if "spool" in name or "row_is" in name]
# Those of a start without a database.
IN_DOUBT = [name for name in PLACES if "doubt" in name]
FIRST, SECOND, THIRD = 400, 600, 700
BAD = 10
# Every so many-th is refused by the table.
POISON = 40


def test_there_are_places_in_both_programs_and_each_name_stands_once():
    for directory in ("supervisor", "worker"):
        assert len([p for p in SOURCES if p.parent.name == directory and "FAILPOINT(" in p.read_text()]) >= 3
    names = [name for p in SOURCES for name in re.findall(r'FAILPOINT\("(\w+)"\)', p.read_text())]
    assert len(names) == len(set(names)) >= 25


def test_a_build_without_failpoints_has_none_of_them():
    for program in (daemon_module.PROGRAM, daemon_module.WRITER):
        assert b"INGESTD_FAILPOINT" not in program.read_bytes()


@pytest.fixture(scope="module")
def build():
    """Made by `make check` before the tests; here for those who run this file alone."""
    make("FAILPOINTS=1", "all")
    return PROGRAM


class Lives:
    """ingestd over several lives on one state directory, session and table."""

    def __init__(self, broker, database, home):
        self.database, self.home = database, home
        self.wire = Wire(broker.port)
        self.once = home / "once"
        self.once.mkdir()
        self.daemon = None
        self.logs = []

    def start(self, failpoint=None, **options):
        environment = {"INGESTD_FAILPOINT": failpoint, "INGESTD_FAILPOINT_ONCE": self.once} if failpoint else {}
        self.daemon = daemon_module.Ingestd(program=PROGRAM, broker=self.wire.url, database=self.database.dsn,
                                            subscribe="t/#", state_dir=self.home / "state", client_id="failpoint",
                                            batch_size=100, writer_timeout="4s", env=environment, **options)
        self.logs.append(self.daemon)
        return self.daemon

    def is_over(self):
        return self.daemon.process.poll() is not None

    def end(self):
        """Of the one that runs, if it does: a stop, however it ends."""
        if not self.is_over():
            self.daemon.process.send_signal(signal.SIGTERM)
            wait_until(self.is_over, 40, "it stops")

    def is_cut_off(self):
        """The failpoint has cut its connection, and no other is made while the wire is stalled."""
        names = [e.name for e in self.daemon.events() if e.name in ("mqtt_connected", "mqtt_connection_lost")]
        return names[-1:] == ["mqtt_connection_lost"]

    def visited(self, place):
        """The pid that came to the place, or None."""
        try:
            return int((self.once / place).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def close(self):
        for d in self.logs:
            d.clean_up()
        self.wire.close()


@pytest.fixture
def lives(build, broker, database, tmp_path):
    database.create_numbered_table()
    database.query(f"ALTER TABLE telemetry ADD CONSTRAINT poison CHECK (mod((payload->>'n')::int, {POISON}) <> 1)")
    lives = Lives(broker, database, tmp_path)
    yield lives
    lives.close()


def wake(lives, place, done):
    """What stops itself is woken again, as soon as it has stood still for a moment."""
    while not done.wait(0.05):
        pid = lives.visited(place)
        state = state_of(pid) if pid else None
        if state and state[0] in "tT" and not done.wait(0.7):
            os.kill(pid, signal.SIGCONT)


def stored(database):
    """{n: how often}, over rows and dead letters."""
    rows = database.query("SELECT (payload->>'n')::int FROM telemetry WHERE payload ? 'n'")
    dead = database.query("SELECT substring(convert_from(payload, 'UTF8') from '[0-9]+')::int"
                          " FROM ingestd.dead_letter")
    found = {}
    for (n,) in [*rows, *dead]:
        found[n] = found.get(n, 0) + 1
    return found


def messages(n, start=0):
    """Numbered ones; some are no JSON and go to the dead letters."""
    for i, (topic, payload) in enumerate(numbered(n, start=start, topics=7)):
        yield topic, payload[:-1] if i < BAD else payload


@pytest.mark.parametrize("action", ["kill", "stop", "error"])
@pytest.mark.parametrize("place", sorted(set(PLACES) - set(SPOOLING) - set(IN_DOUBT)))
def test_nothing_is_lost_and_nothing_doubled(broker, database, lives, place, action):
    see(live, broker, database, lives, place, action)


@pytest.mark.parametrize("action", ["kill", "stop", "error"])
@pytest.mark.parametrize("place", SPOOLING)
def test_nothing_is_lost_and_nothing_doubled_on_the_way_through_the_spool(broker, database, lives, place, action):
    see(live_with_the_spool, broker, database, lives, place, action)


@pytest.mark.parametrize("action", ["kill", "stop", "error"])
@pytest.mark.parametrize("place", IN_DOUBT)
def test_nothing_is_lost_and_nothing_doubled_when_the_database_cannot_be_asked(broker, database, lives, place, action):
    see(live_in_doubt, broker, database, lives, place, action)


def see(live, broker, database, lives, place, action):
    done = threading.Event()
    waker = threading.Thread(target=wake, args=(lives, place, done), daemon=True)
    waker.start()
    try:
        live(broker, database, lives, place, action)
    except AssertionError:
        for d in lives.logs:
            print("----", d.log(), sep="\n")
        raise
    finally:
        done.set()
        waker.join()


def first_life(broker, database, lives):
    """Ends with messages received, some of them committed, none acknowledged."""
    first = lives.start(flush_timeout="1s")
    first.wait_log("mqtt_subscribed")
    lives.wire.stall("up")
    publish(broker, messages(FIRST // 2))
    wait_until(lambda: len(stored(database)) == FIRST // 2, 30, "half of the first is stored")
    with database.locked() as holder:
        publish(broker, messages(FIRST // 2, start=FIRST // 2))
        wait_until(lambda: lives.wire.count("down", "PUBLISH") >= FIRST, 30, "all of it was sent")
        first.kill()
        lives.wire.cut()
        lives.wire.flow()
        holder.rollback()


def live(broker, database, lives, place, action):
    first_life(broker, database, lives)

    # The life with the failpoint, which may end it at any time.
    daemon = lives.start(f"{place}:{action}")
    publish(broker, messages(SECOND - FIRST, start=FIRST))
    wait_until(lambda: lives.is_over() or len(stored(database)) == SECOND, 40, "the second is stored")
    if not lives.is_over():
        # A connection that breaks while acknowledgements are on their way.
        lives.wire.stall("up")
        publish(broker, messages((THIRD - SECOND) // 2, start=SECOND))
        wait_until(lambda: lives.is_over() or len(stored(database)) == SECOND + (THIRD - SECOND) // 2 or
                   lives.is_cut_off(), 40, "stored")
        lives.wire.cut()
        lives.wire.flow()
        publish(broker, messages((THIRD - SECOND) // 2, start=SECOND + (THIRD - SECOND) // 2))
        wait_until(lambda: lives.is_over() or len(stored(database)) == THIRD, 40, "the third is stored")
    else:
        publish(broker, messages(THIRD - SECOND, start=SECOND))
    lives.end()
    assert lives.visited(place), f"nothing comes to {place}"
    assert action != "kill" or daemon.process.returncode in (-signal.SIGKILL, 0, 75)

    see_the_rest(broker, database, lives, THIRD)


def see_the_rest(broker, database, lives, n):
    """One more life, that finds whatever there is."""
    last = lives.start()
    last.wait_log("mqtt_subscribed", 30)
    wait_until(lambda: len(stored(database)) >= n, 40, "all is stored")
    publish(broker, messages(50, start=n))
    wait_until(lambda: len(stored(database)) >= n + 50, 40, "and what comes afterwards as well")
    assert last.stop(40) == 0

    found = stored(database)
    assert sorted(found) == list(range(n + 50))
    assert {n: times for n, times in found.items() if times != 1} == {}
    assert_ordered(database)


def live_in_doubt(broker, database, lives, place, action):
    first_life(broker, database, lives)
    database.server.stop()
    daemon = lives.start(f"{place}:{action}", spool_after="100ms", flush_timeout="1s")
    publish(broker, messages(SECOND - FIRST, start=FIRST))
    wait_until(lambda: lives.visited(place), 30, f"it comes to {place}")
    wait_until(lambda: lives.is_over() or daemon.events("mqtt_subscribed"), 30, "it goes on, or not")
    database.start_server()
    lives.end()
    see_the_rest(broker, database, lives, SECOND)


def live_with_the_spool(broker, database, lives, place, action):
    # A life that ends with acknowledged messages in the spool, and some that are not acknowledged.
    first = lives.start(spool_after="100ms", flush_timeout="1s")
    first.wait_log("mqtt_subscribed")
    publish(broker, messages(FIRST // 2))
    wait_until(lambda: len(stored(database)) == FIRST // 2, 30, "half of the first is stored")
    with database.locked() as holder:
        publish(broker, messages(FIRST // 2, start=FIRST // 2))
        wait_until(lambda: lives.wire.count("up", "PUBACK") >= FIRST, 30, "all of it is acknowledged")
        lives.wire.stall("up")
        publish(broker, messages(SECOND - FIRST, start=FIRST))
        wait_until(lambda: lives.wire.count("down", "PUBLISH") >= SECOND, 30, "the rest was sent")
        first.kill()
        lives.wire.cut()
        lives.wire.flow()
        holder.rollback()

    # The life with the failpoint stores that, and has to spool once more.
    daemon = lives.start(f"{place}:{action}", spool_after="100ms", flush_timeout="1s")
    wait_until(lambda: lives.is_over() or len(stored(database)) == SECOND, 40, "the second is stored")
    if not lives.is_over():
        with database.locked() as holder:
            publish(broker, messages(THIRD - SECOND, start=SECOND))
            wait_until(lambda: lives.is_over() or lives.wire.count("up", "PUBACK") >= THIRD or lives.is_cut_off(), 40,
                       "the third is acknowledged")
            holder.rollback()
        wait_until(lambda: lives.is_over() or len(stored(database)) == THIRD, 40, "the third is stored")
    else:
        publish(broker, messages(THIRD - SECOND, start=SECOND))
    lives.end()
    assert lives.visited(place), f"nothing comes to {place}"
    see_the_rest(broker, database, lives, THIRD)


def assert_ordered(database):
    wrong = database.query("SELECT topic, n, before FROM (SELECT topic, (payload->>'n')::int AS n,"
                           " lag((payload->>'n')::int) OVER (PARTITION BY topic ORDER BY id) AS before"
                           " FROM telemetry WHERE payload ? 'n') o WHERE n < before LIMIT 5")
    assert wrong == []
