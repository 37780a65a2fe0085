/*
 * The list of messages that the broker may send again: what it sends again is recognised, and what
 * is new is never taken for old.
 */
#include "unit.h"

#include <stdlib.h>
#include <string.h>

#include "resume.h"

#define WINDOW 65535

static struct resume_entry
entry_of(uint16_t id, uint64_t hash)
{
	return (struct resume_entry){.packet_id = id, .hash = hash, .seq = hash, .lane = 1};
}

/* Received as new, and noted. */
static void
take(struct resume *r, uint16_t id, uint64_t hash)
{
	struct resume_entry e = entry_of(id, hash);
	uint64_t at;

	assert_int_equal(resume_receive(r, id, hash, false, &at), RESUME_NEW);
	assert_int_equal(resume_note(r, &e), 0);
}

static enum resume_verdict
again(struct resume *r, uint16_t id, uint64_t hash)
{
	uint64_t at;

	return resume_receive(r, id, hash, true, &at);
}

static void
list_of(struct resume *r, uint16_t n)
{
	uint16_t i;

	resume_init(r, WINDOW);
	resume_connected(r, false);
	for (i = 1; i <= n; i++)
		take(r, i, 1000u + i);
}

static void
all_that_comes_again_is_recognised(void **state)
{
	struct resume r;
	uint16_t i;

	(void)state;
	list_of(&r, 100);
	resume_connected(&r, true);
	assert_true(resume_matching(&r));
	assert_int_equal(resume_outstanding(&r), 100);
	for (i = 1; i <= 100; i++)
		assert_int_equal(again(&r, i, 1000u + i), RESUME_KNOWN);
	assert_false(resume_matching(&r));
	assert_int_equal(r.recognised, 100);
	assert_int_equal(r.unmatched, 0);
	take(&r, 101, 7);
	resume_free(&r);
}

static void
a_suffix_is_recognised_and_what_stood_before_it_is_done_with(void **state)
{
	struct resume r;
	uint16_t i;

	(void)state;
	list_of(&r, 100);
	resume_flushed(&r);
	resume_connected(&r, true);
	for (i = 61; i <= 100; i++)
		assert_int_equal(again(&r, i, 1000u + i), RESUME_KNOWN);
	assert_int_equal(r.tail - r.head, 40);
	assert_int_equal(r.unmatched, 0);
	resume_free(&r);
}

static void
a_message_without_dup_is_new_whatever_it_looks_like(void **state)
{
	struct resume r;
	uint64_t at;

	(void)state;
	list_of(&r, 3);
	resume_connected(&r, true);
	assert_int_equal(resume_receive(&r, 1, 1001, false, &at), RESUME_NEW);
	assert_int_equal(r.unmatched, 3);
	/* And with it the repetition is over: nothing behind it is an old one. */
	assert_int_equal(again(&r, 2, 1002), RESUME_NEW);
	resume_free(&r);
}

static void
another_content_under_the_same_id_is_new(void **state)
{
	struct resume r;

	(void)state;
	list_of(&r, 3);
	resume_connected(&r, true);
	assert_int_equal(again(&r, 1, 999), RESUME_NEW);
	resume_free(&r);
}

static void
what_the_broker_leaves_out_is_counted_and_the_rest_recognised(void **state)
{
	struct resume r;

	(void)state;
	list_of(&r, 5);
	resume_connected(&r, true);
	assert_int_equal(again(&r, 1, 1001), RESUME_KNOWN);
	assert_int_equal(again(&r, 4, 1004), RESUME_KNOWN);
	assert_int_equal(again(&r, 5, 1005), RESUME_KNOWN);
	assert_int_equal(r.unmatched, 2);
	/* On the next connection they are not waited for any more. */
	resume_connected(&r, true);
	assert_int_equal(again(&r, 1, 1001), RESUME_KNOWN);
	assert_int_equal(again(&r, 4, 1004), RESUME_KNOWN);
	assert_int_equal(again(&r, 5, 1005), RESUME_KNOWN);
	assert_int_equal(r.unmatched, 0);
	resume_free(&r);
}

