"""A whole life under valgrind: no invalid access, nothing definitely lost, in any of the processes."""
import os
import re
import shutil
import signal

import pytest

from processes import SANITIZED, wait_until
from publisher import numbered, publish


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="a sanitizer's build does not run under valgrind")
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind")
def test_a_life_with_dead_letters_a_killed_writer_and_a_lost_connection_is_clean(broker, database, ingestd, tmp_path):
    daemon = ingestd(prefix=["valgrind", "-q", "--trace-children=yes", "--leak-check=full",
                             "--errors-for-leak-kinds=definite", "--error-exitcode=99",
                             f"--log-file={tmp_path}/valgrind.%p"], writer_timeout="60s")
    daemon.wait_log("mqtt_subscribed", 90)
    publish(broker, numbered(1000))
    publish(broker, [("t/bad", b"\xff"), ("t/bad", b'{"a":'), ("t/text", "Online"), ("t/none", "")])
    wait_until(lambda: database.count() == 1002 and database.count("ingestd.dead_letter") == 2, 60, "all is stored")
    os.kill(daemon.writers()[0], signal.SIGKILL)
    daemon.wait_log("writer_exited", 30)
    broker.restart()
    daemon.wait_log("mqtt_connection_lost", 30)
    publish(broker, numbered(1000, start=1000))
    wait_until(lambda: database.value("SELECT count(DISTINCT payload->>'n') FROM telemetry") == 2000, 90, "the rest")
    assert daemon.stop(60) == 0
    reports = list(tmp_path.glob("valgrind.*"))
    assert len(reports) >= 4
    # What SIGKILL ends has no report of its own; anything that valgrind did find is text in one of these.
    found = [r.read_text() for r in reports if re.search(r"(Invalid|uninitialised|definitely lost|Process terminating"
                                                         r" with default action of signal (?!9))", r.read_text())]
    assert found == []
