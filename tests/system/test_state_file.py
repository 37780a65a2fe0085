"""state.db: damaged, foreign, too new, on a full disk, read-only. Named, never emptied in silence, never believed."""
import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import pytest

from disks import fill, mounted
from processes import run, wait_until
from publisher import Publisher, numbered, publish
from wire import Wire

CANNOT_CREATE = 73


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def left(broker, database, ingestd, state):
    """A state directory with a list in it: the run before was killed with messages in hand."""
    database.create_numbered_table()
    daemon = ingestd(client_id="left", flush_timeout="300ms", spool_limit=0).wait_ready()
    with database.locked() as holder:
        publish(broker, numbered(500))
        database.wait_for_waiter(holder)
        daemon.wait_log("gate_waiting", 20, phase="begins")
        daemon.kill()
        holder.rollback()
    with contextlib.closing(sqlite3.connect(state / "state.db")) as c:
        assert c.execute("SELECT count(*) FROM unacknowledged").fetchone()[0] > 0
    return state / "state.db"


def numbers(database):
    return sorted(n for (n,) in database.query("SELECT (payload->>'n')::int FROM telemetry"))


def truncated(path):
    with open(path, "r+b") as f:
        f.truncate(path.stat().st_size // 2)


def garbage(path):
    path.write_bytes(b"no database at all " * 1000)


def garbage_in_the_middle(path):
    data = bytearray(path.read_bytes())
    data[4096:8192] = os.urandom(4096)
    path.write_bytes(data)


def somebody_elses(path):
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as c:
        c.execute("CREATE TABLE cookies (name TEXT)")
        c.commit()


def without_a_table(path):
    with contextlib.closing(sqlite3.connect(path)) as c:
        c.execute("DROP TABLE stream")
        c.commit()


@pytest.mark.parametrize("damage", [truncated, garbage, garbage_in_the_middle, somebody_elses, without_a_table])
def test_a_file_that_cannot_be_read_is_put_aside_and_nothing_is_lost(broker, database, ingestd, left, damage):
    damage(left)
    before = left.read_bytes()
    daemon = ingestd(client_id="left").wait_ready()
    aside = daemon.wait_log("state_put_aside")
    assert aside.level == "error" and "duplicates are possible" in aside["next"]
    kept = left.with_name(aside["kept_as"])
    assert kept.read_bytes() == before
    assert daemon.wait_log("session_unknown")
    publish(broker, numbered(10, start=500))
    wait_until(lambda: set(numbers(database)) == set(range(510)), what="all is there")
    assert daemon.stop() == 0
    # The new one is a good one.
    again = ingestd(client_id="left").wait_ready()
    assert again.events("state_put_aside") == []


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.unlink()],
                         ids=["empty", "gone"])
def test_an_empty_or_missing_file_is_made_anew_and_nothing_is_lost(broker, database, ingestd, left, damage):
    damage(left)
    daemon = ingestd(client_id="left").wait_ready()
    assert "duplicates are possible" in daemon.wait_log("session_unknown")["next"]
    wait_until(lambda: set(numbers(database)) == set(range(500)), what="all is there")


def meta(path, key):
    with contextlib.closing(sqlite3.connect(path)) as c:
        return c.execute("SELECT value FROM meta WHERE key = ?", [key]).fetchone()


def test_a_list_from_before_the_machine_lost_its_power_is_not_believed(broker, database, ingestd, left):
    """It may be any earlier state of the file, and tell of messages that are long since done with."""
    with open("/proc/sys/kernel/random/boot_id") as f:
        assert meta(left, "boot") == (f.read().strip(),)
    with contextlib.closing(sqlite3.connect(left)) as c:
        c.execute("UPDATE meta SET value = 'another' WHERE key = 'boot'")
        c.commit()
    daemon = ingestd(client_id="left").wait_ready()
    assert "duplicates are possible" in daemon.wait_log("state_outdated")["next"]
    assert daemon.events("stream_to_close") == []
    wait_until(lambda: set(numbers(database)) == set(range(500)), what="all is there")
    assert daemon.events("session_resumed") == []
    # A clean stop syncs it: another boot can believe that.
    assert daemon.stop() == 0
    assert meta(left, "boot") == ("synced",)
    again = ingestd(client_id="left").wait_ready()
    assert again.events("state_outdated") == []


def test_a_file_of_a_newer_version_ends_it_with_73_and_stays_as_it_is(ingestd, left):
    with contextlib.closing(sqlite3.connect(left)) as c:
        c.execute("PRAGMA user_version = 99")
    before = left.read_bytes()
    daemon = ingestd(client_id="left")
    assert daemon.process.wait(20) == CANNOT_CREATE
    said = daemon.wait_log("state_dir_unusable")
    assert "newer version" in said["reason"] and said["file"] == "state.db"
    assert left.read_bytes() == before