static void
another_order_is_new_from_where_it_breaks(void **state)
{
	struct resume r;

	(void)state;
	list_of(&r, 4);
	resume_connected(&r, true);
	assert_int_equal(again(&r, 3, 1003), RESUME_KNOWN);
	assert_int_equal(again(&r, 1, 1001), RESUME_NEW);
	assert_int_equal(again(&r, 4, 1004), RESUME_NEW);
	assert_int_equal(r.unmatched, 3);
	resume_free(&r);
}

static void
a_broken_repetition_can_be_repeated_again(void **state)
{
	struct resume r;
	uint16_t i;

	(void)state;
	list_of(&r, 10);
	resume_connected(&r, true);
	for (i = 3; i <= 6; i++)
		assert_int_equal(again(&r, i, 1000u + i), RESUME_KNOWN);
	resume_connected(&r, true);
	for (i = 3; i <= 10; i++)
		assert_int_equal(again(&r, i, 1000u + i), RESUME_KNOWN);
	assert_int_equal(r.unmatched, 0);
	resume_free(&r);
}

/* As a new run finds them: the database is still to be asked. */
static void
come_into_doubt(struct resume *r)
{
	uint64_t at;

	for (at = r->head; at < r->tail; at++)
		resume_at(r, at)->fate = RESUME_DOUBT;
}

static void
a_lost_session_empties_the_list_and_says_what_was_not_stored(void **state)
{
	const uint64_t committed[] = {0, 1003};
	struct resume r;

	(void)state;
	list_of(&r, 5);
	come_into_doubt(&r);
	resume_settle(&r, committed, 2);
	assert_int_equal(resume_count_gone(&r), 2);
	resume_connected(&r, false);
	assert_int_equal(r.missing, 2);
	assert_int_equal(r.unmatched, 3);
	assert_int_equal(r.head, r.tail);
	take(&r, 1, 5);
	resume_free(&r);
}

static void
what_died_with_its_supervisor_is_stored_again_and_once(void **state)
{
	const uint64_t committed[] = {0, 1002};
	struct resume r;
	uint64_t at;

	(void)state;
	list_of(&r, 3);
	come_into_doubt(&r);
	resume_settle(&r, committed, 2);
	resume_connected(&r, true);
	assert_int_equal(again(&r, 1, 1001), RESUME_KNOWN);
	assert_int_equal(again(&r, 2, 1002), RESUME_KNOWN);
	assert_int_equal(resume_receive(&r, 3, 1003, true, &at), RESUME_AGAIN);
	resume_update(&r, at, 77, 0);
	resume_connected(&r, true);
	assert_int_equal(again(&r, 2, 1002), RESUME_KNOWN);
	assert_int_equal(again(&r, 3, 1003), RESUME_KNOWN);
	resume_free(&r);
}

static void
what_is_in_doubt_is_told_and_what_is_ours_is_not_settled(void **state)
{
	const uint64_t committed[] = {9999, 9999};
	struct resume r;
	uint64_t at;

	(void)state;
	list_of(&r, 3);
	come_into_doubt(&r);
	resume_at(&r, r.head + 2)->fate = RESUME_LIVE;
	resume_connected(&r, true);
	assert_int_equal(resume_receive(&r, 1, 1001, true, &at), RESUME_DOUBTFUL);
	assert_int_equal(at, r.head);
	assert_int_equal(resume_receive(&r, 2, 1002, true, &at), RESUME_DOUBTFUL);
	assert_int_equal(again(&r, 3, 1003), RESUME_KNOWN);
	resume_settle(&r, committed, 2);
	assert_int_equal(resume_at(&r, r.head)->fate, RESUME_DURABLE);
	assert_int_equal(resume_at(&r, r.head + 2)->fate, RESUME_LIVE);
	resume_free(&r);
}

static void
a_lane_that_is_not_known_has_committed_nothing(void **state)
{
	const uint64_t committed[] = {9999};
	struct resume r;

	(void)state;
	list_of(&r, 3);
	come_into_doubt(&r);
	resume_settle(&r, committed, 1);
	assert_int_equal(resume_count_gone(&r), 3);
	resume_free(&r);
}

