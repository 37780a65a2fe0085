"""A private Mosquitto for one test."""
import os
import signal
import subprocess
from pathlib import Path

from processes import accepts, clean_environment, die_with_parent, end, free_port, run, wait_until

# Debian keeps it out of the PATH of those who are not root.
MOSQUITTO = "/usr/sbin/mosquitto"


class Broker:
    """
    Persistence is on and the queue unlimited, as etc/mosquitto.conf has it; `extra` are more lines of
    mosquitto.conf(5). users = {name: password}; tls=True gives the only listener a certificate for
    localhost and 127.0.0.1, signed by itself, at .certificate.
    """

    def __init__(self, home, extra=(), users=None, tls=False):
        self.home = Path(home)
        self.home.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.process = None
        self.certificate = None
        lines = [f"listener {self.port} 127.0.0.1", "persistence true", f"persistence_location {self.home}/",
                 "persistence_file store.db", "max_queued_messages 0", "set_tcp_nodelay true",
                 "log_dest file " + str(self.home / "log"), "log_type all", "log_timestamp_format %s",
                 "sys_interval 1"]
        if os.geteuid() == 0:
            # Else Mosquitto becomes a user who cannot write here, and forgets to die with pytest.
            lines.append("user root")
        if tls:
            lines += self._make_certificate()
        if users is None:
            lines.append("allow_anonymous true")
        else:
            lines += ["allow_anonymous false", f"password_file {self._make_passwords(users)}"]
        self.config = self.home / "mosquitto.conf"
        self.config.write_text("\n".join([*lines, *extra]) + "\n")
        self.start()

    def _make_certificate(self):
        self.certificate, key = self.home / "certificate.pem", self.home / "key.pem"
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", self.certificate)
        return [f"certfile {self.certificate}", f"keyfile {key}"]

    def _make_passwords(self, users):
        path = self.home / "passwords"
        path.touch(mode=0o600)
        for name, password in users.items():
            run("mosquitto_passwd", "-b", path, name, password)
        return path

    def set_password(self, name, password):
        """Changes a password and has the broker read it."""
        run("mosquitto_passwd", "-b", self.home / "passwords", name, password)
        self.process.send_signal(signal.SIGHUP)

    @property
    def url(self):
        return f"mqtt://127.0.0.1:{self.port}"

    def also_plain(self):
        """Gives a broker with tls=True a listener without as well, and returns its port."""
        port = free_port()
        lines = self.config.read_text().replace("allow_anonymous true\n", "")
        self.config.write_text(lines + f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        self.restart()
        return port

    def start(self):
        log = open(self.home / "stderr", "ab")
        self.process = subprocess.Popen([MOSQUITTO, "-c", str(self.config)], stdin=subprocess.DEVNULL,
                                        stdout=log, stderr=log, env=clean_environment(),
                                        preexec_fn=die_with_parent())
        log.close()
        wait_until(self._ready, 20, "Mosquitto accepts connections")

    def _ready(self):
        if self.process.poll() is not None:
            raise AssertionError("Mosquitto ended:\n" + (self.home / "stderr").read_text() + self.log()[-2000:])
        return accepts(self.port)

    def stop(self):
        """Asks it to end, which saves sessions and queues."""
        end(self.process, signal.SIGTERM)

    def kill(self):
        end(self.process, signal.SIGKILL)

    def restart(self):
        self.stop()
        self.start()

    def log(self):
        try:
            return (self.home / "log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_log(self, text, timeout=15):
        wait_until(lambda: text in self.log(), timeout, f"the broker's log says {text!r}", 0.05)

    def sessions_opened(self, client_id):
        """How often this client has connected."""
        return self.log().count(f" as {client_id} (")
