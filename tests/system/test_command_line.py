"""Options, their one table and all that is made from it; manuals; the state directory; process titles."""
import os
import re
import signal
import subprocess

import pytest

from daemon import PROGRAM, WRITER
from processes import PATIENCE, ROOT, clean_environment, read_proc, run, state_of, wait_until
from publisher import numbered, publish

MANUALS = [ROOT / "man" / "ingestd.8", ROOT / "man" / "ingestd-protocol.7", ROOT / "man" / "ingestd-dead-letters.8"]


def refuse(*arguments, env=None):
    """Runs ingestd until it refuses; returns its exit status and its words."""
    done = subprocess.run([str(PROGRAM), *arguments], capture_output=True, env=clean_environment(**(env or {})),
                          timeout=20 * PATIENCE, stdin=subprocess.DEVNULL)
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


FILTER = ["--subscribe", "t/#"]

BAD_USAGE = {
    "no filter": ([], ["--subscribe", "sensors/#"]),
    "a bad filter": (["--subscribe", "a/#/b"], ["--subscribe", "a/#/b", "#"]),
    "a plus inside a level": (["--subscribe", "a+/b"], ["--subscribe", "a+/b", "+"]),
    "an empty filter": (["--subscribe", ""], ["--subscribe"]),
    "a bad shared filter": (["--subscribe", "$share/g"], ["--subscribe", "$share/g"]),
    "an unknown option": ([*FILTER, "--no-such-option"], ["--no-such-option"]),
    "an unknown letter": ([*FILTER, "-Z"], ["-Z"]),
    "an abbreviation of two options": ([*FILTER, "--batch", "5"], ["--batch"]),
    "a missing value": ([*FILTER, "--table"], ["--table"]),
    # Not the word itself: after --database host=db password=secret it is a password.
    "a word that is no option": ([*FILTER, "extra"], ["argument 3"]),
    "a batch of nothing": ([*FILTER, "--batch-size", "0"], ["--batch-size", "0", "1"]),
    "a number with a tail": ([*FILTER, "--batch-size", "5x"], ["--batch-size", "5x"]),
    "a negative number": ([*FILTER, "--writers", "-1"], ["--writers", "-1", "64"]),
    "a number past all": ([*FILTER, "--writers", "99999999999999999999"], ["--writers", "64"]),
    "parsecs": ([*FILTER, "--drain-timeout", "10 parsecs"], ["--drain-timeout", "10 parsecs", "ms"]),
    "a time without a unit": ([*FILTER, "--batch-interval", "10"], ["--batch-interval", "10", "ms"]),
    "a size in words": ([*FILTER, "--queue-bytes", "much"], ["--queue-bytes", "much", "MiB"]),
    "a QoS that is not offered": ([*FILTER, "--qos", "2"], ["--qos", "2", "0", "1"]),
    "a protocol of yesterday": ([*FILTER, "--protocol", "3.1"], ["--protocol", "3.1", "3.1.1"]),
    "a window of nothing": ([*FILTER, "--receive-maximum", "0"], ["--receive-maximum", "65535"]),
    "a window past 16 bits": ([*FILTER, "--receive-maximum", "65536"], ["--receive-maximum", "65536", "65535"]),
    "a share of nothing": ([*FILTER, "--dead-letter-share", "0"], ["--dead-letter-share", "1", "100"]),
    "a share of more than all": ([*FILTER, "--dead-letter-share", "101"], ["--dead-letter-share", "100"]),
    "a level nobody knows": ([*FILTER, "--log-level", "loud"], ["--log-level", "loud", "debug"]),
    "a broker of another trade": ([*FILTER, "--broker", "http://x"], ["--broker", "mqtt"]),
    "a broker's port past all": ([*FILTER, "--broker", "mqtt://x:70000"], ["--broker"]),
    "a broker without a host": ([*FILTER, "--broker", "mqtt://"], ["--broker"]),
    "a table without a name": ([*FILTER, "--table", ""], ["--table"]),
    "a table that is half a name": ([*FILTER, "--table", "schema."], ["--table", "schema."]),
    "an empty state directory": ([*FILTER, "--state-dir", ""], ["--state-dir"]),
    "an empty client id": ([*FILTER, "--client-id", ""], ["--client-id"]),
    "a control character": ([*FILTER, "--table", "a\nb"], ["--table"]),
}


