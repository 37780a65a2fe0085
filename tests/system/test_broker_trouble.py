"""The broker refuses, goes, comes back, or is no broker: said in words, tried again in good time, nothing lost."""
import socket
import struct
import threading
import time

import pytest

from processes import PATIENCE, cpu_seconds, read_proc, wait_until
from publisher import numbered, publish
from wire import SwallowingAddress, Wire


def assert_no_busy_loop(daemon, attempts=2):
    """While it fails to connect it uses next to no time and makes few attempts."""
    # Only the first failure of a series is an event of its own, and the others are for those who debug.
    def made():
        return len(daemon.events("mqtt_connect_failed") + daemon.events("mqtt_attempt_failed"))

    wait_until(lambda: made() >= attempts, 20, f"{attempts} attempts")
    assert daemon.process.poll() is None
    assert cpu_seconds(daemon.pid) < 1 * PATIENCE
    assert made() < 12
    assert len(daemon.events("mqtt_connect_failed")) == 1


def test_the_connect_line_says_mqtt_connected_and_with_what(broker, database, ingestd):
    connected = ingestd(client_id="the-one").wait_log("mqtt_connected")
    assert connected["message"] == "mqtt connected"
    assert connected["client_id"] == "the-one"
    assert str(broker.port) in connected["broker"]


@pytest.mark.parametrize("protocol, level", [("5", 5), ("3.1.1", 4)])
def test_it_speaks_the_protocol_that_was_asked_for(broker, database, ingestd, protocol, level):
    wire = Wire(broker.port)
    daemon = ingestd(broker=wire.url, protocol=protocol).wait_ready()
    assert wire.connects[0].version == level
    assert daemon.events("mqtt_connected")[0]["protocol"] == protocol
    wire.close()


def test_version_5_asks_for_the_session_to_be_kept_and_for_its_window(broker, database, ingestd):
    wire = Wire(broker.port)
    ingestd(broker=wire.url, session_expiry=1234, receive_maximum=321).wait_ready()
    connect = wire.connects[0].body
    assert connect[7] & 0x02 == 0, "clean start is set"
    assert b"\x11" + struct.pack("!I", 1234) in connect
    assert b"\x21" + struct.pack("!H", 321) in connect
    wire.close()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_client_id_and_with_it_the_session_outlive_a_restart(broker, database, ingestd, protocol):
    first = ingestd(protocol=protocol).wait_ready()
    assert first.stop() == 0
    publish(broker, numbered(100))
    second = ingestd(protocol=protocol).wait_ready()
    database.wait_for_rows(100)
    was, now = first.events("mqtt_connected")[0], second.events("mqtt_connected")[0]
    assert was["client_id"] == now["client_id"] and len(now["client_id"]) >= 8
    assert was["session_present"] != now["session_present"]
    assert second.events("mqtt_session_lost") == []


def test_two_state_directories_make_two_client_ids(broker, database, ingestd, tmp_path):
    ids = {ingestd(state_dir=tmp_path / name).wait_log("mqtt_connected")["client_id"] for name in "ab"}
    assert len(ids) == 2


def test_a_session_that_the_broker_has_lost_is_called_lost(make_broker, database, ingestd):
    broker = make_broker(extra=["persistence false"])
    daemon = ingestd(broker=broker.url).wait_ready()
    broker.restart()
    daemon.wait_log("mqtt_session_lost", 30)
    wait_until(lambda: len(daemon.events("mqtt_subscribed")) == 2, what="it subscribes again")
    publish(broker, numbered(10))
    database.wait_for_rows(10)


def test_a_session_that_the_broker_lost_while_ingestd_was_down_is_called_lost(make_broker, database, ingestd):
    broker = make_broker(extra=["persistence false"])
    first = ingestd(broker=broker.url).wait_ready()
    assert first.stop() == 0 and first.events("mqtt_session_lost") == []
    broker.restart()
    ingestd(broker=broker.url).wait_log("mqtt_session_lost")