static void
what_the_broker_has_confirmed_leaves_the_list(void **state)
{
	struct resume r;

	(void)state;
	list_of(&r, 10);
	assert_true(resume_should_ask(&r, 1000000));
	resume_ask(&r, 1000000);
	assert_false(resume_should_ask(&r, 2000000));
	resume_flushed(&r);
	take(&r, 11, 5);
	resume_proven(&r);
	assert_int_equal(r.tail - r.head, 1);
	/* An answer that was not asked for proves nothing. */
	resume_proven(&r);
	assert_int_equal(r.tail - r.head, 1);
	assert_false(resume_should_ask(&r, 1000001));
	/* Nor does one of an earlier connection. */
	resume_ask(&r, 3000000);
	resume_connected(&r, true);
	resume_proven(&r);
	assert_int_equal(r.tail - r.head, 1);
	resume_free(&r);
}

static void
an_equal_message_under_an_id_that_is_reused_at_once_is_new(void **state)
{
	struct resume r;

	(void)state;
	resume_init(&r, WINDOW);
	resume_connected(&r, false);
	/* A broker that takes the lowest free id. */
	take(&r, 1, 5);
	take(&r, 1, 6);
	resume_flushed(&r);
	assert_true(r.reuses_ids);
	/* Acknowledged, and perhaps confirmed: the one that comes may be another of the same look.
	 */
	resume_connected(&r, true);
	assert_int_equal(again(&r, 1, 6), RESUME_NEW);
	/* One whose acknowledgement never left must be the old one. */
	resume_free(&r);
	resume_init(&r, WINDOW);
	resume_connected(&r, false);
	take(&r, 1, 5);
	take(&r, 1, 6);
	resume_connected(&r, true);
	assert_int_equal(again(&r, 1, 6), RESUME_KNOWN);
	resume_free(&r);
}

static void
an_id_that_has_gone_round_is_not_taken_for_the_one_before(void **state)
{
	struct resume r;
	uint32_t i;

	(void)state;
	resume_init(&r, WINDOW);
	resume_connected(&r, false);
	/* One window that was acknowledged, all of the same content. */
	for (i = 1; i <= WINDOW; i++)
		take(&r, (uint16_t)i, 5);
	resume_flushed(&r);
	assert_false(r.reuses_ids);
	resume_connected(&r, true);
	/* All were confirmed, the next was sent and not read: id 1 again. */
	assert_int_equal(again(&r, 1, 5), RESUME_NEW);
	resume_free(&r);
}

static void
memory_is_bounded_by_the_window(void **state)
{
	struct resume r;
	uint32_t i;

	(void)state;
	resume_init(&r, WINDOW);
	resume_connected(&r, false);
	for (i = 0; i < 20 * WINDOW; i++) {
		take(&r, (uint16_t)(i % WINDOW + 1), i);
		if (i % WINDOW == WINDOW - 1)
			resume_flushed(&r);
	}
	assert_true(r.tail - r.head <= 4 * (WINDOW + 1));
	assert_true(r.capacity * sizeof(*r.ring) <= 6 * 1024 * 1024);
	assert_int_equal(r.forgotten, 20 * WINDOW - (r.tail - r.head));
	resume_free(&r);
}

/* ---- against a broker ---- */

#define MOST 4000

/* One that does what MQTT says: counts its packet ids, sends again in order. */
struct model {
	struct {
		uint16_t id;
		uint64_t hash;
		bool sent, stored;
		unsigned times;
	} m[MOST];
	unsigned published, confirmed, sent;
};

