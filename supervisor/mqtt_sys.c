/*
 * What the broker tells of messages that it has dropped: Mosquitto counts them in a topic below
 * $SYS, which is subscribed to beside the user's filters.
 *
 * That message is ours alone: it is no record, is not counted as received, and at QoS 0 has no
 * PUBACK that the gate would have to hold. Only where the user's own filters bring it too, it is a
 * record for them. Our filter is not in the note of the session's filters. Must never cost anything
 * else: a broker that refuses it, or has no such topic, is as good as any.
 */
#include "mqtt_sys.h"

#include <mosquitto.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "mqtt.h"

#define COUNTER "$SYS/broker/publish/messages/dropped"
#define SHARED "$share/"
/* There are brokers that close the connection instead of refusing a filter. */
#define STRIKES_MOST 2

/* A shared subscription as the filter that it is of. */
static const char *
without_group(const char *filter)
{
	const char *rest;

	if (strncmp(filter, SHARED, strlen(SHARED)) != 0)
		return filter;
	rest = strchr(filter + strlen(SHARED), '/');
	return rest != NULL ? rest + 1 : filter;
}

/* Once, when the filters are known. */
void
mqtt_sys_init(struct mqtt *m)
{
	bool matches;
	int i;

	for (i = 0; i < m->cfg->subscribe_count; i++) {
		const char *filter = m->cfg->subscribe[i];

		if (mosquitto_topic_matches_sub(without_group(filter), COUNTER, &matches) ==
			MOSQ_ERR_SUCCESS &&
		    matches)
			m->sys.covered = true;
		m->sys.own_filter = m->sys.own_filter || strcmp(filter, COUNTER) == 0;
	}
}

/*
 * After CONNACK, behind the UNSUBSCRIBE of what an earlier run had: that may have been this. Every
 * time, for the retained message, which tells what was dropped meanwhile.
 */
void
mqtt_sys_subscribe(struct mqtt *m, bool session_present)
{
	struct mqtt_sys *s = &m->sys;

	s->asked = false;
	if (s->covered) {
		/* An earlier run may have left ours in the session: they would get it twice. */
		if (session_present && !s->own_filter)
			mosquitto_unsubscribe(m->mosq, NULL, COUNTER);
		drops_watched(&s->drops, clock_realtime());
		return;
	}
	if (s->strikes < STRIKES_MOST)
		s->asked = mosquitto_subscribe_v5(m->mosq, &s->mid, COUNTER, 0, 0, NULL) ==
		    MOSQ_ERR_SUCCESS;
}

/* SUBACK has come: true if it answers ours. code is what was granted. */
bool
mqtt_sys_answered(struct mqtt *m, int mid, int code)
{
	if (!m->sys.asked || mid != m->sys.mid)
		return false;
	m->sys.asked = false;
	m->sys.strikes = 0;
	if (code >= 0x80)
		log_debug("drops_not_watched", LOG_S("filter", COUNTER), LOG_I("code", code),
		    LOG_S("reason", "the broker refuses it"));
	else
		drops_watched(&m->sys.drops, clock_realtime());
	return true;
}

/* A connection that stood has ended. */
void
mqtt_sys_lost(struct mqtt *m)
{
	if (!m->sys.asked)
		return;
	m->sys.asked = false;
	if (++m->sys.strikes == STRIKES_MOST)
		log_debug("drops_not_watched", LOG_S("filter", COUNTER),
		    LOG_S("reason", "the broker ends the connection instead of an answer"),
		    LOG_S("next", "not asking for it any more"));
}

/* Reads the counter if that is what has come. True if the message is nobody else's. */
bool
mqtt_sys_takes(struct mqtt *m, const struct mosquitto_message *msg)
{
	if (strcmp(msg->topic, COUNTER) != 0)
		return false;
	if (drops_read(&m->sys.drops, msg->payload, (size_t)msg->payloadlen, msg->retain,
		clock_realtime()))
		log_debug("drops_read", LOG_U("counter", m->sys.drops.counter),
		    LOG_I("retained", msg->retain));
	else
		log_debug("drops_not_read", LOG_I("payload_bytes", msg->payloadlen));
	/* At QoS 1 it is not ours: an earlier run's filter had it, and it is in the gate's account.
	 */
	return !m->sys.covered && msg->qos == 0;
}