@pytest.mark.parametrize("name", BAD_USAGE)
def test_bad_usage_ends_with_64_and_one_line_that_names_option_value_and_what_is_allowed(name):
    arguments, words = BAD_USAGE[name]
    status, said = refuse(*arguments)
    assert status == 64, said
    assert said.count("\n") == 1 and said.endswith("\n"), said
    assert said.startswith("ingestd: ")
    for word in words:
        assert word in said, said


def test_a_bad_value_in_the_environment_names_the_variable():
    status, said = refuse(*FILTER, env={"INGESTD_BATCH_SIZE": "none"})
    assert status == 64 and "INGESTD_BATCH_SIZE" in said and "none" in said


def test_a_refused_broker_url_does_not_show_its_password():
    status, said = refuse(*FILTER, "--broker", "mqtt://user:s3cret@host:port")
    assert status == 64 and "s3cret" not in said


def test_the_command_line_stands_over_the_environment(broker, database, ingestd):
    daemon = ingestd(subscribe=None, table="of_the_command_line",
                     env={"INGESTD_SUBSCRIBE": "a/#\nb/#", "INGESTD_TABLE": "of_the_environment",
                          "INGESTD_WRITERS": "3"}).wait_ready(3)
    publish(broker, [("a/1", "1"), ("b/1", "2"), ("c/1", "3")])
    database.wait_for_rows(2, table="of_the_command_line")
    assert database.value("SELECT to_regclass('of_the_environment') IS NULL")
    assert daemon.stop() == 0


def test_a_variable_that_is_no_option_is_warned_of(broker, database, ingestd):
    daemon = ingestd(env={"INGESTD_BATCHSIZE": "5", "INGESTD_SECRET_THING": "hush"})
    daemon.wait_log("environment_unknown", variable="INGESTD_BATCHSIZE")
    assert "hush" not in daemon.log()


def test_version_is_one_line():
    assert re.fullmatch(rb"ingestd \d+\.\d+\.\d+\n", run(PROGRAM, "--version", env=clean_environment()).stdout)


def test_help_and_version_are_there_whatever_the_environment_says():
    for option in ("--help", "--version"):
        run(PROGRAM, option, env=clean_environment(INGESTD_QOS="7"))


def test_json_lines_carry_the_same_events(broker, database, ingestd):
    import json
    daemon = ingestd(log_format="json")
    wait_until(lambda: any('"mqtt_subscribed"' in line for line in daemon.strange), what="it has subscribed")
    publish(broker, [("t/1", "{bad")])
    database.wait_for_rows(1, table="ingestd.dead_letter")
    assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.strange]
    daemon.strange.clear()
    events = [line["event"] for line in lines]
    assert events.index("started") < events.index("mqtt_connected") < events.index("shutdown_complete")
    complete = lines[events.index("shutdown_complete")]
    assert (complete["received"], complete["dead_lettered"]) == (1, 1)
    assert complete["level"] == "info" and complete["time"].endswith("Z")


# One table: common/config.c


def rows_of_the_table():
    """(name, letter, default) of each option, as common/config.c has them."""
    source = (ROOT / "common" / "config.c").read_text()
    table = source[source.index("option_row table[]"):source.index("};", source.index("option_row table[]"))]
    row = re.compile(r'\{"([a-z0-9-]+)",\s*(?:\'(.)\'|0),\s*(?:"[^"]*"|NULL),\s*KIND_\w+,'
                     r'\s*(?:AT\(\w+\)|0),\s*[^"]*?(?:"([^"]*)"|NULL),', re.S)
    found = row.findall(table)
    assert len(found) == table.count("KIND_")
    return found


def options_in(text):
    """{long name: letter} of the lines that introduce an option."""
    return {long: letter for letter, long in
            re.findall(r"^\s+(?:-(\w)[^,\n]*,\s+)?--([a-z0-9-]+)\b", text, re.M)}


def rendered(manual):
    text = run("mandoc", "-T", "utf8", "-O", "width=200", manual).stdout.decode()
    return re.sub(".\b", "", text)


