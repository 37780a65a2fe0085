"""Records that crash their writers: sent alone, then put aside by the supervisor's order. Needs `make FAILPOINTS=1`."""
import os
import signal

import pytest

import daemon as daemon_module
from processes import SANITIZED, is_running, wait_until
from publisher import numbered, publish
from test_failpoints import PROGRAM, build  # noqa: F401

pytestmark = pytest.mark.skipif(SANITIZED, reason="one build with failpoints is enough")
MARK = "crash-here"


@pytest.fixture
def fragile(build, broker, database, tmp_path):  # noqa: F811
    """Starts an ingestd whose writers die of a payload with MARK in it."""
    database.create_numbered_table()
    started = []

    def start(signum=signal.SIGSEGV, **options):
        started.append(daemon_module.Ingestd(
            program=PROGRAM, broker=broker.url, database=database.dsn, subscribe="t/#", state_dir=tmp_path / "state",
            writers=1, env={"INGESTD_FAILPOINT_CRASH": MARK, "INGESTD_FAILPOINT_SIGNAL": int(signum)}, **options))
        return started[-1].wait_ready(1)

    yield start
    for daemon in started:
        daemon.clean_up()


def with_killers(n, killers):
    for i, (topic, payload) in enumerate(numbered(n, topics=7)):
        yield topic, '{"n": %d, "x": "%s"}' % (i, MARK) if i in killers else payload


def assert_stored(database, n, killers):
    stored = [i for i, in database.query("SELECT (payload->>'n')::integer FROM telemetry")]
    assert sorted(stored) == [i for i in range(n) if i not in killers]
    assert database.query("SELECT topic FROM (SELECT topic, (payload->>'n')::integer n, lag((payload->>'n')::integer)"
                          " OVER (PARTITION BY topic ORDER BY id) before FROM telemetry) o WHERE n < before") == []
    put = database.query("SELECT topic, convert_from(payload, 'UTF8'), reason FROM ingestd.dead_letter ORDER BY id")
    assert put == [
        (f"t/{i % 7}", '{"n": %d, "x": "%s"}' % (i, MARK), "crashed its writer") for i in sorted(killers)]


@pytest.mark.slow
@pytest.mark.parametrize("killers", [{300}, {0}, {5, 6, 310}], ids=["one", "the first", "three"])
@pytest.mark.parametrize("signum", [signal.SIGSEGV, signal.SIGABRT])
def test_a_record_that_kills_three_writers_is_put_aside_and_its_neighbours_stored(broker, database, fragile, killers,
                                                                                signum):
    daemon = fragile(signum)
    publish(broker, with_killers(600, killers))
    wait_until(lambda: database.count() + database.count("ingestd.dead_letter") >= 600, 60, "all is somewhere")
    assert_stored(database, 600, killers)
    assert len(daemon.events("writer_exited", signal=signum.name)) == len(daemon.events("writer_exited"))
    assert len(daemon.events("writer_exited")) == 3 * len(killers)
    assert len(daemon.events("record_condemned")) == len(killers)
    assert [e["reason"] for e in daemon.events("dead_lettered")] == ["crashed its writer"] * len(killers)
    # It goes on as if nothing had been.
    publish(broker, numbered(600, start=1000))
    database.wait_for_rows(1200 - len(killers))
    assert len(daemon.events("writer_exited")) == 3 * len(killers)
    assert daemon.stop() == 0
    assert daemon.totals() == {"received": 1200, "committed": 1200 - len(killers), "dead_lettered": len(killers),
                               "spooled": 0, "unacknowledged": 0}


@pytest.mark.slow
def test_no_record_is_blamed_for_sigkill(broker, database, fragile):
    daemon = fragile(signal.SIGKILL)
    publish(broker, with_killers(20, {3}))
    wait_until(lambda: len(daemon.events("writer_exited", signal="SIGKILL")) >= 6, 60, "six writers are dead")
    assert daemon.events("records_suspected") == [] and daemon.events("record_condemned") == []
    assert database.count("ingestd.dead_letter") == 0


@pytest.mark.slow
def test_a_writer_that_crashes_with_nothing_in_hand_makes_no_suspect(broker, database, fragile):
    daemon = fragile()
    for n in range(1, 5):
        pid = wait_until(lambda: daemon.writers().get(0), what="a writer runs")
        wait_until(lambda: len(daemon.events("writer_ready")) == n, 30, "it is ready")
        os.kill(pid, signal.SIGSEGV)
        wait_until(lambda: not is_running(pid), what="it is dead")
    publish(broker, numbered(20))
    database.wait_for_rows(20, 60)
    assert daemon.events("records_suspected") == []
