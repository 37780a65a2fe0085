"""A writer's death costs a respawn and a replay of its lane: no record, no MQTT session, no other lane."""
import os
import signal

import pytest

from processes import PATIENCE, SANITIZED, is_running, state_of, wait_until
from publisher import Publisher, numbered, publish

BURST = 5_000 if SANITIZED else 30_000


def assert_complete(database, n):
    missing = database.query("SELECT i FROM generate_series(0, %s - 1) i EXCEPT"
                             " SELECT (payload->>'n')::int FROM telemetry LIMIT 5", n)
    assert missing == [], f"lost, among others: {missing}"


def assert_session_undisturbed(daemon, broker):
    assert len(daemon.events("mqtt_connected")) == 1
    assert daemon.events("mqtt_connection_lost") == []




@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGABRT], ids=["SIGKILL", "SIGABRT"])
def test_a_writer_killed_in_a_burst_loses_nothing_and_the_session_stays(broker, database, ingestd, signum):
    daemon = ingestd().wait_ready()
    before = daemon.writers()
    publisher = Publisher(broker.port)
    for part in range(3):
        publisher.publish(numbered(BURST // 3, start=part * (BURST // 3)))
        wait_until(lambda: database.count() > part * BURST // 6, 30, "rows come in", 0.05)
        if part < 2:
            os.kill(daemon.writers()[0], signum)
            wait_until(lambda: len(daemon.events("writer_exited")) == part + 1, what="its death is noticed")
            wait_until(lambda: 0 in daemon.writers(), what="it is replaced")
    wait_until(lambda: database.value("SELECT count(DISTINCT payload->>'n') FROM telemetry") == BURST // 3 * 3, 60,
               "all is there", 0.2)
    assert_complete(database, BURST // 3 * 3)
    assert_session_undisturbed(daemon, broker)
    assert daemon.writers()[1] == before[1], "the other lane's writer was replaced too"
    assert daemon.events("writer_exited", lane=1) == []
    exited = daemon.events("writer_exited", lane=0)[0]
    assert exited["pid"] == str(before[0]) and signum.name in str(dict(exited)), exited
    assert daemon.stop() == 0


def test_all_writers_killed_at_once_lose_nothing(broker, database, ingestd):
    daemon = ingestd(writers=4).wait_ready(4)
    publish(broker, numbered(BURST // 2))
    for pid in daemon.writers().values():
        os.kill(pid, signal.SIGKILL)
    publish(broker, numbered(BURST // 2, start=BURST // 2))
    wait_until(lambda: len(daemon.events("writer_exited")) == 4, what="all deaths are noticed")
    wait_until(lambda: database.value("SELECT count(DISTINCT payload->>'n') FROM telemetry") == BURST // 2 * 2, 60,
               "all is there", 0.2)
    assert_session_undisturbed(daemon, broker)
    assert daemon.stop() == 0
    assert daemon.totals()["unacknowledged"] == 0


def test_a_writer_killed_while_nothing_happens_is_replaced_at_once(broker, database, ingestd):
    daemon = ingestd().wait_ready()
    os.kill(daemon.writers()[1], signal.SIGKILL)
    mark = daemon.mark()
    daemon.wait_log("writer_ready", 5, after=mark, lane=1)
    publish(broker, numbered(100))
    database.wait_for_rows(100)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_stopped_writer_is_recognised_and_replaced(broker, database, ingestd):
    daemon = ingestd(writer_timeout="3s").wait_ready()
    stuck = daemon.writers()[0]
    os.kill(stuck, signal.SIGSTOP)
    publish(broker, numbered(1000))
    hung = daemon.wait_log("writer_hung", 10)
    assert (hung["lane"], hung["pid"]) == ("0", str(stuck))
    wait_until(lambda: database.value("SELECT count(DISTINCT payload->>'n') FROM telemetry") == 1000, 30, "all is there")
    assert not is_running(stuck)
    assert_session_undisturbed(daemon, broker)
    assert daemon.stop() == 0


def test_a_writer_that_stops_in_the_middle_of_a_large_record_is_recognised_and_replaced(broker, database, ingestd):
    daemon = ingestd(writers=1, writer_timeout="3s").wait_ready(1)
    os.kill(daemon.writers()[0], signal.SIGSTOP)
    # More than the channel's buffers hold.
    publish(broker, [("t/large", "[" + "1," * 600_000 + "1]")])
    daemon.wait_log("writer_hung", 15)
    database.wait_for_rows(1)
    assert daemon.stop() == 0


def test_a_long_commit_is_not_taken_for_a_hung_writer(broker, database, ingestd):
    daemon = ingestd(writer_timeout="3s").wait_ready()
    publish(broker, numbered(10))
    database.wait_for_rows(10)
    with database.locked() as holder:
        publish(broker, numbered(10, start=10))
        # Three times as long as the time after which silence is a fault.
        holder.execute("SELECT pg_sleep(9)")
        holder.rollback()
    database.wait_for_rows(20)
    assert daemon.events("writer_hung") == []
    assert daemon.events("writer_exited") == []


@pytest.mark.slow
def test_a_writer_that_crashes_again_and_again_is_started_ever_more_slowly(broker, database, ingestd):
    daemon = ingestd(writers=1).wait_ready(1)
    publish(broker, numbered(10))
    database.wait_for_rows(10)
    for deaths in range(1, 6):
        wait_until(lambda: daemon.writers().get(0), 20, "a writer runs")
        os.kill(daemon.writers()[0], signal.SIGKILL)
        wait_until(lambda: len(daemon.events("writer_exited")) == deaths, what="its death is noticed")
    waits = [e["respawn_in"] for e in daemon.events("writer_exited")]
    assert len(set(waits)) >= 4, f"no growing pause: {waits}"
    daemon.wait_log("writer_ready", 20, after=daemon.events().index(daemon.events("writer_exited")[-1]))
    publish(broker, numbered(10, start=10))
    database.wait_for_rows(20)
    assert_session_undisturbed(daemon, broker)
    assert daemon.stop() == 0


def test_writers_notice_the_death_of_their_supervisor_commit_and_leave(broker, database, ingestd):
    """At QoS 0, where nothing would come again: what the writers hold has nowhere else to be."""
    daemon = ingestd(qos=0, queue_limit=500, spool_limit=0).wait_ready()
    with database.locked() as holder:
        publish(broker, numbered(600), qos=0)
        # It has read as much as it may, and all of that fits into the channels.
        daemon.wait_log("backlog_full", phase="begins")
        writers = daemon.writers()
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.process.wait()
        holder.rollback()
    for pid in writers.values():
        wait_until(lambda: not is_running(pid), 20, "a writer leaves")
    assert database.count() >= 500
    wait_until(lambda: database.sessions() == [], what="its connections are closed")


def test_what_a_killed_supervisor_had_not_acknowledged_comes_again(broker, database, ingestd):
    daemon = ingestd().wait_ready()
    publish(broker, numbered(5000))
    database.wait_for_rows(1)
    daemon.kill()
    ingestd()
    wait_until(lambda: database.value("SELECT count(DISTINCT payload->>'n') FROM telemetry") == 5000, 30, "all is there")


def test_writers_ignore_what_a_terminal_sends_to_its_whole_foreground_group(broker, database, ingestd):
    daemon = ingestd().wait_ready()
    for signum in (signal.SIGINT, signal.SIGTERM):
        for pid in daemon.writers().values():
            os.kill(pid, signum)
    publish(broker, numbered(100))
    database.wait_for_rows(100)
    assert daemon.events("writer_exited") == []
    assert daemon.stop() == 0


def test_a_dead_writer_is_reaped(broker, database, ingestd):
    daemon = ingestd().wait_ready()
    pid = daemon.writers()[0]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: state_of(pid) is None, what="no zombie is left")
    daemon.wait_log("writer_exited", pid=pid)
    assert daemon.stop() == 0


def test_garbage_on_the_writers_channel_ends_that_writer_with_a_line_that_says_why():
    """In the words of the table: garbage, half a message, or a giant length on fd 3."""
    import socket
    import subprocess

    from daemon import WRITER
    from processes import clean_environment, die_with_parent

    for name, sent in {"garbage": b"\xc1\xff\xfe" * 100, "half a message": b"\x93\x01\x02",
                       "a giant length": b"\xdd\xff\xff\xff\xff", "a giant string": b"\x92\x01\xdb\xff\xff\xff\xff",
                       "another version": b"\x91\xcd\xff\xff", "nothing": b""}.items():
        ours, theirs = socket.socketpair()
        child = subprocess.Popen([str(WRITER)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                 env=clean_environment(), preexec_fn=_on_fd_3(theirs.fileno(), die_with_parent()),
                                 close_fds=False)
        theirs.close()
        ours.sendall(sent)
        ours.shutdown(socket.SHUT_WR)
        log = child.communicate(timeout=20 * PATIENCE)[1].decode()
        ours.close()
        if name != "nothing":
            assert child.returncode == 65, f"{name}: {child.returncode} {log}"
            assert " error " in log, f"{name}: {log}"


def _on_fd_3(fd, prepare):
    def setup():
        prepare()
        os.dup2(fd, 3, inheritable=True)
        os.closerange(4, 256)

    return setup
