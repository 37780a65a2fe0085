/*
 * The messages between supervisor and writers: msgpack arrays whose first element is the type.
 * ingestd-protocol(7) describes them, and the layouts in message_check.c are that page in C.
 *
 * Must never give msgpack-c anything that message_check() has not found in order.
 */
#include "message.h"

#include <msgpack.h>
#include <string.h>

#include "buffer.h"
#include "message_check.h"

#define TOPIC_MAX 65535
#define PROPERTIES_MAX (64 * 1024)
/* Headers and numbers of a RECORD. */
#define RECORD_OVERHEAD 1024

/* For log lines; "unknown" for a type that there is not. */
const char *
message_name(uint64_t type)
{
	const struct message_layout *l = message_layout_of(type);

	return l != NULL ? l->name : "unknown";
}

const char *
trouble_name(uint64_t class)
{
	static const char *const names[] = {"transient", "configuration", "data"};

	return class <= TROUBLE_DATA ? names[class] : "unknown";
}

struct text
text_from(const char *s)
{
	return (struct text){.s = s, .n = strlen(s)};
}

/* Bytes that a record needs at most when it is encoded. */
size_t
message_record_max(const struct record *r)
{
	size_t n = RECORD_OVERHEAD + r->topic.n + r->payload.n + r->content_type.n, i;

	for (i = 0; i < 2 * r->property_count; i++)
		n += r->properties[i].n + 5;
	return n;
}

/* The cap for message_decode(), given the largest payload that is carried. */
size_t
message_cap(size_t payload_limit)
{
	return payload_limit + TOPIC_MAX + PROPERTIES_MAX + RECORD_OVERHEAD;
}

/* ---- encode ---- */

static int
write_to_buffer(void *data, const char *p, size_t n)
{
	return buffer_append(data, p, n);
}

static void
pack_text(msgpack_packer *pk, struct text t)
{
	msgpack_pack_str(pk, t.n);
	msgpack_pack_str_body(pk, t.s, t.n);
}

static void
pack_record(msgpack_packer *pk, const struct record *r)
{
	size_t i;

	msgpack_pack_uint64(pk, r->seq);
	msgpack_pack_uint64(pk, (uint64_t)r->time);
	pack_text(pk, r->topic);
	msgpack_pack_bin(pk, r->payload.n);
	msgpack_pack_bin_body(pk, r->payload.s, r->payload.n);
	msgpack_pack_uint64(pk, r->payload_size);
	msgpack_pack_uint8(pk, r->qos);
	msgpack_pack_uint8(pk, r->retain);
	msgpack_pack_uint16(pk, r->packet_id);
	if (r->content_type.s == NULL)
		msgpack_pack_nil(pk);
	else
		pack_text(pk, r->content_type);
	msgpack_pack_array(pk, 2 * r->property_count);
	for (i = 0; i < 2 * r->property_count; i++)
		pack_text(pk, r->properties[i]);
}

static void
start(msgpack_packer *pk, struct buffer *out, enum message_type type)
{
	msgpack_packer_init(pk, out, write_to_buffer);
	msgpack_pack_array(pk, 1 + strlen(message_layout_of(type)->elements));
	msgpack_pack_uint8(pk, (uint8_t)type);
}

/* Appends a RECORD without taking a copy of it first. Returns -1 when memory is short. */
int
message_encode_record(struct buffer *out, const struct record *r)
{
	msgpack_packer pk;

	/* Room for all of it at once: then no append below can fail. */
	if (buffer_reserve(out, message_record_max(r)) == -1)
		return -1;
	start(&pk, out, MESSAGE_RECORD);
	pack_record(&pk, r);
	return 0;
}

