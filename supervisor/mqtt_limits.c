/*
 * What the broker's CONNACK says of its limits, where that keeps messages from us, and what it does
 * not say and does.
 *
 * Its Receive Maximum is none of these: it bounds what we publish, which is nothing, and Mosquitto
 * tells 20 there while it sends us as many as we have asked for. Must never refuse a broker: what
 * it can do is better than nothing.
 */
#include "mqtt_limits.h"

#include <mosquitto.h>
#include <mqtt_protocol.h>

#include "log.h"

/* After CONNACK, with its properties; MQTT 3.1.1 has none. */
void
mqtt_limits_tell(const struct mqtt *m, const mosquitto_property *props)
{
	uint32_t size;
	uint8_t qos;

	if (mosquitto_property_read_byte(props, MQTT_PROP_MAXIMUM_QOS, &qos, false) != NULL &&
	    qos < m->cfg->qos)
		log_warn("mqtt_maximum_qos", LOG_S("broker", m->broker), LOG_U("maximum", qos),
		    LOG_I("asked", m->cfg->qos),
		    LOG_S("reason",
			"the broker takes no message of a higher quality of service from its "
			"publishers: what it sends can be lost on the way to it and to us"));
	if (mosquitto_property_read_int32(props, MQTT_PROP_MAXIMUM_PACKET_SIZE, &size, false) !=
		NULL &&
	    size < (uint64_t)m->cfg->payload_limit)
		log_info("mqtt_maximum_packet_size", LOG_S("broker", m->broker),
		    LOG_U("bytes", size), LOG_I("payload_limit", m->cfg->payload_limit),
		    LOG_S("reason",
			"the broker takes no larger packet from us, and most likely none from its "
			"publishers: a larger message does not come, and is no dead letter "
			"either"));
}

/* The acknowledgements of all that is held are out: does it send as much at a time as it may? */
void
mqtt_limits_round(struct mqtt *m)
{
	uint64_t limit = window_round(&m->rounds, m->gate.held, m->gate.oldest, m->now);

	if (limit == 0 || limit >= m->gate.window)
		return;
	log_info("mqtt_window_small", LOG_S("broker", m->broker), LOG_U("messages", limit),
	    LOG_U("receive_maximum", m->gate.window),
	    LOG_S("reason",
		"the broker sends no more than so many messages before it has the "
		"acknowledgements of these, and the next at once: if it has more waiting, its "
		"own limit bounds the throughput"),
	    LOG_S("next",
		m->cfg->protocol == CONFIG_PROTOCOL_5
		    ? "going on; raise the broker's limit of messages in flight to a client"
		    : "going on; use --protocol 5, or raise the broker's limit of messages in "
		      "flight to a client (max_inflight_messages of Mosquitto)"));
}
