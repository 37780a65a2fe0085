"""`ingestd dead-letters` before a person: its command line, its bar, and what `discard` asks."""
import re
import signal
import subprocess

import pytest

from daemon import PROGRAM
from letters import CONFIGURATION, DONE, USAGE, Command, add, add_many, left, letter_numbers
from processes import clean_environment, read_proc

# The command line

BAD_USAGE = {
    "no command": ([], ["list", "replay", "discard"]),
    "an unknown command": (["mend"], ["mend", "list", "replay", "discard"]),
    "an unknown command with control characters": (["me\x1b[1mnd"], ["me\\x1b[1mnd"]),
    "an option first": (["--json", "list"], ["list, replay or discard"]),
    "an unknown option": (["list", "--no-such"], ["--no-such"]),
    "an option of another command": (["list", "--yes"], ["--yes", "list"]),
    "an option of another command, replay": (["replay", "--json"], ["--json", "replay"]),
    "a missing value": (["replay", "--id"], ["--id"]),
    "a word too many": (["replay", "password=s3cret"], ["argument 1"]),
    "an id in words": (["replay", "--id", "one"], ["--id", "one", "1"]),
    "an id of zero": (["replay", "--id", "0"], ["--id", "0", "1"]),
    "an id past all": (["replay", "--id", "9" * 30], ["--id"]),
    "a bad filter": (["replay", "--topic", "a/#/b"], ["--topic", "a/#/b", "#"]),
    "two filters": (["discard", "--topic", "a", "--topic", "b"], ["--topic", "twice"]),
    "two times": (["discard", "--since", "1h", "--since", "2h"], ["--since", "twice"]),
    "a bad table": (["replay", "--table", "a."], ["--table", "a."]),
    "a batch of nothing": (["replay", "--batch-size", "0"], ["--batch-size", "0", "1"]),
}


@pytest.mark.parametrize("name", BAD_USAGE)
def test_bad_usage_ends_with_64_and_one_line_that_names_what_is_wrong_and_what_is_allowed(name):
    words, expected = BAD_USAGE[name]
    status, out, err = Command(*words).end()
    assert (status, out) == (USAGE, "") and err.count("\n") == 1 and err.startswith("ingestd dead-letters")
    for one in expected:
        assert one in err, err
    assert "s3cret" not in err


@pytest.mark.parametrize("since", ["yesteryear", "2026-13-01", "10 parsecs", "", "infinity", "99999999999999h"])
def test_a_since_that_is_no_time_ends_with_64(tables, letters, since):
    status, out, err = letters("replay", "--since", since)
    assert (status, out) == (USAGE, "")
    assert "--since" in err and since in err and "2h" in err


def test_a_bad_variable_is_named_and_one_of_the_daemon_s_own_does_not_matter(tables, letters):
    status, _, err = letters("list", env={"INGESTD_BATCH_SIZE": "none"})
    assert status == USAGE and "INGESTD_BATCH_SIZE" in err
    assert letters("list", env={"INGESTD_QOS": "7"})[0] == DONE


def test_without_its_writer_beside_it_ingestd_says_so(tmp_path):
    alone = tmp_path / "ingestd"
    alone.write_bytes(PROGRAM.read_bytes())
    alone.chmod(0o755)
    done = subprocess.run([alone, "dead-letters", "list"], capture_output=True, text=True, env=clean_environment())
    assert done.returncode == CONFIGURATION and "ingestd-writer" in done.stderr


def test_the_process_list_does_not_show_a_password(tables, start_letters):
    add_many(tables, 1)
    with tables.locked() as holder:
        command = start_letters("replay", database=tables.dsn + " password=s3cret")
        tables.wait_for_waiter(holder)
        title = read_proc(command.process.pid, "cmdline")
    assert "s3cret" not in title and "dead-letters replay" in title
    assert command.end()[0] == DONE


def test_output_that_cannot_be_written_is_an_error(tables):
    with open("/dev/full", "w") as full:
        done = subprocess.run([PROGRAM, "dead-letters", "list", "--database", tables.dsn], stdout=full,
                              stderr=subprocess.PIPE, text=True, env=clean_environment())
    assert done.returncode == 74 and "No space left" in done.stderr


# The terminal