/* What ingestd does with a message: stores it if it is to be stored. */
static void
deliver(struct resume *r, struct model *b, unsigned i, bool dup, uint64_t *seq)
{
	struct resume_entry e = entry_of(b->m[i].id, b->m[i].hash);
	uint64_t at;

	switch (resume_receive(r, b->m[i].id, b->m[i].hash, dup, &at)) {
	case RESUME_NEW:
		e.seq = ++*seq;
		assert_int_equal(resume_note(r, &e), 0);
		b->m[i].times++;
		break;
	case RESUME_AGAIN:
		resume_update(r, at, ++*seq, 1);
		b->m[i].times++;
		break;
	case RESUME_KNOWN:
	case RESUME_DOUBTFUL:
		break;
	}
}

/*
 * Messages of very few contents, connections that end at any point, acknowledgements of which the
 * broker gets a part: whatever happens, each message is stored once.
 */
static void
a_broker_that_does_as_mqtt_says_has_everything_stored_once(void **state)
{
	static struct model b;
	struct resume r;
	unsigned round, i, read, acked, asked = 0;
	uint64_t seq, now;

	(void)state;
	for (round = 0; round < 200; round++) {
		memset(&b, 0, sizeof(b));
		resume_init(&r, WINDOW);
		seq = now = 0;
		for (i = 0; i < MOST; i++) {
			b.m[i].id = (uint16_t)((i + round * 977) % WINDOW + 1);
			b.m[i].hash = random_below(3);
		}
		resume_connected(&r, false);
		read = acked = 0;
		while (b.confirmed < MOST) {
			switch (random_below(8)) {
			case 0: /* the connection ends, and the broker has got a part of the acks */
				b.confirmed += (unsigned)random_below(acked - b.confirmed + 1);
				resume_connected(&r, true);
				read = acked = b.confirmed;
				asked = 0;
				break;
			case 1: /* everything is durable: acknowledged, perhaps with the question */
				now += random_below(100000);
				if (resume_should_ask(&r, (int64_t)now)) {
					resume_ask(&r, (int64_t)now);
					asked = read;
				}
				resume_flushed(&r);
				acked = read;
				break;
			case 2: /* the broker reads, and answers if it has come so far */
				b.confirmed += (unsigned)random_below(acked - b.confirmed + 1);
				if (asked > 0 && b.confirmed >= asked) {
					resume_proven(&r);
					asked = 0;
				}
				break;
			default:
				for (i = (unsigned)random_below(60); i > 0 && read < MOST; i--) {
					deliver(&r, &b, read, b.m[read].sent, &seq);
					b.m[read++].sent = true;
				}
				/* What the broker has sent and we have not read. */
				for (i = read; i < read + random_below(20) && i < MOST; i++)
					b.m[i].sent = true;
				break;
			}
		}
		for (i = 0; i < MOST; i++)
			assert_int_equal(b.m[i].times, 1);
		assert_int_equal(r.unmatched, 0);
		resume_free(&r);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(all_that_comes_again_is_recognised),
	    cmocka_unit_test(a_suffix_is_recognised_and_what_stood_before_it_is_done_with),
	    cmocka_unit_test(a_message_without_dup_is_new_whatever_it_looks_like),
	    cmocka_unit_test(another_content_under_the_same_id_is_new),
	    cmocka_unit_test(what_the_broker_leaves_out_is_counted_and_the_rest_recognised),
	    cmocka_unit_test(another_order_is_new_from_where_it_breaks),
	    cmocka_unit_test(a_broken_repetition_can_be_repeated_again),
	    cmocka_unit_test(a_lost_session_empties_the_list_and_says_what_was_not_stored),
	    cmocka_unit_test(what_died_with_its_supervisor_is_stored_again_and_once),
	    cmocka_unit_test(what_is_in_doubt_is_told_and_what_is_ours_is_not_settled),
	    cmocka_unit_test(a_lane_that_is_not_known_has_committed_nothing),
	    cmocka_unit_test(what_the_broker_has_confirmed_leaves_the_list),
	    cmocka_unit_test(an_equal_message_under_an_id_that_is_reused_at_once_is_new),
	    cmocka_unit_test(an_id_that_has_gone_round_is_not_taken_for_the_one_before),
	    cmocka_unit_test(memory_is_bounded_by_the_window),
	    cmocka_unit_test(a_broker_that_does_as_mqtt_says_has_everything_stored_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
