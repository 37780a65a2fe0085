"""Numbered messages over a few topics, and what has become of them in a table of create_numbered_table()."""
from publisher import Publisher, numbered

TOPICS = 7


def messages(n, start=0, pad=""):
    return numbered(n, topics=TOPICS, start=start, pad=pad)


def publish_to(wire, some, **how):
    """publish() straight to the broker behind a wire."""
    publisher = Publisher(wire.upstream)
    publisher.publish(some, **how)
    publisher.close()


def stored(database):
    return [n for (n,) in database.query("SELECT (payload->>'n')::int FROM telemetry ORDER BY id")]


def assert_once_in_order(database, n):
    """Every number from 0 to n once, and those of a topic in their order."""
    found = stored(database)
    assert sorted(found) == list(range(n))
    for topic in range(TOPICS):
        own = [i for i in found if i % TOPICS == topic]
        assert own == sorted(own), f"topic {topic} is out of order"
