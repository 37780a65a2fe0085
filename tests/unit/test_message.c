/*
 * The channel's messages: what is encoded comes back, and nothing else does.
 */
#include "unit.h"

#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "message.h"

#define CAP message_cap(1 << 20)

static void
random_text(struct text *t, char *space, size_t most)
{
	size_t i;

	t->n = random_below(most + 1);
	t->s = space;
	for (i = 0; i < t->n; i++)
		space[i] = (char)random_below(256);
}

static void
random_record(struct record *r)
{
	static char space[8][70000];
	size_t i;

	memset(r, 0, sizeof(*r));
	r->seq = random_below(UINT64_MAX);
	r->time = (int64_t)random_below(INT64_MAX);
	random_text(&r->topic, space[0], random_below(3) == 0 ? 65535 : 40);
	random_text(&r->payload, space[1], random_below(10) == 0 ? 70000 : 200);
	r->payload_size = r->payload.n + random_below(2) * random_below(1000);
	r->qos = (uint8_t)random_below(3);
	r->retain = random_below(2);
	r->packet_id = (uint16_t)random_below(65536);
	if (random_below(2) == 0)
		random_text(&r->content_type, space[2], 60);
	r->property_count = random_below(4);
	for (i = 0; i < 2 * r->property_count; i++)
		random_text(&r->properties[i], space[3] + i * 300, 300);
}

static void
assert_text(struct text a, struct text b)
{
	assert_int_equal(a.n, b.n);
	if (a.n > 0)
		assert_memory_equal(a.s, b.s, a.n);
}

static void
a_record_comes_back_as_it_was(void **state)
{
	struct buffer b = {0};
	static struct record r;
	static struct message m;
	struct message_fault fault;
	size_t used, i;
	int round;

	(void)state;
	for (round = 0; round < 2000; round++) {
		random_record(&r);
		assert_int_equal(message_encode_record(&b, &r), 0);
		assert_true(buffer_size(&b) <= message_record_max(&r));
		assert_int_equal(
		    message_decode(buffer_head(&b), buffer_size(&b), CAP, &m, &used, &fault),
		    MESSAGE_OK);
		assert_int_equal(used, buffer_size(&b));
		assert_int_equal(m.type, MESSAGE_RECORD);
		assert_true(m.record.seq == r.seq && m.record.time == r.time);
		assert_text(m.record.topic, r.topic);
		assert_text(m.record.payload, r.payload);
		assert_true(m.record.payload_size == r.payload_size);
		assert_int_equal(m.record.qos, r.qos);
		assert_int_equal(m.record.retain, r.retain);
		assert_int_equal(m.record.packet_id, r.packet_id);
		assert_int_equal(m.record.content_type.s == NULL, r.content_type.s == NULL);
		assert_text(m.record.content_type, r.content_type);
		assert_int_equal(m.record.property_count, r.property_count);
		for (i = 0; i < 2 * r.property_count; i++)
			assert_text(m.record.properties[i], r.properties[i]);
		buffer_clear(&b);
	}
	buffer_free(&b);
}