def test_help_shows_every_option_of_the_table_with_its_letter_and_default():
    said = run(PROGRAM, "--help", env=clean_environment()).stdout.decode()
    assert options_in(said) == {name: letter for name, letter, _ in rows_of_the_table()}
    lines = {m[1]: m[0] for m in re.finditer(r"^.*--([a-z0-9-]+)\b.*$", said, re.M)}
    for name, _, default in rows_of_the_table():
        if default:
            assert f"({default})" in lines[name]


def test_the_manual_has_a_paragraph_for_every_option_of_the_table_and_no_other():
    text = rendered(MANUALS[0])
    assert options_in(text) == {name: letter for name, letter, _ in rows_of_the_table()}
    for name, _, default in rows_of_the_table():
        if default:
            after = re.split(rf"^\s+(?:-\w[^,\n]*,\s+)?--{name}\b", text, flags=re.M)[1]
            paragraph = re.split(r"^\s+(?:-\w[^,\n]*,\s+)?--[a-z]", after, flags=re.M)[0]
            assert default in paragraph, f"the manual does not give {name}'s default {default}"


def test_the_manual_of_dead_letters_has_the_options_of_its_help_with_their_defaults():
    said = run(PROGRAM, "dead-letters", "--help", env=clean_environment()).stdout.decode()
    assert run(PROGRAM, "dead-letters", "replay", "-h", env=clean_environment()).stdout.decode() == said
    source = (ROOT / "worker" / "letters_options.c").read_text()
    table = source[source.index("letters_row table[]"):source.index("#define ROWS")]
    rows = re.findall(r'\{"([a-z-]+)", (?:\'(\w)\'|OPTION_\w+),', table)
    assert len(rows) == table.count("IN(") + table.count("IN_") > 5
    text = rendered(MANUALS[2])
    assert options_in(said) == options_in(text) == dict(rows)
    # Those that ingestd has as well have the same letter and default.
    for name, letter, default in rows_of_the_table():
        if name in dict(rows) and name != "help":
            assert dict(rows)[name] == letter
            assert not default or f"({default})" in said and f"default is {default}" in " ".join(text.split())


def test_the_manual_of_dead_letters_names_every_exit_status():
    section = rendered(MANUALS[2]).split("EXIT STATUS")[1]
    for status in (0, 1, 64, 65, 74, 75, 78, 130):
        assert re.search(rf"^\s+.*\b{status}\b", section, re.M), status


def test_the_manual_names_every_exit_status():
    text = rendered(MANUALS[0])
    section = text[text.index("EXIT STATUS"):]
    for status in (0, 64, 73, 75, 78):
        assert re.search(rf"^\s+{status}\b", section, re.M), status


def test_the_manual_explains_every_event():
    text = rendered(MANUALS[0])
    events = set()
    for directory in ("common", "supervisor", "worker"):
        for path in (ROOT / directory).glob("*.c"):
            events |= set(re.findall(r'\blog_(?:info|warn|error)\(\s*"(\w+)"', path.read_text()))
    # The states that hold up the flow have their names in a table.
    states = set(re.findall(r'= \{"(\w+)", LOG_LEVEL_', (ROOT / "supervisor" / "pressure.c").read_text()))
    assert len(states) == 7
    events |= states
    assert len(events) > 60
    assert [e for e in sorted(events) if not re.search(rf"\b{e}\b", text)] == []


def test_the_manual_and_the_writer_agree_on_what_a_sqlstate_means():
    source = (ROOT / "worker" / "sqlstate.c").read_text()
    table = dict(re.findall(r'\{"(\w+)", TROUBLE_(\w+)\}', source))
    assert len(table) > 20 and table["53400"] == "CONFIGURATION"
    printed = dict(re.findall(r"^\.It (\w+) Ta (transient|configuration|data) Ta ", MANUALS[0].read_text(), re.M))
    assert printed == {prefix: name.lower() for prefix, name in table.items()}


@pytest.mark.parametrize("manual", MANUALS, ids=lambda path: path.name)
def test_manuals_are_clean(manual):
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", str(manual)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stdout


# The state directory


