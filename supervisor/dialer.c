/*
 * When to try the broker again, and which of its addresses: full-jitter backoff up to 30 s, one
 * address an attempt, in turn.
 *
 * libmosquitto's own backoff serves only its own loops, and its non-blocking connect tries the
 * first address alone: a "localhost" that resolves to ::1 first would never reach a broker on
 * 127.0.0.1.
 */
#include "dialer.h"

#include <arpa/inet.h>
#include <bsd/stdlib.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "policy.h"

#define RETRY_FIRST (500 * CLOCK_MS)
#define RETRY_LAST (30 * CLOCK_SECOND)
/* Jitter may come near to nothing; a refused connection must still not make a busy loop. */
#define RETRY_LEAST (50 * CLOCK_MS)
#define RESOLVE_TIMEOUT (10 * CLOCK_SECOND)

/* host stays the caller's and must outlive the dialer. */
void
dialer_init(struct dialer *d, const char *host, int64_t first_attempt)
{
	*d = (struct dialer){.host = host, .retry_at = first_attempt};
	resolve_init(&d->resolve);
}

static enum dialer_result
failed(struct dialer *d, const char *error)
{
	d->error = error;
	return DIALER_FAILED;
}

static bool
is_numeric(const char *host)
{
	unsigned char ignored[sizeof(struct in6_addr)];

	return inet_pton(AF_INET, host, ignored) == 1 || inet_pton(AF_INET6, host, ignored) == 1;
}

/*
 * Call it when the deadline has come or resolve.fd is readable. DIALER_GO: connect to ->address.
 * DIALER_FAILED: ->error says why; call dialer_failed().
 *
 * Every attempt asks anew: an answer of hours ago may be wrong by now, and under TLS libmosquitto
 * resolves the name once more, which is only safe when the name server has just answered.
 */
enum dialer_result
dialer_step(struct dialer *d, int64_t now)
{
	if (d->resolve.fd != -1) {
		if (!resolve_read(&d->resolve)) {
			if (now < d->give_up_at)
				return DIALER_WAIT;
			resolve_cancel(&d->resolve);
			return failed(d, "the name server does not answer");
		}
		if (d->resolve.error != NULL)
			return failed(d, d->resolve.error);
		if (d->resolve.count == 0)
			return failed(d, "the name has no address");
		d->address = d->resolve.address[d->turn++ % (unsigned)d->resolve.count];
		return DIALER_GO;
	}
	if (now < d->retry_at)
		return DIALER_WAIT;
	if (is_numeric(d->host)) {
		d->address = d->host;
		return DIALER_GO;
	}
	if (resolve_start(&d->resolve, d->host) == -1)
		return failed(d, strerror(errno));
	d->give_up_at = now + RESOLVE_TIMEOUT;
	return DIALER_WAIT;
}

/* The attempt, or the connection that came of it, has ended. Returns the pause, in microseconds. */
int64_t
dialer_failed(struct dialer *d, int64_t now)
{
	int64_t most = policy_backoff(RETRY_FIRST, RETRY_LAST, d->failures), pause;

	/* Full jitter: thousands of clients of a broker that comes back must not come at once. */
	pause = RETRY_LEAST + arc4random_uniform((uint32_t)(most - RETRY_LEAST));
	/* While there are other addresses of the same name, they are tried without a pause. */
	if (d->resolve.count > 0 && d->turn % (unsigned)d->resolve.count != 0 && d->failures == 0)
		pause = RETRY_LEAST;
	else if (d->failures < 32)
		d->failures++;
	d->retry_at = now + pause;
	return pause;
}

/* The connection has proved itself: the next failure starts from the shortest pause. */
void
dialer_well(struct dialer *d)
{
	d->failures = 0;
}

int64_t
dialer_deadline(const struct dialer *d)
{
	return d->resolve.fd != -1 ? d->give_up_at : d->retry_at;
}