/* Appends a message to out. Returns -1 when memory is short; out is then as it was. */
int
message_encode(struct buffer *out, const struct message *m)
{
	msgpack_packer pk;
	size_t i;

	if (m->type == MESSAGE_RECORD)
		return message_encode_record(out, &m->record);
	if (buffer_reserve(out, MESSAGE_CONTROL_MAX) == -1)
		return -1;
	start(&pk, out, m->type);
	switch (m->type) {
	case MESSAGE_CONFIG:
		msgpack_pack_uint64(&pk, m->config.version);
		msgpack_pack_uint64(&pk, m->config.lane);
		pack_text(&pk, m->config.stream);
		pack_text(&pk, m->config.text);
		msgpack_pack_uint64(&pk, m->config.committed);
		msgpack_pack_uint64(&pk, m->config.dead_letters);
		msgpack_pack_uint64(&pk, m->config.session);
		msgpack_pack_uint64(&pk, m->config.instance);
		msgpack_pack_uint8(&pk, m->config.claimed);
		break;
	case MESSAGE_CLOSE:
	case MESSAGE_FORGET:
	case MESSAGE_FORGOTTEN:
		pack_text(&pk, m->stream);
		break;
	case MESSAGE_CONDEMN:
		msgpack_pack_uint64(&pk, m->condemn.seq);
		pack_text(&pk, m->condemn.reason);
		break;
	case MESSAGE_READY:
		msgpack_pack_uint64(&pk, m->ready.pid);
		pack_text(&pk, m->ready.server);
		msgpack_pack_uint64(&pk, m->ready.committed);
		msgpack_pack_uint64(&pk, m->ready.dead_letters);
		pack_text(&pk, m->ready.database);
		break;
	case MESSAGE_COMMITTED:
		msgpack_pack_uint64(&pk, m->committed.watermark);
		msgpack_pack_uint64(&pk, m->committed.rows);
		msgpack_pack_uint64(&pk, m->committed.dead_letters);
		msgpack_pack_uint64(&pk, m->committed.batches);
		msgpack_pack_uint64(&pk, m->committed.duration);
		break;
	case MESSAGE_TROUBLE:
		msgpack_pack_uint64(&pk, m->trouble.class);
		pack_text(&pk, m->trouble.sqlstate);
		pack_text(&pk, m->trouble.text);
		break;
	case MESSAGE_DRAINED:
		msgpack_pack_uint64(&pk, m->drained.watermark);
		msgpack_pack_uint64(&pk, m->drained.rows);
		msgpack_pack_uint64(&pk, m->drained.dead_letters);
		msgpack_pack_uint64(&pk, m->drained.batches);
		break;
	case MESSAGE_CLOSED:
		pack_text(&pk, m->closed.stream);
		msgpack_pack_array(&pk, 2 * m->closed.count);
		for (i = 0; i < m->closed.count; i++) {
			msgpack_pack_uint64(&pk, m->closed.lanes[i].lane);
			msgpack_pack_uint64(&pk, m->closed.lanes[i].committed);
		}
		break;
	default:
		break;
	}
	return 0;
}

/* ---- decode ---- */

static struct text
text_of(const msgpack_object *o)
{
	/* str and bin share their shape in the union; nil is the absent string. */
	if (o->type == MSGPACK_OBJECT_NIL)
		return (struct text){0};
	return (struct text){.s = o->via.str.ptr, .n = o->via.str.size};
}

static enum message_result
fill_record(const msgpack_object *o, struct record *r, struct message_cursor *c)
{
	size_t i;

	if (o[6].via.u64 > 2 || o[7].via.u64 > 1 || o[8].via.u64 > UINT16_MAX)
		return message_bad(c, "RECORD with QoS %llu, retain %llu, packet id %llu",
		    (unsigned long long)o[6].via.u64, (unsigned long long)o[7].via.u64,
		    (unsigned long long)o[8].via.u64);
	r->seq = o[1].via.u64;
	r->time = (int64_t)o[2].via.u64;
	r->topic = text_of(&o[3]);
	r->payload = text_of(&o[4]);
	r->payload_size = o[5].via.u64;
	r->qos = (uint8_t)o[6].via.u64;
	r->retain = o[7].via.u64 != 0;
	r->packet_id = (uint16_t)o[8].via.u64;
	r->content_type = text_of(&o[9]);
	r->property_count = o[10].via.array.size / 2;
	for (i = 0; i < 2 * r->property_count; i++)
		r->properties[i] = text_of(&o[10].via.array.ptr[i]);
	if (r->payload_size < r->payload.n)
		return message_bad(c, "RECORD with %zu bytes of a payload of %llu", r->payload.n,
		    (unsigned long long)r->payload_size);
	return MESSAGE_OK;
}

