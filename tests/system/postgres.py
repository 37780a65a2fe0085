"""A private PostgreSQL server for the tests of one process, and a database for each test."""
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
from psycopg import errors

from processes import as_user, clean_environment, die_with_parent, end, free_port, run, wait_until

BIN = Path("/usr/lib/postgresql/15/bin")

HBA = """\
local all all trust
host all +asks_password 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""


class Server:
    """fsync stays on: what is said to be durable here has to be. Modes of stop() as in pg_ctl(1)."""

    SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

    def __init__(self):
        # Not pytest's own directory: that one belongs to root, and the server must not.
        self.home = Path(tempfile.mkdtemp(prefix="ingestd-postgres-"))
        self.data = self.home / "data"
        self.process = None
        self.port = free_port()
        if os.geteuid() == 0:
            shutil.chown(self.home, "postgres", "postgres")
        run(*as_user("postgres", "KILL"), BIN / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust",
            "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions", env=clean_environment(),
            cwd="/")
        (self.data / "pg_hba.conf").write_text(HBA)
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write(f"listen_addresses = '127.0.0.1'\nunix_socket_directories = '{self.home}'\n"
                       "lc_messages = 'C'\nmax_connections = 60\nshared_buffers = 64MB\n"
                       "log_line_prefix = '%m [%p] %a '\n")
        self.start()
        with self.connect() as c:
            c.execute("CREATE ROLE asks_password")

    def dsn(self, name="postgres", user="postgres"):
        return f"host=127.0.0.1 port={self.port} dbname={name} user={user}"

    def connect(self, name="postgres"):
        return psycopg.connect(self.dsn(name), autocommit=True)

    def start(self):
        if self.process is not None and self.process.poll() is None:
            return
        log = open(self.home / "log", "ab")
        command = [*as_user("postgres", "INT"), str(BIN / "postgres"), "-D", str(self.data),
                   "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                                        env=clean_environment(), preexec_fn=die_with_parent(signal.SIGINT))
        log.close()
        wait_until(self._ready, 60, "PostgreSQL accepts connections", 0.05)

    def _ready(self):
        if self.process.poll() is not None:
            raise AssertionError("PostgreSQL ended:\n" + self.log()[-4000:])
        try:
            self.connect().close()
            return True
        except psycopg.OperationalError:
            return False

    def stop(self, mode="fast"):
        end(self.process, self.SIGNALS[mode], 60)

    def restart(self, mode="fast"):
        self.stop(mode)
        self.start()

    def log(self):
        return (self.home / "log").read_text(errors="replace")

    def destroy(self):
        self.stop("immediate")
        shutil.rmtree(self.home, ignore_errors=True)


class Database:
    """One database of a Server. query() and count() have a connection of their own and bring it back."""

    _numbers = itertools.count(1)

    def __init__(self, server):
        self.server = server
        self.name = f"t{next(self._numbers)}"
        self.dsn = server.dsn(self.name)
        self._connection = None
        with server.connect() as c:
            c.execute(f"CREATE DATABASE {self.name}")

    def connect(self):
        return self.server.connect(self.name)

    @contextlib.contextmanager
    def locked(self, table="telemetry"):
        """Nobody else reads or writes the table, until the connection that is given rolls back or the block ends."""
        with self.connect() as holder:
            holder.autocommit = False
            holder.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield holder

    @staticmethod
    def wait_for_waiter(holder):
        """Until somebody waits for a lock: a writer has begun its transaction."""
        wait_until(lambda: holder.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0],
                   what="a writer waits")

    def query(self, sql, *params):
        """Runs one statement and returns its rows, an empty list where it has none."""
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = self.connect()
        cursor = self._connection.execute(sql, params)
        return cursor.fetchall() if cursor.description else []

    def value(self, sql, *params):
        return self.query(sql, *params)[0][0]

    def count(self, table="telemetry"):
        """Rows in the table; 0 where it has not been made yet."""
        try:
            return self.value(f"SELECT count(*) FROM {table}")
        except (errors.UndefinedTable, errors.InvalidSchemaName):
            return 0

    def wait_for_rows(self, n, timeout=30, table="telemetry"):
        interval = 0.02 if n < 5000 else 0.2
        wait_until(lambda: self.count(table) >= n, timeout, f"{n} rows in {table}", interval)

    def create_numbered_table(self, table="telemetry"):
        """The table that ingestd would make, with one more column that tells the order of insertion."""
        self.query(f"CREATE TABLE {table} (time timestamptz NOT NULL, topic text NOT NULL,"
                   " payload jsonb NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY)")

    def answers(self):
        try:
            return bool(self.query("SELECT 1"))
        except psycopg.Error:
            return False

    def start_server(self):
        """Returns when the database answers again."""
        self.server.start()
        wait_until(self.answers, 60, "the database answers")

    def sessions(self):
        """Backends of this database other than the tests' own."""
        with self.server.connect() as c:
            return c.execute("SELECT pid, application_name, state FROM pg_stat_activity WHERE datname = %s"
                             " AND application_name LIKE 'ingestd%%'", (self.name,)).fetchall()

    def drop(self):
        if self._connection is not None:
            self._connection.close()
        self.server.start()
        started = time.monotonic()
        with self.server.connect() as c:
            c.execute(f"DROP DATABASE {self.name} WITH (FORCE)")
        return time.monotonic() - started