static void
control_messages_come_back_as_they_were(void **state)
{
	static struct message list[] = {
	    {.type = MESSAGE_CONFIG,
		.config = {1, 7, {"stream", 6}, {"a=b\n", 4}, 5, 6, 7, 8, true}},
	    {.type = MESSAGE_FLUSH},
	    {.type = MESSAGE_READY, .ready = {4711, {"15.18", 5}, 99, 3, {"7/8", 3}}},
	    {.type = MESSAGE_COMMITTED, .committed = {UINT64_MAX, 500, 3, 1, 1234}},
	    {.type = MESSAGE_TROUBLE,
		.trouble = {TROUBLE_CONFIGURATION, {"42P01", 5}, {"no table", 8}}},
	    {.type = MESSAGE_DRAINED, .drained = {5, 4, 3, 2}},
	    {.type = MESSAGE_CLOSE, .stream = {"old", 3}},
	    {.type = MESSAGE_CLOSED, .closed = {{"old", 3}, 2, {{0, 77}, {63, UINT64_MAX}}}},
	    {.type = MESSAGE_CLOSED, .closed = {{"none", 4}, 0, {{0, 0}}}},
	    {.type = MESSAGE_FORGET, .stream = {"old", 3}},
	    {.type = MESSAGE_CONDEMN, .condemn = {99, {"why", 3}}},
	    {.type = MESSAGE_FORGOTTEN, .stream = {"old", 3}},
	};
	struct message_fault fault;
	struct buffer b = {0};
	static struct message m;
	size_t i, used;

	(void)state;
	for (i = 0; i < sizeof(list) / sizeof(list[0]); i++)
		assert_int_equal(message_encode(&b, &list[i]), 0);
	for (i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
		assert_int_equal(
		    message_decode(buffer_head(&b), buffer_size(&b), CAP, &m, &used, &fault),
		    MESSAGE_OK);
		assert_int_equal(m.type, list[i].type);
		b.head += used;
		if (m.type == MESSAGE_CONFIG) {
			assert_int_equal(m.config.lane, 7);
			assert_text(m.config.text, list[i].config.text);
			assert_int_equal(m.config.committed, 5);
			assert_int_equal(m.config.dead_letters, 6);
			assert_int_equal(m.config.session, 7);
			assert_int_equal(m.config.instance, 8);
			assert_true(m.config.claimed);
		} else if (m.type == MESSAGE_READY) {
			assert_int_equal(m.ready.committed, 99);
			assert_int_equal(m.ready.dead_letters, 3);
			assert_text(m.ready.database, list[i].ready.database);
		} else if (m.type == MESSAGE_CLOSED) {
			assert_text(m.closed.stream, list[i].closed.stream);
			assert_int_equal(m.closed.count, list[i].closed.count);
			assert_memory_equal(m.closed.lanes, list[i].closed.lanes,
			    m.closed.count * sizeof(m.closed.lanes[0]));
		} else if (m.type == MESSAGE_CLOSE || m.type == MESSAGE_FORGET ||
		    m.type == MESSAGE_FORGOTTEN) {
			assert_text(m.stream, list[i].stream);
		} else if (m.type == MESSAGE_COMMITTED) {
			assert_memory_equal(&m.committed, &list[i].committed, sizeof(m.committed));
		} else if (m.type == MESSAGE_TROUBLE) {
			assert_int_equal(m.trouble.class, TROUBLE_CONFIGURATION);
			assert_text(m.trouble.sqlstate, list[i].trouble.sqlstate);
		} else if (m.type == MESSAGE_DRAINED) {
			assert_memory_equal(&m.drained, &list[i].drained, sizeof(m.drained));
		}
	}
	assert_int_equal(b.head, b.len);
	buffer_free(&b);
}

static void
a_part_of_a_message_asks_for_more_and_never_reads_past_its_end(void **state)
{
	struct message_fault fault;
	struct buffer b = {0};
	static struct record r;
	static struct message m;
	size_t used, n;
	uint8_t *part;
	int round;

	(void)state;
	for (round = 0; round < 50; round++) {
		random_record(&r);
		assert_int_equal(message_encode_record(&b, &r), 0);
		for (n = 0; n < buffer_size(&b); n += 1 + random_below(buffer_size(&b) / 20 + 1)) {
			/* Of exactly that size, so that a sanitizer sees one byte too many. */
			part = malloc(n + 1);
			memcpy(part, buffer_head(&b), n);
			part = realloc(part, n > 0 ? n : 1);
			assert_int_equal(
			    message_decode(part, n, CAP, &m, &used, &fault), MESSAGE_MORE);
			free(part);
		}
		buffer_clear(&b);
	}
	buffer_free(&b);
}

static void
random_bytes_never_pass_unless_they_are_a_message(void **state)
{
	struct message_fault fault;
	static struct message m;
	uint8_t bytes[64], *exact;
	size_t used, n, i;
	int round, bad = 0;

	(void)state;
	for (round = 0; round < 200000; round++) {
		n = 1 + random_below(sizeof(bytes));
		for (i = 0; i < n; i++)
			bytes[i] = (uint8_t)random_below(256);
		/* Half of them start like one, to get past the first check. */
		if (n > 2 && random_below(2) == 0) {
			bytes[0] = 0x90 | (uint8_t)random_below(12);
			bytes[1] = (uint8_t)random_below(20);
		}
		exact = malloc(n);
		memcpy(exact, bytes, n);
		fault.offset = 0;
		if (message_decode(exact, n, CAP, &m, &used, &fault) == MESSAGE_BAD) {
			bad++;
			assert_true(fault.offset <= n);
			assert_true(fault.reason[0] != '\0');
		}
		free(exact);
	}
	assert_true(bad > 100000);
}

