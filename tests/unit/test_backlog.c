/*
 * The backlog against a model: an array of the records that should be in it.
 */
#include "unit.h"

#include <string.h>

#include "backlog.h"
#include "buffer.h"

#define MODEL_MAX 3000

struct model {
	uint64_t seq[MODEL_MAX];
	size_t size[MODEL_MAX];
	size_t count, sent;
};

static void
append(struct backlog *b, struct model *model, uint64_t seq, size_t size)
{
	static char payload[200000];
	static struct record r;

	r.seq = seq;
	r.topic = text_from("t/1");
	memset(payload, (int)(seq % 251), size);
	r.payload = (struct text){payload, size};
	r.payload_size = size;
	r.qos = (uint8_t)(seq % 2);
	assert_int_equal(backlog_append(b, &r), 0);
	model->seq[model->count] = seq;
	model->size[model->count++] = size;
}

/* Takes n unsent bytes as the channel would, into stream. */
static size_t
take(struct backlog *b, struct buffer *stream, size_t n)
{
	struct iovec iov[3];
	int parts = backlog_unsent(b, iov, 3), i;
	size_t taken = 0, step;

	for (i = 0; i < parts && taken < n; i++) {
		step = iov[i].iov_len < n - taken ? iov[i].iov_len : n - taken;
		assert_int_equal(buffer_append(stream, iov[i].iov_base, step), 0);
		taken += step;
	}
	backlog_mark_sent(b, taken);
	return taken;
}

/* The stream must hold the model's records from *next on, whole, in order, unharmed. */
static void
check_stream(struct buffer *stream, const struct model *model, size_t *next)
{
	static struct message m;
	struct message_fault fault;
	size_t used, i;

	while (buffer_size(stream) > 0 &&
	    message_decode(buffer_head(stream), buffer_size(stream), message_cap(1 << 20), &m,
		&used, &fault) == MESSAGE_OK) {
		assert_true(m.record.seq == model->seq[*next]);
		assert_int_equal(m.record.payload.n, model->size[*next]);
		for (i = 0; i < m.record.payload.n; i += 97)
			assert_int_equal((uint8_t)m.record.payload.s[i], m.record.seq % 251);
		(*next)++;
		buffer_consume(stream, used);
	}
}

static void
drop(struct model *model, size_t n)
{
	memmove(model->seq, model->seq + n, (model->count - n) * sizeof(model->seq[0]));
	memmove(model->size, model->size + n, (model->count - n) * sizeof(model->size[0]));
	model->count -= n;
	model->sent -= n;
}

static void
whatever_happens_it_holds_what_is_not_durable_in_order(void **state)
{
	static struct model model;
	struct buffer stream = {0};
	struct backlog b;
	uint64_t seq = 0;
	size_t next = 0, n, rewinds = 0;
	int round;

	(void)state;
	backlog_init(&b);
	for (round = 0; round < 60000; round++) {
		switch (random_below(8)) {
		case 0:
		case 1:
		case 2:
			if (model.count < MODEL_MAX) {
				seq += 1 + random_below(3);
				append(&b, &model, seq,
				    random_below(200) == 0 ? random_below(200000)
							   : random_below(300));
			}
			break;
		case 3:
		case 4:
		case 5:
			take(&b, &stream, 1 + random_below(random_below(20) == 0 ? 300000 : 2000));
			check_stream(&stream, &model, &next);
			break;
		case 6:
			if (b.sent > 0) {
				n = 1 + random_below(b.sent);
				assert_int_equal(backlog_durable(&b, model.seq[n - 1]), n);
				assert_true(b.watermark == model.seq[n - 1]);
				drop(&model, n);
				next -= n;
			}
			break;
		default:
			if (random_below(50) == 0) {
				backlog_rewind(&b);
				buffer_clear(&stream);
				next = 0;
				rewinds++;
			}
			break;
		}
		assert_int_equal(b.count, model.count);
		assert_int_equal(b.sent, next);
	}
	assert_true(rewinds > 50 && seq > 20000);
	backlog_free(&b);
	buffer_free(&stream);
}

static void
a_watermark_that_was_not_sent_is_refused(void **state)
{
	static struct model model;
	struct buffer stream = {0};
	struct backlog b;

	(void)state;
	backlog_init(&b);
	assert_int_equal(backlog_durable(&b, 1), -1);
	append(&b, &model, 5, 10);
	append(&b, &model, 9, 10);
	assert_int_equal(backlog_durable(&b, 5), -1);
	take(&b, &stream, 1);
	assert_int_equal(backlog_durable(&b, 5), -1);
	take(&b, &stream, b.bytes / 2);
	assert_int_equal(b.sent, 1);
	assert_int_equal(backlog_durable(&b, 9), -1);
	assert_int_equal(backlog_durable(&b, 4), -1);
	assert_int_equal(backlog_durable(&b, 6), -1);
	assert_int_equal(backlog_durable(&b, 5), 1);
	assert_int_equal(backlog_durable(&b, 5), -1);
	assert_int_equal(b.count, 1);
	assert_int_equal(backlog_count_qos(&b, 1), 1);
	assert_int_equal(backlog_count_qos(&b, 0), 0);
	backlog_free(&b);
	buffer_free(&stream);
}

static void
an_empty_backlog_keeps_one_chunk_and_counts_nothing(void **state)
{
	static struct model model;
	struct buffer stream = {0};
	struct backlog b;
	int i;

	(void)state;
	backlog_init(&b);
	for (i = 1; i <= 2000; i++)
		append(&b, &model, (uint64_t)i, 500);
	while (take(&b, &stream, 1 << 20) > 0)
		;
	assert_int_equal(backlog_durable(&b, 2000), 2000);
	assert_int_equal(b.count, 0);
	assert_int_equal(b.bytes, 0);
	assert_null(b.first);
	assert_null(b.at);
	assert_non_null(b.spare);
	backlog_free(&b);
	buffer_free(&stream);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(whatever_happens_it_holds_what_is_not_durable_in_order),
	    cmocka_unit_test(a_watermark_that_was_not_sent_is_refused),
	    cmocka_unit_test(an_empty_backlog_keeps_one_chunk_and_counts_nothing),
	};

	return cmocka_run_group_tests_name("backlog", tests, NULL, NULL);
}
