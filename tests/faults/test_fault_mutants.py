"""
Mutants for the ledger harness: ingestd with one promise broken on purpose. Each has to be convicted by the schedule
that is directed at it, and by the right column. A harness that lets one pass is broken.

A mutant is a piece of a source file and what stands in its place; when the piece is no longer there, its test fails
and says so. That the same schedules pass with the intact program is in test_faults.py.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import directed_spool  # noqa: F401 it fills the table
import small_disk
from directed import DIRECTED
from ledger import COLUMNS
from mutants import build_mutant
from processes import SANITIZED, die_with_parent

pytestmark = [pytest.mark.slow, pytest.mark.skipif(SANITIZED, reason="one build of each mutant is enough")]

RUN = Path(__file__).with_name("run")

# name: (file, what stands there, what stands there in the mutant, the schedule, the columns it must be found in; the
# empty set where it is a complaint of the schedule).
MUTANTS = {
    "acknowledges_at_once": (
        "supervisor/gate.c", "g->held > 0 && v->in_flight == 0", "g->held > 0",
        "killed_before_the_commit", {"lost"}),
    "lane_chosen_at_random": (
        "supervisor/intake.c", "(id->topic_hash %", "((s->seq >> 3) %",
        "one_writer_behind", {"reordered"}),
    "backlog_forgets_on_respawn": (
        "supervisor/lane.c", "	backlog_rewind(&l->backlog);\n", "",
        "writer_killed_with_records_in_its_channel", {"lost"}),
    "no_progress_row": (
        "worker/schema.c", '"BEGIN; %s%s%s%s%sCOMMIT", move,', '"BEGIN; %s%s%s%s%sCOMMIT", move + strlen(move),',
        "writer_killed_between_commit_and_its_answer", {"duplicated"}),
    "fence_left_out": (
        "worker/pg.c", "			pg->fenced = true;\n", "			;\n",
        "old_writer_wakes_after_its_successor", {"duplicated"}),
    "no_matching": (
        "supervisor/mqtt_events.c", "	id.dup = m->dup;\n", "	id.dup = false;\n",
        "broker_cut_with_acknowledgements_under_way", {"duplicated"}),
    "no_matching_after_a_kill": (
        "supervisor/store.c", "FROM unacknowledged ORDER BY block", "FROM unacknowledged WHERE false",
        "supervisor_killed_with_acknowledgements_under_way", {"duplicated"}),
    "drain_skipped": (
        "supervisor/shutdown.c", "		if (s->state == STATE_SETTLE)\n			settle(s);\n",
        "		if (s->state == STATE_SETTLE) {\n			mqtt_abandon(&s->mqtt);\n			log_left(s);\n"
        # And nobody is respawned for the rest: a writer that finds half a record would be.
        "			enter_flush(s, settle == NULL);\n			s->killing = true;\n		}\n",
        "stopped_with_a_full_queue", {"lost"}),
    "writer_does_not_flush_on_sigusr1": (
        "worker/writer.c", "if (has_ended_reading(w) && writer_records_held(w) == 0) {", "if (has_ended_reading(w)) {",
        "stopped_with_records_at_the_writers", {"lost"}),
    "acknowledges_before_the_spool_is_synced": (
        "supervisor/spooling.c", "		spool_roll_back(&s->spool);\n		s->spool.bytes = bytes;\n",
        "		for (i = 0; i < s->lane_count; i++)\n			note_written(&s->lanes[i]);\n"
        "		spool_roll_back(&s->spool);\n		s->spool.bytes = bytes;\n",
        "everything_killed_with_the_spool_on_a_full_disk", {"lost"}),
    "what_waits_for_the_spool_counts_as_durable": (
        "supervisor/lane.c", "l->spool.in_backlog + l->spool.pending.count;", "l->spool.in_backlog;",
        "killed_twice_while_the_spool_is_emptied", {"lost"}),
    "new_messages_pass_the_spool": (
        "supervisor/intake.c", "	if (l->spool.on)\n		return burst_add(&l->spool.pending, r);\n", "",
        "killed_twice_while_the_spool_is_emptied", {"reordered"}),
    "spool_forgets_the_place": (
        "supervisor/spool.c", "place > 0 ? place : s->next_id", "s->next_id",
        "killed_twice_while_the_spool_is_emptied", {"reordered"}),
    "adopts_what_is_committed": (
        "supervisor/spool_feed.c", "	a->done = old->first;\n", "	a->done = 0;\n",
        "killed_twice_while_the_spool_is_emptied", {"duplicated"}),
    "forgets_what_is_still_in_the_spool": (
        "supervisor/shutdown.c", "spooling_is_empty(s)", "spooling_count(s) == 0",
        "stopped_with_what_is_stored_still_in_the_spool", {"duplicated"}),
}


def try_it(build, schedule, home):
    """What the harness itself finds in a run of this build."""
    results = home / "results"
    environment = {**os.environ, "BUILD": str(build), "RESULTS": str(results), "KEEP": str(home), "RUNS": "1",
                   "SEED": "1", "JOBS": "1", "SYSTEM": "ingestd", "FAULT": schedule, "RATE": "2000"}
    trial = subprocess.run([sys.executable, "-B", str(RUN)], env=environment, capture_output=True, text=True,
                           timeout=300, preexec_fn=die_with_parent())
    # 1: a run failed. Anything else convicts nobody.
    assert trial.returncode in (0, 1) and results.exists(), trial.stdout + trial.stderr
    return json.loads(results.read_text()), trial.stdout


# What a kill finds half done is not the same each time: a mutant that gets away is chased again.
CHASES = 4


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_convicted_by_its_column(name, tmp_path):
    path, piece, instead, schedule, columns = MUTANTS[name]
    if DIRECTED[schedule].disk and not small_disk.can_be_had():
        pytest.skip("no disk that could be filled: that takes root and a mount")
    build = build_mutant(tmp_path, path, piece, instead)
    for _ in range(CHASES):
        outcome, output = try_it(build, schedule, tmp_path)
        found = {c for c in COLUMNS if outcome["verdict"][c]}
        if found or outcome["complaints"]:
            break
    assert found == columns, f"{name}:\n{output}"
    assert columns or outcome["complaints"], f"{name}:\n{output}"
