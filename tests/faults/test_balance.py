"""The balance of a log is held against it, line by line, at its end and over two runs."""
import pytest

import balance
import logfmt

AT = "2026-11-24T12:00:00.000Z info "


def events(*lines):
    found = [logfmt.parse(AT + line) for line in lines]
    assert None not in found
    return found


def end(received=10, committed=6, dead_lettered=1, spooled=3, unacknowledged=0):
    return (f"shutdown_complete received={received} committed={committed} dead_lettered={dead_lettered}"
            f" spooled={spooled} unacknowledged={unacknowledged}")


def test_an_end_at_which_all_is_somewhere_is_right():
    assert list(balance.of_the_end(events(end()), 0)) == []
    assert list(balance.of_the_end(events("records_left qos0_lost=1 qos1_kept=1", end(12)), 75)) == []
    # What was handed back to the broker counts as not received, and says so in another way.
    assert list(balance.of_the_end(events("records_left qos0_lost=2 reason=x", end()), 75)) == []


@pytest.mark.parametrize("lines, status, said", [
    ([end(11)], 75, "does not hold"),
    ([end(9)], 75, "does not hold"),
    (["records_left qos0_lost=0 qos1_kept=1", end(12)], 75, "does not hold"),
    (["records_left qos0_lost=0 qos1_kept=2", end(12)], 0, "not everything was durable"),
    ([end(unacknowledged=1)], 0, "not everything was durable"),
])
def test_an_end_that_does_not_add_up_is_found(lines, status, said):
    found = list(balance.of_the_end(events(*lines), status))
    assert len(found) == 1 and said in found[0]


def test_every_line_that_shows_all_of_it_is_looked_at():
    right = "balance received=10 committed=6 dead_lettered=1 spooled=2 in_flight=1"
    wrong = "any_other received=10 committed=6 dead_lettered=1 spooled=2 in_flight=0"
    part = "writer_flushed committed=6 dead_lettered=1"
    assert list(balance.of_the_lines(events(right, part, end()))) == []
    assert len(list(balance.of_the_lines(events(right, wrong, wrong)))) == 2


@pytest.mark.parametrize("before, after, is_right", [
    ([end(spooled=3)], ["spool_found records=3", "writer_started lane=0"], True),
    # The first records of its rows are committed.
    ([end(spooled=3)], ["spool_found records=5", "writer_started lane=0"], True),
    ([end(spooled=3)], ["spool_found records=2", "writer_started lane=0"], False),
    ([end(spooled=3)], ["writer_started lane=0"], False),
    ([end(10, 9, 1, 0)], ["writer_started lane=0"], True),
    ([end(10, 9, 1, 0)], ["spool_found records=3", "writer_started lane=0"], False),
    (["spool_failed step=sync", end(10, 9, 1, 0)], ["spool_found records=3", "writer_started lane=0"], True),
    # One was killed, the other did not get as far as its spool.
    (["writer_started lane=0"], ["spool_found records=3", "writer_started lane=0"], True),
    ([end(spooled=3)], ["state_dir_unusable file=spool.db"], True),
])
def test_what_a_stop_leaves_in_the_spool_is_found_at_the_next_start(before, after, is_right):
    assert (list(balance.of_two_runs(events(*before), events(*after))) == []) is is_right
