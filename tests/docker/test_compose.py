"""The container as a user gets it: the real Dockerfile and docker-compose.yml, run for real.

Only the broker's and the database's images are stand-ins (see images and override.yml), because a
machine without a registry cannot pull the real ones.
"""

import json
import os
import subprocess
import threading
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from stack import HERE, ROOT, Stack, docker, run


def engine_answers():
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=30).returncode == 0
    except FileNotFoundError:
        return False


if not engine_answers():
    if os.environ.get("CI") == "true" and Path("/var/run/docker.sock").exists():
        pytest.fail("docker info fails, although there is an engine's socket", pytrace=False)
    pytest.skip("skipped: no Docker engine", allow_module_level=True)

READY = {"mqtt_connected", "mqtt_subscribed", "writer_ready"}
STOPPING = [
    "signal_received",
    "shutdown_initiated",
    "mqtt_disconnected",
    "queue_drained",
    "workers_stopped",
    "batch_writer_flushed",
    "db_pool_closed",
    "shutdown_complete",
]


@pytest.fixture(scope="module")
def project():
    """The images, built; one compose project for all tests of this file, removed at the end."""
    run(str(HERE / "images"))
    stack = Stack()
    # A build that fails would leave its container behind.
    stack.compose("build", "--force-rm", "ingest")
    try:
        yield stack
    finally:
        stack.remove()


@pytest.fixture
def running(project):
    """The project with ingest up and connected, whatever the test before has left."""
    start(project)
    return project


def start(project):
    """docker-compose up -d, behind which "mqtt connected" must come within 3 s."""
    if project.compose("ps", "-q", "ingest") and project.state()["Running"]:
        return
    before = connections(project)
    project.compose("up", "-d")
    project.wait_until("mqtt connected", lambda: connections(project) > before, 3)


def connections(project):
    return project.events().count("mqtt_connected")


def wait_for_end(project, seconds):
    """The exit status of ingest, once it has one."""
    project.wait_until("ingest ends", lambda: not project.state()["Running"], seconds)
    return project.state()["ExitCode"]


class Publisher(threading.Thread):
    """Publishes {"n": 0}, {"n": 1}, ... at QoS 1 until finish(), which returns how many the broker took."""

    def __init__(self, port, topic):
        super().__init__(daemon=True)
        self.topic, self.taken, self.enough = topic, 0, threading.Event()
        self.client = mqtt.Client()
        self.client.max_inflight_messages_set(1000)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        self.start()

    def run(self):
        while not self.enough.is_set():
            numbers = range(self.taken, self.taken + 100)
            sent = [self.client.publish(self.topic, json.dumps({"n": n}), qos=1) for n in numbers]
            for message in sent:
                message.wait_for_publish(30)
            self.taken += len(sent)

    def finish(self):
        self.enough.set()
        self.join(60)
        assert not self.is_alive()
        self.client.disconnect()
        self.client.loop_stop()
        return self.taken


def test_the_compose_file_is_valid_without_the_override(project):
    file = ["-f", str(ROOT / "docker-compose.yml")]
    assert run(*project.program, *file, "config", "--quiet").stdout == ""


def test_the_five_verification_commands_do_what_they_say(project):
    # 1: up -d starts everything, in order and healthy ...
    project.compose("up", "-d")
    # 2: ... and 3 s later, when all that has to be said of a start has been said, the last 5 lines
    # tell of the connection.
    project.wait_until("ready", lambda: READY <= set(project.events()), 3)
    project.wait_until("both writers", lambda: project.events().count("writer_ready") == 2, 3)
    assert any("mqtt connected" in line for line in project.logs("--tail", "5")), project.logs()
    for n in range(3):
        send = ["mosquitto_pub", "-q", "1", "-t", "sensors/a/temperature", "-m", f"21.{n}0"]
        project.compose("exec", "-T", "mosquitto", *send)
    # 3: SIGTERM, right behind the last message, ends it ...
    project.compose("kill", "-s", "SIGTERM", "ingest")
    assert wait_for_end(project, 30) == 0
    # 4: ... in the order that the last 20 lines show ...
    events = project.events("--tail", "20")
    stop = events[events.index("signal_received") :]
    assert stop == STOPPING
    last = project.logs("--tail", "1")[0].split()
    assert {"received=3", "committed=3", "unacknowledged=0"} <= set(last), last
    assert "signal=SIGTERM" in project.logs("--tail", str(len(STOPPING)))[0]
    # ... and for good: the restart policy obeys, and every message is a row, as it stood.
    assert project.inspect("ingest")["RestartCount"] == 0
    rows = project.sql("SELECT payload FROM telemetry WHERE topic = 'sensors/a/temperature' ORDER BY 1")
    assert rows.split() == [f"21.{n}0" for n in range(3)]
    # 5: up -d again takes the session up where it was.
    project.compose("up", "-d")
    project.wait_until(
        "mqtt connected again",
        lambda: any("mqtt_connected" in line and "session_present=1" in line for line in project.logs()),
        3,
    )