@pytest.mark.slow
def test_a_broker_that_restarts_under_load_costs_nothing(broker, database, ingestd):
    daemon = ingestd().wait_ready()
    publish(broker, numbered(5000))
    broker.restart()
    daemon.wait_log("mqtt_connection_lost")
    wait_until(lambda: len(daemon.events("mqtt_connected")) == 2, 40, "it is back")
    publish(broker, numbered(5000, start=5000))
    wait_until(lambda: database.value("SELECT count(DISTINCT payload->>'n') FROM telemetry") == 10_000, 30, "all is there")
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_connection_cut_in_a_burst_costs_nothing(broker, database, ingestd):
    wire = Wire(broker.port)
    daemon = ingestd(broker=wire.url).wait_ready()
    for part in range(3):
        publish(broker, numbered(3000, start=3000 * part))
        wire.cut()
        wait_until(lambda: len(daemon.events("mqtt_connected")) == part + 2, 40, "it is back")
    wait_until(lambda: database.value("SELECT count(DISTINCT payload->>'n') FROM telemetry") == 9000, 30, "all is there")
    assert len({e["client_id"] for e in daemon.events("mqtt_connected")}) == 1
    # What the broker sends again on the last connection stands before this one.
    acknowledged = wire.count("up", "PUBACK")
    publish(broker, numbered(1, start=9000))
    wait_until(lambda: database.count() == 9001 and wire.count("up", "PUBACK") > acknowledged, 30, "all is acknowledged")
    assert daemon.stop() == 0
    wire.close()


def test_a_refused_password_is_named_and_heals_when_it_is_mended(make_broker, database, ingestd):
    broker = make_broker(users={"meter": "right"})
    daemon = ingestd(broker=f"mqtt://meter:wrong-s3cret@127.0.0.1:{broker.port}", log_level="debug")
    failed = daemon.wait_log("mqtt_connect_failed")
    assert "auth" in failed["reason"].lower() or "password" in failed["reason"].lower()
    assert "retry_in" in failed
    assert_no_busy_loop(daemon)
    broker.set_password("meter", "wrong-s3cret")
    daemon.wait_log("mqtt_subscribed", 40)
    publish(broker, numbered(5), user="meter", password="wrong-s3cret")
    database.wait_for_rows(5)
    assert "s3cret" not in daemon.log()


def test_a_tls_port_spoken_to_in_plain_is_a_reason_and_no_crash(make_broker, database, ingestd):
    daemon = ingestd(broker=make_broker(tls=True).url, log_level="debug")
    assert daemon.wait_log("mqtt_connect_failed")["reason"]
    assert_no_busy_loop(daemon)
    assert daemon.stop() == 0


def test_a_plain_port_spoken_to_in_tls_is_a_reason_and_no_crash(broker, database, ingestd):
    daemon = ingestd(broker=f"mqtts://127.0.0.1:{broker.port}", log_level="debug")
    reason = daemon.wait_log("mqtt_connect_failed")["reason"].lower()
    assert "tls" in reason or "ssl" in reason
    assert_no_busy_loop(daemon)


def test_a_certificate_that_nobody_trusts_is_refused(make_broker, database, ingestd):
    broker = make_broker(tls=True)
    daemon = ingestd(broker=f"mqtts://localhost:{broker.port}", log_level="debug")
    reason = daemon.wait_log("mqtt_connect_failed")["reason"].lower()
    assert "certificate" in reason or "tls" in reason
    assert_no_busy_loop(daemon)


@pytest.mark.memory
@pytest.mark.slow
def test_over_tls_nothing_stays_behind_in_the_library_s_buffer(make_broker, database, ingestd):
    broker = make_broker(tls=True)
    port = broker.also_plain()
    daemon = ingestd(broker=f"mqtts://localhost:{broker.port}", env={"SSL_CERT_FILE": broker.certificate})
    daemon.wait_ready()
    broker.port = port
    publish(broker, numbered(5000))
    database.wait_for_rows(5000)
    assert daemon.stop() == 0


def test_a_name_that_does_not_resolve_is_said_and_tried_again(database, ingestd):
    daemon = ingestd(broker="mqtt://no-such-host.invalid", log_level="debug")
    failed = daemon.wait_log("mqtt_connect_failed", 30)
    assert "no-such-host.invalid" in failed["broker"]
    assert_no_busy_loop(daemon)
    started = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - started < 3 * PATIENCE


def test_nobody_at_home_is_said_and_tried_again(database, ingestd):
    from processes import free_port
    daemon = ingestd(broker=f"mqtt://127.0.0.1:{free_port()}", log_level="debug")
    assert "refused" in daemon.wait_log("mqtt_connect_failed")["reason"].lower()
    assert_no_busy_loop(daemon)


def test_an_address_that_swallows_packets_does_not_stop_the_writers(database, ingestd):
    address = SwallowingAddress()
    daemon = ingestd(broker=address.url)
    for lane in (0, 1):
        daemon.wait_log("writer_ready", 5, lane=lane)
    assert cpu_seconds(daemon.pid) < 1 * PATIENCE
    assert daemon.stop() == 0
    address.close()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x7f", b"\xff" * 64,
                                    b"\x20\x02\x00\x05", b"\x20\x03\x00\x87\x00"])
