"""`ingestd dead-letters` among others, killed, interrupted, and without what it needs: nothing twice, nothing lost."""
import random
import re
import signal
import threading

import pytest

from letters import (CONFIGURATION, DONE, STAYED, TEMPORARY, add_many, left, letter_numbers, numbers)
from processes import is_running, read_proc, wait_until
from publisher import numbered, publish

HOLD = 4711


def hold_deletions(database):
    """From now on whoever deletes a dead letter waits as long as the lock HOLD is held."""
    database.query("CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                   f"PERFORM pg_advisory_xact_lock({HOLD}); RETURN OLD; END $$")
    database.query("CREATE TRIGGER hold BEFORE DELETE ON ingestd.dead_letter FOR EACH ROW EXECUTE FUNCTION hold()")


# Several at once


def test_two_replays_at_once_store_everything_once(tables, start_letters):
    add_many(tables, 20_000)
    with tables.locked() as holder:
        both = [start_letters("replay", "--batch-size", 100) for _ in range(2)]
        # Each has its first batch in hand.
        wait_until(lambda: holder.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0] == 2,
                   what="both are at work")
    ends = [command.end() for command in both]
    assert [e[0] for e in ends] == [DONE, DONE], ends
    assert left(tables) == [] and numbers(tables) == list(range(20_000))
    said = [dict(zip(("replayed", "stayed", "others"), map(int, re.findall(r"\d+", e[1])))) for e in ends]
    assert sum(s["replayed"] for s in said) == 20_000, said
    assert all(s["replayed"] >= 100 for s in said), said
    assert all(s["replayed"] + s["stayed"] + s.get("others", 0) == 20_000 for s in said), said


def test_what_another_holds_is_left_to_it_and_the_others_are_stored(tables, start_letters):
    add_many(tables, 30)
    with tables.connect() as holder:
        holder.autocommit = False
        holder.execute("SELECT FROM ingestd.dead_letter WHERE convert_from(payload, 'UTF8') = '{\"n\": 3}' FOR UPDATE")
        command = start_letters("replay", "--batch-size", 10)
        tables.wait_for_rows(29)
        tables.wait_for_waiter(holder)
        holder.execute("DELETE FROM ingestd.dead_letter WHERE convert_from(payload, 'UTF8') = '{\"n\": 3}'")
        holder.commit()
    assert command.end() == (DONE, "replayed 29, stayed 0, taken by others 1\n", "")
    assert numbers(tables) == [n for n in range(30) if n != 3]


def test_what_another_lets_go_is_stored(tables, start_letters):
    add_many(tables, 30)
    with tables.connect() as holder:
        holder.autocommit = False
        holder.execute("SELECT FROM ingestd.dead_letter WHERE convert_from(payload, 'UTF8') = '{\"n\": 3}' FOR UPDATE")
        command = start_letters("replay", "--batch-size", 10)
        tables.wait_for_waiter(holder)
        holder.rollback()
    assert command.end() == (DONE, "replayed 30, stayed 0\n", "")
    assert numbers(tables) == list(range(30))


def test_what_another_holds_for_long_is_said_and_stays(tables, letters):
    add_many(tables, 3)
    with tables.connect() as holder:
        holder.autocommit = False
        holder.execute("SELECT FROM ingestd.dead_letter WHERE convert_from(payload, 'UTF8') = '{\"n\": 1}' FOR UPDATE")
        status, out, err = letters("replay")
    assert (status, out) == (TEMPORARY, "replayed 2, stayed 0, not tried 1\n")
    assert "another session has locked" in err and "55P03" in err and "try again later" in err
    assert letter_numbers(tables) == [1]


