"""The compose project of one test run: commands, and conditions to wait for.

Every run has a project name of its own and removes what carries it: containers, volumes, networks.
Must never touch anything else of the engine's, which is the machine's own.
"""

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LABEL = "label=com.docker.compose.project="


def run(*command, env=None, check=True, **more):
    """Runs a command; a failure shows what it printed."""
    done = subprocess.run(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=600, **more
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def docker(*words, **more):
    return run("docker", *words, **more).stdout.strip()


class Stack:
    def __init__(self):
        self.name = f"ingestd-test-{os.getpid()}-{secrets.token_hex(3)}"
        self.password = secrets.token_hex(12)
        self.program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
        self.env = {
            **os.environ,
            "POSTGRES_PASSWORD": self.password,
            "TREE": hashlib.sha256(str(ROOT).encode()).hexdigest()[:12],
        }
        # Empty is a free port: the default may be taken on this machine.
        self.env["MQTT_PORT"] = ""
        self.image = f"ingestd-tests/ingest:{self.env['TREE']}"

    def compose(self, *words, **more):
        """docker-compose with the real file and the stand-ins over it."""
        files = ["-f", str(ROOT / "docker-compose.yml"), "-f", str(HERE / "override.yml")]
        place = ["-p", self.name, "--project-directory", str(ROOT)]
        return run(*self.program, *files, *place, *words, env=self.env, **more).stdout

    def remove(self):
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "10")
        left = docker("ps", "-aq", "--filter", LABEL + self.name)
        left += docker("volume", "ls", "-q", "--filter", LABEL + self.name)
        left += docker("network", "ls", "-q", "--filter", LABEL + self.name)
        assert left == "", f"left behind: {left}"

    def container(self, service):
        found = self.compose("ps", "-q", service).split()
        assert len(found) == 1, f"{service}: {found}"
        return found[0]

    def inspect(self, service):
        return json.loads(docker("inspect", self.container(service)))[0]

    def state(self):
        return self.inspect("ingest")["State"]

    def logs(self, *words):
        """The lines of ingest, without docker-compose's prefix, oldest first."""
        text = self.compose("logs", "--no-color", *words, "ingest")
        lines = [line.split("|", 1)[1].strip() for line in text.splitlines() if "|" in line]
        return [line for line in lines if line]

    def events(self, *words):
        """The names of the events in the log, the third word of a line."""
        return [(line.split() + ["", "", ""])[2] for line in self.logs(*words)]

    def wait_until(self, what, condition, seconds):
        """Asks until condition() is true; past the time the log is part of the failure."""
        end = time.monotonic() + seconds
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > end:
                log = "\n".join(self.logs("--tail", "60"))
                raise AssertionError(f"not within {seconds} s: {what}\n{log}")
            time.sleep(0.1)

    def sql(self, query):
        """One query, as psql's unaligned text."""
        psql = ["psql", "-U", "ingestd", "-d", "ingestd", "-AtXq", "-c", query]
        return docker("exec", self.container("timescaledb"), *psql)

    def count(self, what, topic):
        """count(what) over the rows of one topic; 0 while there is no table."""
        if self.sql("SELECT to_regclass('telemetry')") == "":
            return 0
        return int(self.sql(f"SELECT count({what}) FROM telemetry WHERE topic = '{topic}'"))

    def broker_port(self):
        return int(self.compose("port", "mosquitto", "1883").rsplit(":", 1)[1])