def test_a_directory_in_its_place_ends_it_with_73(ingestd, state):
    (state / "state.db").mkdir(parents=True)
    daemon = ingestd()
    assert daemon.process.wait(20) == CANNOT_CREATE
    assert daemon.wait_log("state_dir_unusable")["file"] == "state.db"


def test_a_file_on_a_read_only_file_system_ends_it_with_73(ingestd, left):
    with mounted(left.parent, "--bind", str(left.parent)):
        run("mount", "-o", "remount,bind,ro", left.parent)
        daemon = ingestd(client_id="left")
        assert daemon.process.wait(20) == CANNOT_CREATE
        assert daemon.wait_log("state_dir_unusable")


def test_a_full_disk_at_the_start_ends_it_with_73(ingestd, state):
    state.mkdir()
    with mounted(state, "-t", "tmpfs", "-o", "size=64k", "none"):
        (state / "client-id").write_text("full\n")
        (state / "lock").write_text("1\n")
        filler = fill(state)
        daemon = ingestd()
        assert daemon.process.wait(20) == CANNOT_CREATE
        assert daemon.wait_log("state_dir_unusable")
        filler.unlink()


@pytest.mark.slow
def test_a_disk_that_fills_up_holds_everything_and_goes_on_when_there_is_room(broker, database, ingestd, state):
    database.create_numbered_table()
    state.mkdir()
    with mounted(state, "-t", "tmpfs", "-o", "size=8m", "none"):
        daemon = ingestd().wait_ready()
        publish(broker, numbered(100))
        database.wait_for_rows(100)
        filler = fill(state)
        publisher = Publisher(broker.port)
        for start in range(100, 40_000, 500):
            publisher.publish(numbered(500, start=start))
            if daemon.events("state_not_written"):
                break
        said = daemon.wait_log("state_not_written")
        assert said.level == "error" and "holding" in said["next"]
        held = start + 500
        # What could not be noted is with no writer, and nothing more is read.
        daemon.wait_log("gate_waiting", 20, phase="begins", reason="the state directory cannot be written")
        stored = database.count()
        assert stored < held
        publisher.publish(numbered(500, start=held))
        assert database.count() == stored
        filler.unlink()
        daemon.wait_log("state_written")
        database.wait_for_rows(held + 500)
        assert numbers(database) == list(range(held + 500))
        assert daemon.stop() == 0


def test_a_stop_does_not_wait_for_a_disk_that_is_full(broker, database, ingestd, state):
    database.create_numbered_table()
    state.mkdir()
    with mounted(state, "-t", "tmpfs", "-o", "size=8m", "none"):
        daemon = ingestd().wait_ready()
        filler = fill(state)
        publisher = Publisher(broker.port)
        n = 0
        while not daemon.events("state_not_written"):
            publisher.publish(numbered(500, start=n))
            n += 500
        assert daemon.stop() in (0, 75)
        received = daemon.totals()["received"]
        assert received == daemon.totals()["committed"] == database.count()
        ended = [name for name in daemon.stop_events() if name.startswith(("state_", "shutdown_c"))]
        assert ended[-2:] == ["state_not_written", "shutdown_complete"], "the last word comes last"
        filler.unlink()
        # What it had acknowledged does not come again, all else comes.
        daemon = ingestd().wait_ready()
        database.wait_for_rows(n)
        wait_until(lambda: set(numbers(database)) == set(range(n)), what="all is there")
        assert daemon.stop() == 0


def test_a_file_that_was_being_written_when_its_process_was_killed_is_always_good(broker, database, ingestd, state):
    database.create_numbered_table()
    publisher = Publisher(broker.port)
    for part in range(5):
        daemon = ingestd(client_id="killed").wait_ready()
        publisher.publish(numbered(800, start=800 * part))
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.process.wait()
        assert daemon.events("state_put_aside") == []
    daemon = ingestd(client_id="killed").wait_ready()
    database.wait_for_rows(4000)
    assert numbers(database) == list(range(4000))
    assert daemon.stop() == 0


def test_the_file_does_not_grow_with_the_number_of_messages(broker, database, ingestd, state):
    daemon = ingestd().wait_ready()
    publisher = Publisher(broker.port)
    sizes = []
    for part in range(4):
        publisher.publish(numbered(20_000, start=20_000 * part))
        database.wait_for_rows(20_000 * (part + 1), 60)
        sizes.append(sum(p.stat().st_size for p in state.glob("state.db*")))
    assert sizes[-1] < 16 << 20, sizes
    assert sizes[-1] < sizes[0] + (8 << 20), sizes
    assert daemon.stop() == 0


