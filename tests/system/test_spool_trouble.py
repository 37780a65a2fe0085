"""Several things go wrong at once while records are on their way into the spool, or out of it."""
import pytest

import daemon as daemon_module
from processes import ROOT, SANITIZED, cpu_seconds, wait_until
from publisher import Publisher
from sequence import assert_once_in_order, messages, publish_to

failing = pytest.mark.skipif(SANITIZED, reason="one build with failpoints is enough")


@pytest.fixture
def failpoints(monkeypatch):
    """ingestd of the build with failpoints, which `make check` has made."""
    monkeypatch.setattr(daemon_module, "PROGRAM", ROOT / "build.failpoints" / "ingestd")


def kill_with_commits_held_up(table, wire, daemon, holder, n):
    publish_to(wire, messages(n))
    wait_until(lambda: wire.count("down", "PUBLISH") >= n, 30, "all is sent to it")
    table.wait_for_waiter(holder)
    daemon.kill()


@failing
@pytest.mark.slow
def test_what_is_in_doubt_and_not_in_the_spool_is_not_acknowledged_for_what_the_database_says(
        broker, table, ingestd, wire, failpoints):
    daemon = ingestd(broker=wire.url, flush_timeout="300ms", spool_after="60s").wait_ready()
    with table.locked() as holder:
        kill_with_commits_held_up(table, wire, daemon, holder, 100)
        daemon = ingestd(broker=wire.url, spool_after="300ms",
                         env={"INGESTD_FAILPOINT": "before_spool_is_synced:error"})
        daemon.wait_log("stream_in_doubt")
        daemon.wait_log("stream_closed", 30)
        holder.rollback()
    table.wait_for_rows(100)
    assert daemon.stop() == 0
    assert_once_in_order(table, 100)


@failing
def test_a_stop_that_cannot_write_the_list_spools_nothing_that_comes_again(broker, table, ingestd, wire, failpoints):
    daemon = ingestd(broker=wire.url, spool_after="60s", flush_timeout="500ms", drain_timeout="500ms",
                     env={"INGESTD_FAILPOINT": "after_read_before_note:error"}).wait_ready()
    table.server.stop()
    publish_to(wire, messages(100))
    daemon.wait_log("state_not_written", 20)
    assert daemon.stop() == 75
    table.start_server()
    daemon = ingestd(broker=wire.url).wait_ready()
    table.wait_for_rows(100)
    assert daemon.stop() == 0
    assert_once_in_order(table, 100)


def test_what_is_safe_in_the_spool_does_not_fill_the_queue(broker, table, ingestd, wire):
    daemon = ingestd(broker=wire.url, spool_after="300ms", queue_bytes="1MiB").wait_ready()
    table.server.stop()
    Publisher(broker.port).publish(messages(5000, pad="x" * 1000))
    wait_until(lambda: wire.count("up", "PUBACK") >= 5000, 30, "all is acknowledged")
    table.start_server()
    table.wait_for_rows(5000, 60)
    assert daemon.stop() == 0
    assert_once_in_order(table, 5000)


@failing
def test_a_spool_that_cannot_be_written_is_not_called_empty(broker, table, ingestd, wire, failpoints):
    daemon = ingestd(broker=wire.url, spool_after="300ms", env={"INGESTD_FAILPOINT": "before_spool_is_synced:error"}).wait_ready()
    with table.locked() as holder:
        publish_to(wire, messages(100))
        table.wait_for_waiter(holder)
        daemon.wait_log("database_unreachable", 20)
        assert daemon.events("spooling", phase="ends") == []
        assert len(daemon.events("spool_failed")) == 1
        holder.rollback()
    table.wait_for_rows(100)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_in_doubt_and_with_another_instance_at_the_database_it_waits_quietly(broker, table, ingestd, wire, tmp_path):
    daemon = ingestd(broker=wire.url, flush_timeout="300ms", spool_after="60s", client_id="same").wait_ready()
    with table.locked() as holder:
        kill_with_commits_held_up(table, wire, daemon, holder, 100)
        holder.rollback()
    other = ingestd(broker=wire.url, client_id="same", state_dir=tmp_path / "other")
    for lane in range(2):
        other.wait_log("writer_ready", 60, lane=lane)
    daemon = ingestd(broker=wire.url, client_id="same", spool_after="300ms")
    daemon.wait_log("session_claimed", 20)
    before = cpu_seconds(daemon.pid)
    table.query("SELECT pg_sleep(3)")
    assert cpu_seconds(daemon.pid) - before < 1