@pytest.mark.slow
def test_replay_while_ingestd_adds_rows_and_dead_letters(broker, database, ingestd, start_letters):
    daemon = ingestd().wait_ready()
    add_many(database, 5000, start=100_000)
    messages = []
    for i, good in enumerate(numbered(6000)):
        messages.append(good if i % 3 else ("t/bad", '{"n": %d' % i))
    sender = threading.Thread(target=publish, args=(broker, messages))
    sender.start()
    runs = []
    while sender.is_alive() or not runs:
        runs.append(start_letters("replay", "--batch-size", 50).end())
    sender.join()
    assert daemon.stop() == 0
    assert all(status in (DONE, STAYED) for status, _, _ in runs), runs
    good = [i for i in range(6000) if i % 3] + list(range(100_000, 105_000))
    assert numbers(database) == sorted(good)
    assert database.count("ingestd.dead_letter") == 2000
    assert database.value("SELECT count(DISTINCT payload) FROM ingestd.dead_letter") == 2000


# Ending in the middle

def test_kill_between_storing_and_deleting_leaves_the_letters_and_no_rows(tables, letters, start_letters):
    add_many(tables, 30)
    hold_deletions(tables)
    with tables.connect() as holder:
        holder.execute(f"SELECT pg_advisory_lock({HOLD})")
        command = start_letters("replay", "--batch-size", 10)
        tables.wait_for_waiter(holder)
        command.kill()
        # The server itself notices, although nobody lets the lock go.
        wait_until(lambda: tables.sessions() == [], what="its backend has ended")
    assert tables.count() == 0 and letter_numbers(tables) == list(range(30))
    assert letters("replay")[:2] == (DONE, "replayed 30, stayed 0\n")
    assert numbers(tables) == list(range(30)) and left(tables) == []


@pytest.mark.slow
def test_kill_at_any_moment_leaves_each_either_stored_or_a_letter(tables, letters, start_letters):
    total, choose = 6000, random.Random(5)
    add_many(tables, total)
    kills = 0
    while kills < 15 and left(tables):
        before = tables.count()
        command = start_letters("replay", "--batch-size", 40)
        wait_until(lambda: tables.count() > before or command.process.poll() is not None, what="it is at work",
                   interval=choose.random() / 100)
        kills += command.process.poll() is None
        command.kill()
        wait_until(lambda: tables.sessions() == [], what="its backend has ended")
        assert sorted(numbers(tables) + letter_numbers(tables)) == list(range(total))
    assert kills >= 5
    assert letters("replay")[0] == DONE
    assert numbers(tables) == list(range(total)) and left(tables) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_takes_back_the_batch_in_hand_and_says_what_was_done(tables, start_letters, signum):
    add_many(tables, 30)
    hold_deletions(tables)
    tables.query("ALTER TABLE ingestd.dead_letter DISABLE TRIGGER hold")
    tables.query("CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                 "IF convert_from(OLD.payload, 'UTF8') = '{\"n\": 15}' THEN "
                 f"PERFORM pg_advisory_xact_lock({HOLD}); END IF; RETURN OLD; END $$")
    tables.query("ALTER TABLE ingestd.dead_letter ENABLE TRIGGER hold")
    with tables.connect() as holder:
        holder.execute(f"SELECT pg_advisory_lock({HOLD})")
        command = start_letters("replay", "--batch-size", 10)
        tables.wait_for_waiter(holder)
        command.process.send_signal(signum)
        status, out, err = command.end()
        wait_until(lambda: tables.sessions() == [], what="its backend has ended")
    assert status == 128 + signum
    assert out == "replayed 10, stayed 0, not tried 20\n"
    assert signum.name in err and "nothing is half done" in err
    assert numbers(tables) == list(range(10)) and letter_numbers(tables) == list(range(10, 30))