def test_it_is_for_its_owner_only(broker, database, ingestd, state):
    ingestd().wait_ready()
    assert {oct(p.stat().st_mode & 0o777) for p in state.glob("state.db*")} == {"0o600"}


# ---- what is kept ----

def test_files_that_are_put_aside_one_after_the_other_are_all_kept(ingestd, state):
    """A service manager starts again at once: the second file must not take the place of the first."""
    state.mkdir()
    kept = {}
    for turn in range(4):
        content = b"no database at all, number %d " % turn * 500
        for part in state.glob("state.db*"):
            if "damaged" not in part.name:
                part.unlink()
        (state / "state.db").write_bytes(content)
        daemon = ingestd(client_id="again")
        kept[daemon.wait_log("state_put_aside")["kept_as"]] = content
        daemon.kill()
    assert len(kept) == 4, "two of them got the same name"
    assert {name: (state / name).read_bytes() for name in kept} == kept


def wal_left(path, *statements):
    """A sound SQLite file whose last changes stand in its journal only, as kill -9 leaves one."""
    with tempfile.TemporaryDirectory() as elsewhere:
        work = Path(elsewhere) / "work.db"
        if path.exists():
            shutil.copy(path, work)
        with contextlib.closing(sqlite3.connect(work, isolation_level=None)) as c:
            c.execute("PRAGMA journal_mode = WAL")
            c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            for statement in statements:
                c.execute(statement)
            path.parent.mkdir(exist_ok=True)
            for suffix in ("", "-wal"):
                shutil.copy(f"{work}{suffix}", f"{path}{suffix}")
    path.with_name(path.name + "-shm").unlink(missing_ok=True)


def files(path):
    return {p.name: p.read_bytes() for p in path.parent.glob(path.name + "*") if not p.name.endswith("-shm")}


def test_a_file_of_a_newer_version_that_was_killed_stays_as_it_is_with_its_journal(ingestd, state):
    wal_left(state / "state.db", "CREATE TABLE tomorrow (x)", "PRAGMA application_id = 1768843108",
             "PRAGMA user_version = 99")
    before = files(state / "state.db")
    assert len(before) == 2 and len(before["state.db-wal"]) > 0
    daemon = ingestd(client_id="newer")
    assert daemon.process.wait(20) == CANNOT_CREATE
    assert "newer version" in daemon.wait_log("state_dir_unusable")["reason"]
    assert files(state / "state.db") == before


def test_somebody_elses_file_is_put_aside_with_its_journal(ingestd, state):
    wal_left(state / "state.db", "CREATE TABLE cookies (name TEXT)", "INSERT INTO cookies VALUES ('crumb')")
    before = files(state / "state.db")
    daemon = ingestd(client_id="foreign")
    kept = state / daemon.wait_log("state_put_aside")["kept_as"]
    assert kept.read_bytes() == before["state.db"]
    # Whatever stands in the journal is still the file's.
    with contextlib.closing(sqlite3.connect(kept)) as c:
        assert c.execute("SELECT name FROM cookies").fetchall() == [("crumb",)]


@pytest.mark.parametrize("change", ["entries = x''", "entries = zeroblob(7)", "entries = randomblob(4096)",
                                    "entries = 'text'", "first = first + 1", "first = 'x'"])
def test_a_list_that_makes_no_sense_is_put_aside_and_nothing_is_lost(broker, database, ingestd, left, change):
    """Sound to SQLite, and no list of ours."""
    with contextlib.closing(sqlite3.connect(left)) as c:
        c.execute(f"UPDATE unacknowledged SET {change} WHERE block = (SELECT max(block) FROM unacknowledged)")
        c.commit()
    daemon = ingestd(client_id="left").wait_ready()
    assert "makes no sense" in daemon.wait_log("state_put_aside")["reason"]
    publish(broker, numbered(10, start=500))
    wait_until(lambda: set(numbers(database)) == set(range(510)), what="all is there")
    assert daemon.stop() == 0


# ---- where nothing can be written ----

def test_a_file_that_cannot_be_changed_ends_it_with_73(ingestd, left):
    if subprocess.run(["chattr", "+i", left], capture_output=True).returncode != 0:
        pytest.skip("no immutable files here")
    try:
        before = left.read_bytes()
        daemon = ingestd(client_id="left")
        assert daemon.process.wait(20) == CANNOT_CREATE
        assert daemon.wait_log("state_dir_unusable")
        assert left.read_bytes() == before
    finally:
        run("chattr", "-i", left)