def test_a_missing_state_directory_is_made(broker, database, ingestd, tmp_path):
    where = tmp_path / "not" / "yet" / "there"
    ingestd(state_dir=where).wait_ready()
    assert where.is_dir() and where.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("where", ["/proc", "/proc/ingestd", "/dev/null/ingestd", "/dev/null"])
def test_a_state_directory_that_cannot_be_made_or_written_ends_it_with_73(ingestd, where):
    daemon = ingestd(state_dir=where)
    assert daemon.wait(10) == 73
    event = [e for e in daemon.events() if e.level == "error"][0]
    assert event["state_dir"] == where and event["error"] and event["next"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_state_directory_ends_it_with_73(ingestd, tmp_path):
    where = tmp_path / "state"
    where.mkdir(mode=0o500)
    assert ingestd(state_dir=where).wait(10) == 73


def test_a_state_directory_held_by_another_instance_ends_it_with_75_and_names_the_holder(broker, database, ingestd):
    first = ingestd().wait_ready()
    second = ingestd()
    assert second.wait(10) == 75
    assert str(first.pid) in str(dict(second.wait_log("state_dir_held")))
    publish(broker, numbered(5))
    database.wait_for_rows(5)
    first.kill()
    ingestd().wait_ready()


def test_the_service_s_own_directory_is_taken_from_systemd(broker, database, ingestd, tmp_path):
    ingestd(state_dir=None, env={"STATE_DIRECTORY": tmp_path / "systemd"}).wait_ready()
    assert (tmp_path / "systemd" / "client-id").exists()


# Processes


def test_titles_tell_supervisor_writer_and_lane(broker, database, ingestd):
    daemon = ingestd(writers=3).wait_ready(3)
    assert "supervisor" in daemon.title(daemon.pid)
    for lane, pid in daemon.writers().items():
        title = daemon.title(pid)
        assert "writer" in title and str(lane) in title, title


def test_a_writer_inherits_no_descriptor_but_its_channel_and_no_blocked_signal(broker, database, ingestd):
    daemon = ingestd().wait_ready()
    for pid in daemon.writers().values():
        links = {}
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                links[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
            except FileNotFoundError:
                continue
        assert not any(str(link).endswith("/lock") for link in links.values()), links
        peers = [link for link in links.values() if link.startswith("socket:")]
        assert 1 <= len(peers) <= 2, links
        status = dict(line.split(":\t", 1) for line in read_proc(pid, "status").splitlines() if ":\t" in line)
        blocked = int(status["SigBlk"], 16)
        assert blocked & ~(1 << signal.SIGUSR1 - 1 | 1 << signal.SIGPIPE - 1 | 1 << signal.SIGTERM - 1
                           | 1 << signal.SIGINT - 1) == 0, hex(blocked)


def test_the_supervisor_links_no_libpq_and_the_writer_no_libmosquitto():
    assert b"libpq" not in run("ldd", PROGRAM).stdout
    assert b"libmosquitto" not in run("ldd", WRITER).stdout


def test_as_process_1_it_reaps_orphans_and_stops_cleanly(broker, database, ingestd):
    if os.geteuid() != 0:
        pytest.skip("a PID namespace needs root")
    daemon = ingestd(prefix=["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"])
    daemon.wait_ready()
    inside = wait_until(lambda: [p for p in daemon.children() if "supervisor" in daemon.title(p)], what="its pid")[0]
    # A process that leaves a child behind: the child falls to process 1 of the namespace.
    run("nsenter", "--target", inside, "--pid", "--mount", "sh", "-c", "(sh -c 'exit 3' & ) ; (sleep 0.2 &)")
    wait_until(lambda: not any((state_of(p) or "?")[0] == "Z" for p in _below(inside)), 10, "no zombie is left")
    wait_until(lambda: not any("sleep" in daemon.title(p) for p in _below(inside)), 10, "the orphan is gone")
    publish(broker, numbered(50))
    database.wait_for_rows(50)
    os.kill(inside, signal.SIGTERM)
    assert daemon.wait(20) == 0
    assert daemon.stop_events()[-1] == "shutdown_complete"


def _below(pid):
    from processes import children_of
    return children_of(pid)