def test_a_peer_that_is_no_broker_is_survived(database, ingestd, answer):
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                peer, _ = listener.accept()
                peer.recv(4096)
                peer.sendall(answer)
                peer.close()
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    daemon = ingestd(broker=f"mqtt://127.0.0.1:{listener.getsockname()[1]}", log_level="debug")
    daemon.wait_log("mqtt_connect_failed", 20)
    assert_no_busy_loop(daemon)
    assert daemon.stop() == 0
    listener.close()


def rewrite_suback(code):
    def on_packets(direction, packets):
        return b"".join(p.raw[:-1] + bytes([code]) if p.kind == "SUBACK" else p.raw for p in packets)

    return on_packets


@pytest.mark.parametrize("protocol, code", [("5", 0x87), ("3.1.1", 0x80)])
def test_a_refused_subscription_is_said_loudly(broker, database, ingestd, protocol, code):
    wire = Wire(broker.port, rewrite_suback(code))
    daemon = ingestd(broker=wire.url, protocol=protocol)
    refused = daemon.wait_log("mqtt_subscribe_refused")
    assert refused.level == "error" and "t/#" in str(dict(refused))
    assert daemon.stop() == 0
    wire.close()


def test_a_lower_quality_of_service_than_asked_for_is_said(broker, database, ingestd):
    wire = Wire(broker.port, rewrite_suback(0))
    daemon = ingestd(broker=wire.url)
    assert daemon.wait_log("mqtt_granted_less").level in ("warn", "error")
    wire.close()


def test_the_granted_quality_of_service_is_logged(broker, database, ingestd):
    subscribed = ingestd(subscribe=["a/#", "b/+"]).wait_log("mqtt_subscribed")
    assert "a/#" in subscribed["filters"] and "b/+" in subscribed["filters"]
    assert "1" in subscribed["granted_qos"]


def test_two_instances_with_one_client_id_are_named(broker, database, ingestd, tmp_path):
    first = ingestd(client_id="twin", state_dir=tmp_path / "a").wait_ready()
    # In one database they would find each other there: see test_resume.py.
    second = ingestd(client_id="twin", state_dir=tmp_path / "b", database=database.server.dsn())
    wait_until(lambda: first.events("mqtt_session_taken_over") or second.events("mqtt_session_taken_over"), 30,
               "it is recognised")
    said = (first.events("mqtt_session_taken_over") + second.events("mqtt_session_taken_over"))[0]
    assert said.level in ("warn", "error") and "twin" in str(dict(said))
    # They do not throw each other out in a busy loop.
    assert len(first.events("mqtt_connected")) + len(second.events("mqtt_connected")) < 20


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["5"])
def test_the_session_lives_while_the_gate_is_shut_for_twice_the_keepalive(make_broker, database, ingestd, protocol):
    """The broker sets the keepalive to 10 s and cuts after 15 s of silence; the gate stays shut for 20 s."""
    broker = make_broker(extra=["max_keepalive 10"])
    wire = Wire(broker.port)
    daemon = ingestd(broker=wire.url, protocol=protocol, spool_limit=0).wait_ready()
    with database.locked() as holder:
        publish(broker, numbered(1000))
        wait_until(lambda: wire.count("down", "PUBLISH") >= 1, what="messages are on the wire")
        holder.execute("SELECT pg_sleep(20)")
        assert wire.count("up", "PUBACK") == 0
        holder.rollback()
    database.wait_for_rows(1000)
    wait_until(lambda: wire.count("up", "PUBACK") == 1000, what="all is acknowledged")
    assert "exceeded timeout" not in broker.log()
    assert len(wire.connects) == 1 and daemon.events("mqtt_connection_lost") == []
    assert database.count() == 1000
    wire.close()


def test_a_password_in_the_url_is_in_no_process_list_and_no_log(make_broker, database, ingestd):
    broker = make_broker(users={"meter": "open+sesame%"})
    secret = "open%2Bsesame%25"
    daemon = ingestd(broker=f"mqtt://meter:{secret}@127.0.0.1:{broker.port}", log_level="debug",
                     database=database.dsn + " password=db-s3same")
    daemon.wait_ready()
    publish(broker, numbered(10), user="meter", password="open+sesame%")
    database.wait_for_rows(10)
    for pid in [daemon.pid, *daemon.writers().values()]:
        line = read_proc(pid, "cmdline")
        assert "sesame" not in line and "s3same" not in line, line
    assert daemon.stop() == 0
    assert "sesame" not in daemon.log() and "s3same" not in daemon.log()