static void
fill_closed(const msgpack_object *o, struct message *m)
{
	const msgpack_object *numbers = o[2].via.array.ptr;
	size_t i;

	m->closed.stream = text_of(&o[1]);
	m->closed.count = o[2].via.array.size / 2;
	for (i = 0; i < m->closed.count; i++)
		m->closed.lanes[i] = (struct lane_progress){
		    .lane = numbers[2 * i].via.u64, .committed = numbers[2 * i + 1].via.u64};
}

static enum message_result
fill(const msgpack_object *o, struct message *m, struct message_cursor *c)
{
	m->type = (enum message_type)o[0].via.u64;
	switch (m->type) {
	case MESSAGE_CONFIG:
		m->config.version = o[1].via.u64;
		m->config.lane = o[2].via.u64;
		m->config.stream = text_of(&o[3]);
		m->config.text = text_of(&o[4]);
		m->config.committed = o[5].via.u64;
		m->config.dead_letters = o[6].via.u64;
		m->config.session = o[7].via.u64;
		m->config.instance = o[8].via.u64;
		m->config.claimed = o[9].via.u64 != 0;
		break;
	case MESSAGE_RECORD:
		return fill_record(o, &m->record, c);
	case MESSAGE_FLUSH:
		break;
	case MESSAGE_CLOSE:
	case MESSAGE_FORGET:
	case MESSAGE_FORGOTTEN:
		m->stream = text_of(&o[1]);
		break;
	case MESSAGE_CONDEMN:
		m->condemn.seq = o[1].via.u64;
		m->condemn.reason = text_of(&o[2]);
		break;
	case MESSAGE_READY:
		m->ready.pid = o[1].via.u64;
		m->ready.server = text_of(&o[2]);
		m->ready.committed = o[3].via.u64;
		m->ready.dead_letters = o[4].via.u64;
		m->ready.database = text_of(&o[5]);
		break;
	case MESSAGE_COMMITTED:
		m->committed.watermark = o[1].via.u64;
		m->committed.rows = o[2].via.u64;
		m->committed.dead_letters = o[3].via.u64;
		m->committed.batches = o[4].via.u64;
		m->committed.duration = o[5].via.u64;
		break;
	case MESSAGE_TROUBLE:
		m->trouble.class = o[1].via.u64;
		m->trouble.sqlstate = text_of(&o[2]);
		m->trouble.text = text_of(&o[3]);
		if (m->trouble.class > TROUBLE_DATA)
			return message_bad(
			    c, "TROUBLE of class %llu", (unsigned long long)m->trouble.class);
		break;
	case MESSAGE_DRAINED:
		m->drained.watermark = o[1].via.u64;
		m->drained.rows = o[2].via.u64;
		m->drained.dead_letters = o[3].via.u64;
		m->drained.batches = o[4].via.u64;
		break;
	case MESSAGE_CLOSED:
		fill_closed(o, m);
		break;
	}
	return MESSAGE_OK;
}

/*
 * Decodes the message at the head of n bytes. MESSAGE_OK: m is filled, *used bytes are done with;
 * the texts in m point into the given bytes. MESSAGE_MORE: it is not all there yet. MESSAGE_BAD:
 * fault says which byte and why; the peer is beyond trust. cap bounds the whole message in bytes.
 */
enum message_result
message_decode(const uint8_t *p, size_t n, size_t cap, struct message *m, size_t *used,
    struct message_fault *fault)
{
	static msgpack_zone *zone;
	struct message_cursor c = {.start = p, .p = p, .end = p + n, .cap = cap, .fault = fault};
	msgpack_object object;
	enum message_result rc;
	size_t offset = 0;

	rc = message_check(&c);
	if (rc != MESSAGE_OK)
		return rc;
	if (zone == NULL)
		zone = msgpack_zone_new(MSGPACK_ZONE_CHUNK_SIZE);
	else
		msgpack_zone_clear(zone);
	*used = (size_t)(c.p - c.start);
	c.p = c.start;
	/* Unlike msgpack_unpack_next() this one takes our zone: no allocation per record. */
	if (zone == NULL || msgpack_unpack((const char *)p, *used, &offset, zone, &object) < 0 ||
	    offset != *used)
		return message_bad(&c, "msgpack-c cannot unpack it");
	rc = fill(object.via.array.ptr, m, &c);
	if (rc == MESSAGE_OK && m->type == MESSAGE_RECORD)
		m->record.encoded = (struct text){(const char *)p, *used};
	return rc;
}