@pytest.mark.parametrize("what", ["directory", "file"])
def test_without_the_right_to_write_it_ends_with_73_and_names_what(ingestd, what):
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    home = Path(tempfile.mkdtemp(prefix="ingestd-state-"))
    try:
        (home / "lock").write_text("")
        (home / "lock").chmod(0o666)
        home.chmod(0o555 if what == "directory" else 0o777)
        if what == "file":
            with contextlib.closing(sqlite3.connect(home / "state.db")) as c:
                c.execute("CREATE TABLE t (x)")
            (home / "state.db").chmod(0o600)
        daemon = ingestd(client_id="nobody", state_dir=home,
                         prefix=("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"))
        assert daemon.process.wait(20) == CANNOT_CREATE
        said = daemon.wait_log("state_dir_unusable")
        assert said["file"] == ("instance" if what == "directory" else "state.db")
        assert said["state_dir"] == str(home)
        assert [p for p in home.iterdir() if "damaged" in p.name] == []
    finally:
        shutil.rmtree(home)


def set_file_size_limit(pid, limit):
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def fail_to_write(daemon, broker, start):
    """Publishes until it says that it cannot write any more. Returns the number of the next message."""
    publisher = Publisher(broker.port)
    while not daemon.events("state_not_written"):
        assert start < 100_000 and daemon.process.poll() is None
        publisher.publish(numbered(200, start=start))
        start += 200
    return start


def test_a_limit_on_the_size_of_files_is_a_full_disk_and_no_end(broker, database, ingestd, state):
    """ulimit -f, LimitFSIZE=: the kernel sends SIGXFSZ, which would end the process with all that it holds."""
    database.create_numbered_table()
    daemon = ingestd().wait_ready()
    set_file_size_limit(daemon.pid, max(p.stat().st_size for p in state.glob("state.db*")) + 1)
    n = fail_to_write(daemon, broker, 0)
    assert daemon.process.poll() is None
    set_file_size_limit(daemon.pid, resource.RLIM_INFINITY)
    daemon.wait_log("state_written")
    database.wait_for_rows(n)
    assert numbers(database) == list(range(n))
    assert daemon.stop() == 0


def test_while_the_disk_is_full_nothing_is_stored_or_acknowledged_that_is_not_noted(broker, database, ingestd, state):
    database.create_numbered_table()
    wire = Wire(broker.port)
    state.mkdir()
    with mounted(state, "-t", "tmpfs", "-o", "size=8m", "none"):
        daemon = ingestd(broker=wire.url).wait_ready()
        # The broker is not to learn what is stored: it sends it again, and only the list tells that it is.
        wire.stall("up")
        filler = fill(state)
        n = fail_to_write(daemon, broker, 0)
        daemon.wait_log("gate_waiting", 20, phase="begins", reason="the state directory cannot be written")
        # Nothing can be under way any more: what is stored now is all.
        stored = database.count()
        assert stored < n
        publish(broker, numbered(200, start=n))
        daemon.kill()
        assert database.count() == stored
        assert "Received PUBACK from" not in broker.log()
        wire.cut()
        wire.flow()
        filler.unlink()
        daemon = ingestd(broker=wire.url).wait_ready()
        publish(broker, numbered(10, start=n + 200))
        wait_until(lambda: n + 209 in numbers(database), 30, "the last is there")
        database.wait_for_rows(n + 210)
        assert numbers(database) == list(range(n + 210))
        assert daemon.stop() == 0
    wire.close()


def test_a_full_disk_costs_neither_connection_nor_session(broker, database, ingestd, state):
    """What comes again on a new connection is recognised, though it could not be noted."""
    database.create_numbered_table()
    wire = Wire(broker.port)
    state.mkdir()
    with mounted(state, "-t", "tmpfs", "-o", "size=8m", "none"):
        daemon = ingestd(broker=wire.url).wait_ready()
        filler = fill(state)
        n = fail_to_write(daemon, broker, 0)
        assert daemon.events("mqtt_connection_lost") == []
        mark = daemon.mark()
        wire.cut()
        daemon.wait_log("mqtt_connected", 30, after=mark)
        filler.unlink()
        daemon.wait_log("state_written")
        database.wait_for_rows(n)
        publish(broker, numbered(10, start=n))
        database.wait_for_rows(n + 10)
        assert numbers(database) == list(range(n + 10))
        assert daemon.stop() == 0
    wire.close()