def test_ingest_is_pid_1_and_no_root(running):
    ids = running.compose("exec", "-T", "ingest", "cat", "/proc/1/status")
    uids = next(line for line in ids.splitlines() if line.startswith("Uid:")).split()[1:]
    assert set(uids) == {"10001"}
    exe = running.compose("exec", "-T", "ingest", "readlink", "/proc/1/exe")
    assert exe.strip() == "/usr/local/bin/ingestd"
    owner = running.compose("exec", "-T", "ingest", "stat", "-c", "%U %a", "/var/lib/ingestd")
    assert owner.split() == ["ingestd", "700"]
    mounts = {m["Destination"]: m["Name"] for m in running.inspect("ingest")["Mounts"]}
    assert mounts == {"/var/lib/ingestd": f"{running.name}_state"}


def test_the_password_stands_in_no_process_list_and_no_log(running):
    processes = docker("top", running.container("ingest"), "-eo", "pid,args")
    assert "ingestd" in processes
    assert running.password not in processes
    assert running.password not in "\n".join(running.logs())


def test_the_image_holds_two_programs_of_ours_and_no_build_tools(project):
    def inside(script):
        sh = ["--entrypoint", "sh", project.image, "-c"]
        return docker("run", "--rm", "--user", "root", *sh, script + "; true").split()

    assert sorted(inside("find /usr/local /opt /src /srv /home /var/lib/ingestd -type f 2>/dev/null")) == [
        "/usr/local/bin/ingestd",
        "/usr/local/libexec/ingestd/ingestd-writer",
    ]
    assert inside("command -v cc gcc make git; find /usr/include -name '*.h'") == []
    assert inside("ldd /usr/local/bin/ingestd /usr/local/libexec/ingestd/* | grep 'not found'") == []


def test_docker_stop_ends_in_order_well_within_the_grace_period(running):
    began = len(running.events())
    running.compose("stop", "ingest")
    state = running.state()
    assert state["ExitCode"] == 0 and not state["OOMKilled"]
    assert running.events()[began:] == STOPPING


def test_the_broker_keeps_more_than_its_default_queue_over_its_own_restart(running):
    running.compose("stop", "ingest")
    publisher = Publisher(running.broker_port(), "sensors/absent")
    running.wait_until("3,000 are published", lambda: publisher.taken >= 3000, 30)
    taken = publisher.finish()
    running.compose("restart", "mosquitto")
    start(running)
    running.wait_until("each is a row", lambda: running.count("*", "sensors/absent") == taken, 30)


def test_a_killed_container_loses_nothing_when_it_comes_up_again(running):
    topic = "sensors/kill"
    publisher = Publisher(running.broker_port(), topic)
    running.wait_until("a row", lambda: running.count("*", topic) > 0, 30)
    docker("kill", "-s", "KILL", running.container("ingest"))
    assert wait_for_end(running, 10) == 137
    seen = publisher.taken
    running.wait_until("more is published", lambda: publisher.taken >= seen + 1000, 30)
    assert running.count("DISTINCT payload", topic) < publisher.taken
    start(running)
    taken = publisher.finish()
    running.wait_until("each is a row", lambda: running.count("DISTINCT payload", topic) == taken, 30)


def test_a_crash_is_restarted_by_the_policy(running):
    before, pid = connections(running), running.state()["Pid"]
    # Not docker kill, which counts as a wish of the user. Through a container, for users other than root.
    docker("run", "--rm", "--pid=host", "debian:bookworm-slim", "sh", "-c", f"kill -9 {pid}")
    running.wait_until("connected again", lambda: connections(running) > before, 10)
    assert running.inspect("ingest")["RestartCount"] == 1