def hold_commits(database):
    """From now on the commit of who has stored a row waits as long as the lock HOLD is held."""
    database.query("CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                   "SET CONSTRAINTS ALL DEFERRED; RETURN NULL; END $$")
    database.query("CREATE TRIGGER late BEFORE INSERT ON telemetry FOR EACH STATEMENT EXECUTE FUNCTION late()")
    database.query("CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                   f"PERFORM pg_advisory_xact_lock({HOLD}); RETURN NULL; END $$")
    database.query("CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON telemetry DEFERRABLE INITIALLY DEFERRED "
                   "FOR EACH ROW EXECUTE FUNCTION hold()")


def wait_for_commit(database):
    """Until its COMMIT waits."""
    wait_until(lambda: database.value("SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT'"
                                      " AND state = 'active' AND wait_event_type = 'Lock'"
                                      " AND datname = current_database()"), what="it commits")


def test_a_commit_that_has_been_sent_is_waited_for(tables, start_letters):
    """An interrupt does not make it a matter of luck what has happened."""
    add_many(tables, 20)
    hold_commits(tables)
    with tables.connect() as holder:
        holder.execute(f"SELECT pg_advisory_lock({HOLD})")
        command = start_letters("replay", "--batch-size", 10, terminal=True)
        wait_for_commit(tables)
        command.process.send_signal(signal.SIGINT)
        wait_until(lambda: not int(re.search(r"ShdPnd:\t(\w+)", read_proc(command.process.pid, "status"))[1], 16),
                   what="it has taken the signal")
        assert is_running(command.process.pid)
    status, out, screen = command.end()
    assert (status, out) == (130, "replayed 10, stayed 0, not tried 10\n") and "nothing is half done" in screen
    assert numbers(tables) == list(range(10)) and letter_numbers(tables) == list(range(10, 20))


def test_a_commit_whose_answer_is_lost_is_said_to_be_in_doubt(tables, start_letters):
    add_many(tables, 20)
    hold_commits(tables)
    with tables.connect() as holder:
        holder.execute(f"SELECT pg_advisory_lock({HOLD})")
        command = start_letters("replay", "--batch-size", 10)
        wait_for_commit(tables)
        holder.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                       "WHERE application_name = 'ingestd dead-letters' AND datname = current_database()")
        status, out, err = command.end()
    assert status == TEMPORARY and "not known" in err and "as a whole or not at all" in err
    assert letter_numbers(tables) == list(range(20)) and tables.count() == 0


# What stands in the way


def test_the_table_has_gone(tables, letters):
    add_many(tables, 3)
    tables.query("DROP TABLE telemetry")
    status, out, err = letters("replay")
    assert (status, out) == (CONFIGURATION, "")
    assert "no table telemetry" in err and "--table" in err and tables.name in err
    assert letter_numbers(tables) == [0, 1, 2]
    assert not tables.value("SELECT to_regclass('telemetry') IS NOT NULL"), "it is ingestd that makes tables"


def test_the_table_goes_in_the_middle(tables, start_letters):
    add_many(tables, 20)
    with tables.locked() as holder:
        command = start_letters("replay", "--batch-size", 10)
        tables.wait_for_waiter(holder)
        holder.execute("DROP TABLE telemetry")
        holder.commit()
    status, out, err = command.end()
    assert (status, out) == (CONFIGURATION, "replayed 0, stayed 0, not tried 20\n")
    assert "cannot store the rows" in err and "42P01" in err and "--table" in err
    assert letter_numbers(tables) == list(range(20))


@pytest.mark.parametrize("words", [["list"], ["replay"], ["discard", "--yes"]], ids=lambda w: w[0])
def test_there_is_no_table_of_dead_letters(database, letters, words):
    database.query("CREATE TABLE telemetry (time timestamptz, topic text, payload jsonb)")
    status, out, err = letters(*words)
    assert (status, out) == (CONFIGURATION, "")
    assert "dead_letter" in err and database.name in err and "--database" in err


@pytest.fixture
def guest(tables):
    """A role that may do nothing here yet; its name."""
    name = f"guest_{tables.name}"
    tables.query(f"CREATE ROLE {name} LOGIN")
    tables.query(f"GRANT USAGE ON SCHEMA ingestd TO {name}")
    yield name
    tables.query(f"DROP OWNED BY {name}")
    tables.query(f"DROP ROLE {name}")


RIGHTS = {
    "list without SELECT": (["list"], [], "SELECT"),
    "replay without SELECT": (["replay"], ["INSERT ON telemetry"], "SELECT, UPDATE, DELETE"),
    "replay without UPDATE": (["replay"], ["INSERT ON telemetry", "SELECT, DELETE ON ingestd.dead_letter"], "UPDATE"),
    "replay without DELETE": (["replay"], ["INSERT ON telemetry", "SELECT, UPDATE ON ingestd.dead_letter"], "DELETE"),
    "replay without INSERT": (["replay"], ["SELECT, UPDATE, DELETE ON ingestd.dead_letter"], "INSERT"),
    "discard without DELETE": (["discard", "--yes"], ["SELECT, UPDATE ON ingestd.dead_letter"], "DELETE"),
}


@pytest.mark.parametrize("name", RIGHTS)
def test_a_right_is_missing(tables, guest, letters, name):
    words, granted, missing = RIGHTS[name]
    add_many(tables, 3)
    for grant in granted:
        tables.query(f"GRANT {grant} TO {guest}")
    status, _, err = letters(*words, database=tables.server.dsn(tables.name, guest))
    assert status == CONFIGURATION
    assert "permission denied" in err and "GRANT" in err and missing in err and guest in err and "42501" in err
    assert letter_numbers(tables) == [0, 1, 2] and tables.count() == 0


def test_the_rights_that_it_names_are_enough(tables, guest, letters):
    add_many(tables, 3)
    tables.query(f"GRANT SELECT, UPDATE, DELETE ON ingestd.dead_letter TO {guest}")
    tables.query(f"GRANT INSERT ON telemetry TO {guest}")
    dsn = tables.server.dsn(tables.name, guest)
    assert letters("replay", "--id", left(tables)[0], database=dsn)[:2] == (DONE, "replayed 1, stayed 0\n")
    assert letters("discard", "--yes", database=dsn)[:2] == (DONE, "discarded 2\n")


def test_a_rule_that_keeps_letters_from_being_deleted_keeps_them_from_being_stored(tables, letters):
    add_many(tables, 3)
    tables.query("CREATE RULE keep AS ON DELETE TO ingestd.dead_letter DO INSTEAD NOTHING")
    status, out, err = letters("replay")
    assert (status, out) == (CONFIGURATION, "replayed 0, stayed 0, not tried 3\n")
    assert "DELETE" in err and tables.count() == 0 and letter_numbers(tables) == [0, 1, 2]


def test_a_table_that_ingestd_would_not_write_into_is_refused(tables, letters):
    add_many(tables, 1)
    tables.query("CREATE TABLE wrong (time date, topic text, payload jsonb)")
    status, _, err = letters("replay", "--table", "wrong")
    assert status == CONFIGURATION and "time is date" in err
    assert letters("replay", "--table", "nowhere.telemetry")[0] == CONFIGURATION
    assert letter_numbers(tables) == [0]


def test_the_database_is_away(database, letters):
    for words in (["list"], ["replay"], ["discard", "--yes"]):
        status, out, err = letters(*words, database="host=127.0.0.1 port=1 dbname=x password=s3cret")
        assert (status, out) == (TEMPORARY, "")
        assert err.count("\n") == 1 and "cannot get a connection" in err and "s3cret" not in err


def test_the_database_is_unknown(database, letters):
    status, _, err = letters("list", database=database.server.dsn("nosuch"))
    assert status == CONFIGURATION and "3D000" in err and "nosuch" in err


def test_a_connection_string_that_cannot_be_read_is_not_shown(database, letters):
    status, _, err = letters("list", database="s3cret")
    assert status == CONFIGURATION and "--database" in err and "s3cret" not in err


def test_the_connection_goes_in_the_middle(tables, start_letters):
    add_many(tables, 20)
    with tables.locked() as holder:
        command = start_letters("replay")
        tables.wait_for_waiter(holder)
        holder.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                       "WHERE application_name = 'ingestd dead-letters' AND datname = current_database()")
    status, out, err = command.end()
    assert (status, out) == (TEMPORARY, "replayed 0, stayed 0, not tried 20\n")
    assert "nothing is half done" in err
    assert letter_numbers(tables) == list(range(20)) and tables.count() == 0