struct bad_case {
	const char *bytes;
	size_t n;
	size_t offset;
	const char *reason;
};

#define BAD(b, o, r)                   \
	{                              \
		b, sizeof(b) - 1, o, r \
	}

static void
what_is_malformed_is_named_with_its_byte(void **state)
{
	static const struct bad_case cases[] = {
	    BAD("\x01", 0, "byte 0x01 where a message (an array) belongs"),
	    BAD("\x90", 1, "an empty array has no type"),
	    BAD("\x91\x07", 2, "there is no message of type 7"),
	    BAD("\x92\x03\x01", 2, "FLUSH has 1 elements, not 2"),
	    BAD("\x91\xa1x", 1, "byte 0xa1 where an unsigned number belongs"),
	    BAD("\x96\x10\x01\x05\x00", 3, "byte 0x05 where a string belongs"),
	    /* An array of four billion: msgpack-c would ask for 96 GB. */
	    BAD("\xdd\xff\xff\xff\xff\x02", 6, "RECORD has 11 elements, not 4294967295"),
	    BAD("\x96\x10\x01\xdb\xff\xff\xff\xff", 8, "it announces 4294967295 bytes more"),
	    BAD("\x9b\x02\x01\x01\xa1t\xc6\x7f\xff\xff\xff", 11,
		"it announces 2147483647 bytes more"),
	    BAD("\x9b\x02\x01\x01\xa1t\xc4\x01x\x01\x07\x00\x01\xc0\x90", 0, "RECORD with QoS 7"),
	    BAD("\x9b\x02\x01\x01\xa1t\xc4\x01x\x00\x00\x00\x01\xc0\x90", 0,
		"RECORD with 1 bytes of a payload of 0"),
	    BAD("\x9b\x02\x01\x01\xa1t\xc4\x01x\x01\x00\x00\x01\xc0\x91\xa1x", 15,
		"a list of 1 elements"),
	    BAD("\x93\x14\xa1s\x93\x01\x02\x03", 5, "a list of 3 elements"),
	    BAD("\x93\x14\xa1s\xdc\x01\x02", 7, "a list of 258 elements"),
	    BAD("\x93\x14\xa1s\x92\x01\xa1x", 6, "byte 0xa1 where an unsigned number belongs"),
	    BAD("\x94\x12\x09\xa0\xa0", 0, "TROUBLE of class 9"),
	};
	struct message_fault fault;
	static struct message m;
	size_t i, used;

	(void)state;
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		memset(&fault, 0, sizeof(fault));
		assert_int_equal(message_decode((const uint8_t *)cases[i].bytes, cases[i].n, CAP,
				     &m, &used, &fault),
		    MESSAGE_BAD);
		assert_int_equal(fault.offset, cases[i].offset);
		assert_memory_equal(fault.reason, cases[i].reason, strlen(cases[i].reason));
	}
}

static void
every_type_has_a_name(void **state)
{
	(void)state;
	assert_string_equal(message_name(MESSAGE_CONFIG), "CONFIG");
	assert_string_equal(message_name(MESSAGE_DRAINED), "DRAINED");
	assert_string_equal(message_name(12345), "unknown");
	assert_string_equal(trouble_name(TROUBLE_DATA), "data");
	assert_string_equal(trouble_name(99), "unknown");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_record_comes_back_as_it_was),
	    cmocka_unit_test(control_messages_come_back_as_they_were),
	    cmocka_unit_test(a_part_of_a_message_asks_for_more_and_never_reads_past_its_end),
	    cmocka_unit_test(random_bytes_never_pass_unless_they_are_a_message),
	    cmocka_unit_test(what_is_malformed_is_named_with_its_byte),
	    cmocka_unit_test(every_type_has_a_name),
	};

	return cmocka_run_group_tests_name("message", tests, NULL, NULL);
}
