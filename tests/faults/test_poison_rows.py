"""The poison is poison: the table refuses each kind with the SQLSTATE that it should, and nothing else."""
import random

import psycopg
import pytest

from messages import Messages
from poison import KINDS, RULES
from postgres import Database
from sandbox import PrivateServer

INSERT = "INSERT INTO telemetry (time, topic, payload) VALUES (now(), %s, %s::jsonb)"


@pytest.fixture(scope="module")
def table(workshop):
    server = PrivateServer(workshop / "poisoned", workshop / "template", {})
    try:
        database = Database(server)
        database.create_numbered_table()
        database.query(RULES)
        yield database
    finally:
        server.destroy()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_refused_with_its_sqlstate(kind, table):
    tail, sqlstate = KINDS[kind]
    with pytest.raises(psycopg.Error) as refused:
        table.query(INSERT, "faults/1", '{"id":"m0000001","n":1' + tail.decode())
    assert refused.value.sqlstate == sqlstate
    assert table.count() == 0


def test_what_the_harness_calls_good_is_taken(table):
    messages = Messages(random.Random(1))
    good = [m for m in (messages.next() for _ in range(2000)) if m.is_json]
    with table.connect() as c, c.transaction(force_rollback=True):
        for message in good:
            c.execute(INSERT, (message.topic, message.payload.decode()))
        assert c.execute("SELECT count(*) FROM telemetry").fetchone() == (len(good),)


def test_poison_is_drawn_at_its_share_and_without_it_the_messages_are_the_same():
    plain, before, poisoned = (Messages(random.Random(1)) for _ in range(3))
    assert [plain.next() for _ in range(100)] == [before.next() for _ in range(100)]
    tails = [tail for tail, _ in KINDS.values()]
    poisoned.poison = 0.05, tails
    found = [m for m in (poisoned.next() for _ in range(10_000)) if m.payload.endswith(tuple(tails))]
    assert 400 < len(found) < 600 and not any(m.is_json for m in found)
