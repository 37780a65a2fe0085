"""
Mutants: ingestd with one promise broken on purpose. Each is built in a copy of the sources and must be
convicted by the test that guards the promise; a test that lets its mutant pass is worth nothing.

A mutant is a piece of a source file and what stands in its place. When the piece is no longer there, its
test fails and says so: a mutant that no longer applies guards nothing either.
"""
import os
import shlex
import subprocess
import sys

import pytest

from mutants import build_mutant
from processes import ROOT, SANITIZED, die_with_parent

pytestmark = [pytest.mark.slow, pytest.mark.skipif(SANITIZED, reason="one build of each mutant is enough")]

# name: (file, what stands there, what stands there in the mutant, the tests of which one must fail).
# unit:NAME is a program of tests/unit; all else are pytest's arguments.
MUTANTS = {
    "acknowledges_at_once": (
        "supervisor/gate.c", "g->held > 0 && v->in_flight == 0", "g->held > 0",
        "test_delivery.py -k no_puback_leaves_before_its_row_is_visible"),
    "reads_while_acknowledgements_are_half_out": (
        "supervisor/gate.c", '	if (g->flushing)\n		return "acknowledgements are being sent";\n', "",
        "unit:test_policy"),
    "reads_without_asking_the_gate_again": (
        "supervisor/mqtt.c",
        "(revents != 0 || mqtt_socket_readable()) &&\n		    gate_may_read(&m->gate, view))",
        "(revents != 0 || mqtt_socket_readable()))",
        "test_gate.py"),
    "backlog_forgets_on_respawn": (
        "supervisor/lane.c", "	backlog_rewind(&l->backlog);\n", "",
        "test_writers.py -k stopped_writer_is_recognised"),
    "lane_chosen_at_random": (
        "supervisor/intake.c", "(id->topic_hash %", "((s->seq >> 3) %",
        "test_delivery.py -k hundred_thousand"),
    "hung_writer_is_left_alone": (
        "supervisor/lane.c", "if (owes_word(l) && now - l->heard >= l->cfg->writer_timeout) {", "if (0) {",
        "test_writers.py -k stopped_writer_is_recognised"),
    "disconnects_with_acknowledgements_held": (
        "supervisor/shutdown.c", "s->mqtt.state == MQTT_OPEN && v.in_flight == 0 && s->mqtt.gate.held == 0 &&",
        "s->mqtt.state == MQTT_OPEN &&",
        "test_stopping.py -k without_a_spool_a_stop_with_the_database_down"),
    "writer_leaves_without_a_commit": (
        "worker/writer.c", "if (has_ended_reading(w) && writer_records_held(w) == 0) {", "if (has_ended_reading(w)) {",
        "test_writers.py -k notice_the_death_of_their_supervisor"),
    "no_ping_while_the_gate_is_shut": (
        "supervisor/mqtt.c", "			mqtt_wire_ping(m);\n", "			;\n",
        "test_broker_trouble.py -k gate_is_shut_for_twice_the_keepalive"),
    "dead_letter_outside_the_transaction": (
        "worker/schema.c", '"%s%s%s%sCOMMIT", before,', '"%s%sCOMMIT; %s%s", before,',
        "test_poison.py -k table_of_dead_letters_that_refuses"),
    "transient_error_is_taken_for_bad_data": (
        "worker/session_isolate.c",
        "	if (refused &&\n	    (sqlstate_class(s->pg.error.sqlstate) != TROUBLE_DATA || blame(s) != BLAME_ROWS))",
        "	if (refused && blame(s) != BLAME_ROWS)",
        "test_poison.py -k what_waiting_may_mend"),
    "bad_row_is_left_out_of_the_dead_letters": (
        "worker/session_isolate.c", "		if (put_aside(s, row) == -1)\n			return SESSION_NO_MEMORY;\n",
        "		s->isolation.refused += row != ISOLATE_NONE;\n",
        "test_poison.py -k a_bad_row_becomes_a_dead_letter"),
    "breaker_forgets_while_it_is_open": (
        "worker/breaker.c", "	if (!b->open)\n		turn(b, now);", "	turn(b, now);",
        "unit:test_breaker"),
    "whole_piece_is_taken_for_bad": (
        "worker/isolate.c", "	if (p->count > 1) {", "	if (p->count > 2) {",
        "unit:test_isolate"),
    "record_is_condemned_that_was_not_alone": (
        "supervisor/suspect.c", "s->deaths >= CONDEMNED_AFTER && first == last", "s->deaths >= CONDEMNED_AFTER",
        "unit:test_suspect"),
    "records_are_blamed_for_sigkill": (
        "supervisor/suspect.c", "SIGSEGV, SIGBUS,", "SIGKILL, SIGSEGV, SIGBUS,",
        "unit:test_suspect"),
    "replay_deletes_outside_the_transaction": (
        "worker/letters_replay.c",
        "		rc = delete_stored(r);\n	if (rc == 0)\n		rc = commit(r);\n",
        "		rc = commit(r);\n	if (rc == 0)\n		rc = delete_stored(r);\n",
        "test_dead_letters_trouble.py -k kill_between_storing_and_deleting"),
    "the_broker_s_counter_is_a_record": (
        "supervisor/mqtt_sys.c", "return !m->sys.covered && msg->qos == 0;", "return false;",
        "test_dropped.py -k told_and_is_no_record"),
    "the_watch_is_unsubscribed_with_an_earlier_filter": (
        "supervisor/mqtt_subscribe.c", "	unsubscribe_gone(m);\n	mqtt_sys_subscribe(m, session_present);\n",
        "	mqtt_sys_subscribe(m, session_present);\n	unsubscribe_gone(m);\n",
        "test_dropped.py -k no_earlier_filter_takes_it_away"),
    "lane_leaves_the_spool_without_a_commit": (
        "supervisor/spooling.c", "return (l->spool.count == 0 && lane_in_flight(l) == 0) ||\n	    l->spool.progress_at > l->spool.on_since;",
        "return true;",
        "test_spool.py -k memory_is_bounded"),
    "doubtful_message_is_taken_for_stored": (
        "supervisor/resume.c", "	case RESUME_DOUBT:\n		return RESUME_DOUBTFUL;\n", "",
        "test_spool.py -k in_doubt_and_stores_it_once"),
    "old_rows_are_sent_before_their_stream_is_closed": (
        "supervisor/spool_feed.c", "s->state == STATE_RUN && !s->closing && l->spool.on", "s->state == STATE_RUN && l->spool.on",
        "test_spool.py -k killed_while_draining"),
    "what_is_in_the_buffer_is_not_readable": (
        "supervisor/mqtt.c", "(revents != 0 || mqtt_socket_readable())", "revents != 0",
        "test_mqtt_socket.py -k 'thousand_packets and not unbuffered and not found'"),
    "a_stop_passes_what_is_gathered": (
        "supervisor/shutdown.c", " &&\n	    !s->mqtt.gate.flushing", "",
        "test_mqtt_socket.py -k 'question_half_out and not unbuffered and not found'"),
    "a_handshake_asks_to_write": (
        "supervisor/mqtt.c", "ssl != NULL && !SSL_is_init_finished(ssl) ? SSL_want_write(ssl) : is_half_written(m)",
        "is_half_written(m) || ssl == (void *)1",
        "test_mqtt_socket.py -k handshake_that_waits"),
    "batches_grow_whatever_they_take": (
        "worker/writer_input.c", "w->growth < w->cfg.batch_limit ? w->growth : w->cfg.batch_limit", "w->cfg.batch_limit",
        "test_writer_channel.py -k slow_database_gets"),
    "takes_gathered_bytes_for_sent": (
        "supervisor/mqtt.c", "mosquitto_want_write(m->mosq) || mqtt_socket_unsent()", "mosquitto_want_write(m->mosq)",
        "test_mqtt_socket.py -k 'few_bytes_at_a_time and not unbuffered and not found'"),
    "backslash_is_not_escaped": (
        "worker/row.c", "	case '\\\\':\n		return '\\\\';\n", "",
        "test_payloads.py -k what_jsonb_can_hold_is_stored_exactly"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_convicted(name, tmp_path):
    path, piece, instead, guard = MUTANTS[name]
    if guard.startswith("unit:"):
        unit = "build/unit/" + guard.removeprefix("unit:")
        build_mutant(tmp_path, path, piece, instead, [unit])
        assert subprocess.run([tmp_path / unit], capture_output=True, timeout=100).returncode != 0
        return

    build = build_mutant(tmp_path, path, piece, instead)
    file, *selection = shlex.split(guard)
    environment = {**os.environ, "BUILD": str(build)}
    trial = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file, *selection],
        cwd=ROOT / "tests/system", env=environment, capture_output=True, text=True, timeout=500,
        preexec_fn=die_with_parent())
    # 1: tests ran and failed. Anything else (2 interrupted, 4 usage, 5 nothing selected) convicts nobody.
    assert trial.returncode == 1, f"{name} got away: {trial.stdout[-3000:]}"
