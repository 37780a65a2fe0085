"""The gate where a broker that takes acknowledgements slowly tries it hardest."""
import os
import signal
import time

import pytest

from fakebroker import FakeBroker, publish
from processes import PATIENCE, cpu_seconds, wait_until

MESSAGES = 20_000
LATE = 60_001


def wait_until_idle(pid):
    """Until it has used no CPU for half a second: it has done what there was to do."""
    def is_idle():
        before = cpu_seconds(pid)
        time.sleep(0.5)
        return cpu_seconds(pid) == before
    wait_until(is_idle, 60, f"{pid} has nothing to do")


@pytest.mark.slow
def test_what_is_there_to_read_while_acknowledgements_are_half_out_is_not_acknowledged_with_them(database, ingestd):
    broker = FakeBroker(receive_buffer=4096, segment=536)
    daemon = ingestd(broker=broker.url, writers=1, batch_size=1_000_000, ack_interval="60s", writer_timeout="60s")
    broker.accept()
    daemon.wait_log("mqtt_subscribed")
    with database.locked() as holder:
        broker.send(b"".join(publish("t/x", b"%d" % i, i) for i in range(1, MESSAGES + 1)))
        wait_until_idle(daemon.pid)
        # What happens now happens in one turn of its loop: all is committed, and one more message is there.
        os.kill(daemon.pid, signal.SIGSTOP)
        holder.commit()
        database.wait_for_rows(MESSAGES)
        wait_until_idle(daemon.writers()[0])
        holder.execute("LOCK TABLE telemetry")
        broker.send(publish("t/x", b'"late"', LATE))
        os.kill(daemon.pid, signal.SIGCONT)
        # The broker reads nothing: a wait for it must not be a busy one.
        before = cpu_seconds(daemon.pid)
        time.sleep(2)
        assert cpu_seconds(daemon.pid) - before < 0.5 * PATIENCE
        ids = broker.acknowledged(2)
        assert len(ids) == MESSAGES and LATE not in ids
        holder.rollback()
    assert broker.acknowledged(2) == [LATE]
    assert daemon.stop() == 0
    broker.close()
