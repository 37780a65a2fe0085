"""
One run's world: a private Mosquitto, a private PostgreSQL, a bad network between both and the system under test, and
the publisher with its book.

Everything lies below one directory and ends with the process that made it. The publisher and the questions of the
harness take the straight way; only the system under test goes through the proxies. Must be made, used and left by
one thread: servers die with the thread that started them.
"""
import contextlib
import os
import random
import shutil
import signal
import time
from datetime import datetime, timezone
from pathlib import Path

import psycopg
from psycopg import errors

import poison
from broker import Broker
from ledger import Book
from load import Load
from messages import Messages
from postgres import Database, Server
from processes import PATIENCE, children_of, free_port, run, wait_until
from small_disk import SmallDisk
from toxic import Toxic

# What Mosquitto logs of every packet would be most of what it does.
BROKER_LINES = ["log_type none", "log_type error", "log_type warning", "log_type notice", "autosave_interval 1"]


def make_template(home):
    """A data directory to be copied: initdb is the slow part of a server. Returns its path."""
    server = Server()
    try:
        server.stop("fast")
        os.chmod(home, 0o755)
        return Path(shutil.move(server.data, Path(home) / "template"))
    finally:
        server.destroy()


class PrivateServer(Server):
    """A copy of the template. Everything else is Server's."""

    def __init__(self, home, template, settings):
        self.home, self.data = home, home / "data"
        self.process, self.port = None, free_port()
        home.mkdir()
        run("cp", "-a", "--reflink=auto", template, self.data)
        if os.geteuid() == 0:
            shutil.chown(home, "postgres", "postgres")
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write(f"unix_socket_directories = '{home}'\n")
            conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self.start()

    def connect(self, name="postgres"):
        """What a fault has set for the database or the role is not for the harness."""
        return psycopg.connect(self.dsn(name), autocommit=True,
                               options="-c statement_timeout=0 -c default_transaction_read_only=off")


class Sandbox:
    """
    system_class and options make the system under test; commit_delay, in µs, makes every commit take longer; disk, a
    text for SmallDisk, gives it a state directory or a spool on one. The faults see it as `world`.
    """
    undefined = (errors.UndefinedTable, errors.InvalidSchemaName)
    away = psycopg.OperationalError

    def __init__(self, home, template, system_class, seed, commit_delay=0, options=None,
                 disk=None):
        self.home = Path(home)
        self.home.mkdir()
        # PostgreSQL, which is not root, has to get at its own.
        os.chmod(self.home, 0o755)
        self.began = time.monotonic()
        self.timeline, self.complaints = [], []
        self._open = []
        # Processes of a server that is stopped by SIGSTOP.
        self._frozen = []
        try:
            self._set_up(template, system_class, seed, commit_delay, options or {}, disk)
        except BaseException:
            self.destroy()
            raise

    def _set_up(self, template, system_class, seed, commit_delay, options, disk):
        self.disk = SmallDisk(self.home, disk) if disk else None
        if self.disk:
            self._open.append(self.disk.destroy)
        self.server = PrivateServer(self.home / "postgres", template,
                                    {"commit_delay": commit_delay, "commit_siblings": 0})
        self._open.append(self.server.destroy)
        # Before its end, since what is stopped does not end.
        self._open.append(self.thaw_database)
        self.database = Database(self.server)
        self.database.create_numbered_table()
        if "poison rows" in system_class.can:
            self.database.query(poison.RULES)
        self.broker = Broker(self.home / "broker", BROKER_LINES)
        self._open.append(self.broker.kill)
        self.broker_link = Toxic(self.broker.port)
        self._open.append(self.broker_link.close)
        self.database_link = Toxic(self.server.port)
        self._open.append(self.database_link.close)
        self.book = Book()
        self.messages = Messages(random.Random(f"messages {seed}"), with_broken=system_class.has_dead_letters)
        self.load = Load(self.broker.port, self.messages, self.book, self.began)
        self.system = system_class(self, **options)
        self._open.append(self.system.clean_up)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.destroy()

    def destroy(self):
        for close in reversed(self._open):
            close()
        self._open = []
        shutil.rmtree(self.home, ignore_errors=True)

    # What happened

    def note(self, text):
        now = datetime.now(timezone.utc)
        self.timeline.append(f"{time.monotonic() - self.began:7.3f} s  {now:%H:%M:%S.%f}"[:-3] + f"  {text}")

    def complain(self, text):
        self.note("WRONG: " + text)
        self.complaints.append(text)

    # What faults do

    def ask(self, sql, *params):
        """
        A query on the straight way. The server may have been restarted since the last one. Raises `away` where it is
        not there, and does not wait for one that is stopped: only the caller's thread would wake it.
        """
        if self._frozen:
            raise self.away("the server is stopped")
        try:
            return self.database.query(sql, *params)
        except psycopg.OperationalError:
            return self.database.query(sql, *params)

    def count(self, table):
        try:
            return self.ask(f"SELECT count(*) FROM {table}")[0][0]
        except self.undefined:
            return 0

    def connect(self):
        """A connection for a fault's own use, with as little patience as ask()."""
        if self._frozen:
            raise self.away("the server is stopped")
        connection = self.database.connect()
        connection.execute("SET lock_timeout = '1s'")
        return connection

    def signal(self, pid, signum, what):
        """Returns a function that sends another signal to the very same process, if it is still there."""
        try:
            fd = os.pidfd_open(pid)
        except (OSError, TypeError):
            self.note(f"{what}: it is not there")
            return lambda signum: None

        def send(signum):
            try:
                signal.pidfd_send_signal(fd, signum)
                self.note(f"{signal.Signals(signum).name} to {what}, pid {pid}")
            except ProcessLookupError:
                self.note(f"{what}, pid {pid}, is gone")

        send(signum)
        return send

    def start_broker(self):
        if self.broker.process.poll() is not None:
            self.broker.start()
            self.note("the broker is back")

    def stop_database(self, mode):
        self.thaw_database()
        self.note(f"PostgreSQL is stopped, mode {mode}")
        self.server.stop(mode)

    def freeze_database(self):
        """SIGSTOP of the postmaster and all of its processes."""
        if self._frozen or self.server.process.poll() is not None:
            return
        self._frozen = [self.server.process.pid]
        os.kill(self.server.process.pid, signal.SIGSTOP)
        # It makes no more of them now.
        self._frozen += children_of(self.server.process.pid)
        for pid in self._frozen[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        self.note(f"SIGSTOP to PostgreSQL, {len(self._frozen)} processes")

    def thaw_database(self):
        # The postmaster comes last: until then it reaps nobody, and no number is given to somebody else.
        for pid in reversed(self._frozen):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self._frozen:
            self.note("SIGCONT to PostgreSQL")
        self._frozen = []

    def start_database(self):
        if self.server.process.poll() is not None:
            self.server.start()
            self.note("PostgreSQL is back")

    def heal(self):
        """Nothing is in the system's way any more, and it runs. What is stopped by SIGSTOP its fault continues."""
        self.start_broker()
        self.thaw_database()
        self.start_database()
        if self.disk:
            self.disk.empty()
        self.broker_link.heal()
        self.database_link.heal()
        if not self.system.is_up():
            self.note("the system is down and is started")
            self.system.start()

    def wait_until(self, condition, timeout, what):
        wait_until(condition, timeout / PATIENCE, what, 0.02)

    def save_logs(self, directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "broker.log").write_text(self.broker.log())
        (directory / "postgres.log").write_text(self.server.log())
        self.system.save_logs(directory)
        (directory / "timeline.txt").write_text("\n".join(self.timeline) + "\n")