def test_a_bar_is_drawn_on_a_terminal_in_one_line_and_taken_away(tables, start_letters):
    add_many(tables, 3000)
    status, out, screen = start_letters("replay", "--batch-size", 100, terminal=True).end()
    assert (status, out) == (DONE, "replayed 3000, stayed 0\n")
    drawn = screen.split("\r\x1b[K")
    assert re.fullmatch(r"replay \[-{40}\] 0/3000 0/s", drawn[1]), drawn
    assert re.fullmatch(r"replay \[#{40}\] 3000/3000 [1-9]\d*/s", drawn[-2]), drawn
    assert drawn[-1] == "" and "\n" not in screen


def test_the_bar_never_wraps(tables, start_letters):
    add_many(tables, 300)
    _, _, screen = start_letters("replay", "--batch-size", 10, terminal=True, width=20).end()
    assert screen and max(map(len, screen.split("\r\x1b[K"))) < 20


def test_words_of_trouble_get_a_line_of_their_own(tables, start_letters):
    add_many(tables, 20)
    with tables.locked() as holder:
        command = start_letters("replay", "--batch-size", 10, terminal=True)
        tables.wait_for_waiter(holder)
        command.look("0/20")
        command.process.send_signal(signal.SIGINT)
        _, out, screen = command.end()
    assert re.search(r"\r\x1b\[Kingestd dead-letters replay: stopped by SIGINT[^\n]*\r\n$", screen), repr(screen)


def test_no_bar_without_a_terminal(tables, letters):
    add_many(tables, 100)
    assert letters("replay", "--batch-size", 10)[2] == ""


# discard


def test_discard_asks_and_a_yes_throws_away_what_was_counted(tables, start_letters):
    add_many(tables, 12)
    command = start_letters("discard", terminal=True)
    command.look("discard 12 dead letters? [y/N] ")
    later = add(tables)
    command.type("y\n")
    assert command.end()[:2] == (DONE, "discarded 12\n")
    assert left(tables) == [later] and tables.count() == 0


@pytest.mark.parametrize("answer", ["n\n", "\n", "\x04", "yeah\n"])
def test_discard_takes_nothing_else_for_a_yes(tables, start_letters, answer):
    add_many(tables, 3)
    command = start_letters("discard", terminal=True)
    command.look("[y/N] ")
    command.type(answer)
    assert command.end()[:2] == (1, "discarded 0, kept 3\n")
    assert letter_numbers(tables) == [0, 1, 2]


def test_an_interrupt_at_the_question_discards_nothing(tables, start_letters):
    add_many(tables, 3)
    command = start_letters("discard", terminal=True)
    command.look("[y/N] ")
    command.process.send_signal(signal.SIGINT)
    assert command.end()[0] == 130
    assert letter_numbers(tables) == [0, 1, 2]


def test_discard_without_a_terminal_needs_yes(tables, letters):
    add_many(tables, 3)
    status, out, err = letters("discard")
    assert (status, out) == (USAGE, "") and "--yes" in err
    assert letter_numbers(tables) == [0, 1, 2]


def test_discard_with_yes_takes_exactly_the_selection_in_batches(tables, letters):
    add_many(tables, 95, topics=2)
    assert letters("discard", "--yes", "--topic", "t/1", "--batch-size", 10) == (DONE, "discarded 47\n", "")
    assert letter_numbers(tables) == list(range(0, 95, 2))
    assert letters("discard", "--yes")[:2] == (DONE, "discarded 48\n")
    assert letters("discard", "--yes")[:2] == (DONE, "discarded 0\n")


def test_discard_does_not_take_one_whose_number_is_lower_and_that_came_later(tables, start_letters):
    """A writer's transaction has its numbers before it is visible."""
    with tables.connect() as writer:
        writer.autocommit = False
        early = writer.execute("INSERT INTO ingestd.dead_letter (received, topic, payload, qos, retain, lane, reason) "
                               "VALUES (now(), 't', '', 1, false, 0, 'r') RETURNING id").fetchone()[0]
        assert add(tables) > early
        command = start_letters("discard", terminal=True)
        command.look("discard 1 dead letter? ")
        writer.commit()
    command.type("yes\n")
    assert command.end()[:2] == (DONE, "discarded 1\n")
    assert left(tables) == [early]
