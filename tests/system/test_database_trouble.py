"""The database is away or refuses: held, said with the SQLSTATE and what to do, healed without a restart."""
import pytest

from processes import wait_until
from publisher import numbered, publish


def publish_and_expect_trouble(daemon, broker, wire, sqlstate, n=50):
    """Nothing is acknowledged, and the log says why. Returns the event."""
    daemon.wait_log("mqtt_subscribed")
    publish(broker, numbered(n))
    wait_until(lambda: wire.count("down", "PUBLISH") > 0, what="messages are on the wire")
    trouble = daemon.wait_log("database_configuration", 20, phase="begins")
    assert trouble.get("sqlstate") == sqlstate, trouble
    assert trouble.level == "error"
    assert len(trouble["reason"]) > 10
    assert wire.count("up", "PUBACK") == 0
    assert daemon.process.poll() is None
    return trouble


def expect_healed(daemon, broker, wire, database, n=50, table="telemetry"):
    database.wait_for_rows(n, 60, table)
    wait_until(lambda: wire.count("up", "PUBACK") >= n, what="all is acknowledged")
    daemon.wait_log("database_configuration", phase="ends")
    # As long as it lasts it is one: however often a writer connects and is refused again.
    assert [e["phase"] for e in daemon.events("database_configuration")] == ["begins", "ends"]
    assert database.count(table) == n
    assert daemon.events("mqtt_connection_lost") == []
    assert daemon.stop() == 0
    assert daemon.totals()["dead_lettered"] == 0


@pytest.mark.slow
def test_a_password_that_is_refused_heals_when_it_is_set(broker, database, ingestd, wire):
    role = f"meter_{database.name}"
    database.query(f"CREATE ROLE {role} LOGIN PASSWORD 'other' IN ROLE asks_password")
    database.query(f"ALTER DATABASE {database.name} OWNER TO {role}")
    database.query(f"ALTER SCHEMA public OWNER TO {role}")
    try:
        daemon = ingestd(broker=wire.url, database=database.server.dsn(database.name, role) + " password=s3cret")
        # 28P01 has no SQLSTATE of its own in libpq's hands: the server's words carry it.
        daemon.wait_log("mqtt_subscribed")
        publish(broker, numbered(50))
        trouble = daemon.wait_log("database_configuration", 20)
        assert "password" in trouble["reason"]
        assert wire.count("up", "PUBACK") == 0
        database.query(f"ALTER ROLE {role} PASSWORD 's3cret'")
        expect_healed(daemon, broker, wire, database)
        assert "s3cret" not in daemon.log()
    finally:
        database.query(f"ALTER DATABASE {database.name} OWNER TO postgres")
        database.query(f"REASSIGN OWNED BY {role} TO postgres")
        database.query(f"DROP OWNED BY {role}")
        database.query(f"DROP ROLE {role}")


@pytest.mark.slow
def test_a_database_that_does_not_exist_heals_when_it_is_made(broker, database, ingestd, wire):
    late = database.name + "_late"
    daemon = ingestd(broker=wire.url, database=database.server.dsn(late))
    daemon.wait_log("mqtt_subscribed")
    publish(broker, numbered(50))
    trouble = daemon.wait_log("database_configuration", 20)
    assert late in trouble["reason"] and wire.count("up", "PUBACK") == 0
    database.query(f"CREATE DATABASE {late}")
    try:
        with database.server.connect(late) as c:
            def rows():
                try:
                    return c.execute("SELECT count(*) FROM telemetry").fetchone()[0]
                except Exception:
                    return 0
            wait_until(lambda: rows() == 50, 60, "rows are there")
        assert daemon.stop() == 0
    finally:
        database.query(f"DROP DATABASE {late} WITH (FORCE)")


@pytest.mark.slow
@pytest.mark.parametrize("make, mend, words", [
    ("CREATE TABLE telemetry (at timestamptz, topic text, payload jsonb)",
     "ALTER TABLE telemetry RENAME COLUMN at TO time", ["time"]),
    ("CREATE TABLE telemetry (time timestamptz, topic text)",
     "ALTER TABLE telemetry ADD COLUMN payload jsonb", ["payload"]),
    ("CREATE TABLE telemetry (time timestamptz, topic text, payload integer)",
     "ALTER TABLE telemetry ALTER COLUMN payload TYPE jsonb USING NULL", ["payload", "jsonb"]),
    ("CREATE VIEW telemetry AS SELECT now() AS time, ''::text AS topic, 'null'::jsonb AS payload",
     "DROP VIEW telemetry", ["view"]),
], ids=["a column of another name", "a column missing", "a column of another type", "a view"])
def test_a_table_that_does_not_fit_is_said_and_heals_when_it_is_mended(broker, database, ingestd, wire, make, mend,
                                                                     words):
    database.query(make)
    daemon = ingestd(broker=wire.url)
    daemon.wait_log("mqtt_subscribed")
    publish(broker, numbered(50))
    trouble = daemon.wait_log("database_configuration", 20)
    for word in words:
        assert word in trouble["reason"], trouble
    assert wire.count("up", "PUBACK") == 0
    database.query(mend)
    expect_healed(daemon, broker, wire, database)


@pytest.mark.slow
def test_a_table_dropped_while_running_is_said_and_heals(broker, database, ingestd, wire):
    daemon = ingestd(broker=wire.url).wait_ready()
    database.query("ALTER TABLE telemetry RENAME TO elsewhere")
    publish_and_expect_trouble(daemon, broker, wire, "42P01")
    # Only now: ingestd may make a missing table itself, which is healing as well.
    database.query("CREATE TABLE IF NOT EXISTS telemetry (LIKE elsewhere)")
    expect_healed(daemon, broker, wire, database)


def test_a_row_that_the_database_refuses_is_put_aside_and_acknowledged(broker, database, ingestd, wire):
    daemon = ingestd(broker=wire.url).wait_ready()
    database.query("ALTER TABLE telemetry ADD CONSTRAINT small CHECK ((payload->>'n')::int < 20)")
    publish(broker, numbered(50))
    wait_until(lambda: wire.count("up", "PUBACK") >= 50, what="all is acknowledged")
    assert (database.count(), database.count("ingestd.dead_letter")) == (20, 30)
    assert daemon.events("database_configuration") == []
    assert daemon.stop() == 0
    assert (daemon.totals()["committed"], daemon.totals()["dead_lettered"]) == (20, 30)


@pytest.mark.slow
def test_a_table_that_refuses_most_rows_holds_them_unacknowledged_and_heals(broker, database, ingestd, wire):
    daemon = ingestd(broker=wire.url, writers=1).wait_ready(1)
    database.query("ALTER TABLE telemetry ADD CONSTRAINT never CHECK (payload->>'n' IS NULL)")
    publish(broker, numbered(3000))
    trouble = daemon.wait_log("database_configuration", 20, sqlstate="IG002")
    assert (trouble["class"], trouble.level) == ("configuration", "error")
    put = database.count("ingestd.dead_letter")
    assert put < 1000 and database.count() == 0
    database.query("ALTER TABLE telemetry DROP CONSTRAINT never")
    database.wait_for_rows(3000 - put, 60)
    daemon.wait_log("database_configuration", phase="ends")
    assert daemon.stop() == 0
    assert (daemon.totals()["committed"], daemon.totals()["dead_lettered"]) == (3000 - put, put)
    assert wire.count("up", "PUBACK") == 3000


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_database_restarted_under_load_costs_nothing(broker, database, ingestd, mode):
    daemon = ingestd().wait_ready()
    publish(broker, numbered(3000))
    database.server.stop(mode)
    publish(broker, numbered(3000, start=3000))
    daemon.wait_log("database_unreachable", phase="begins")
    database.server.start()
    wait_until(lambda: database.count() >= 6000, 60, "all is there", 0.1)
    wait_until(lambda: database.value("SELECT count(DISTINCT payload->>'n') FROM telemetry") == 6000, 30, "all is there")
    daemon.wait_log("database_unreachable", phase="ends")
    assert len(daemon.events("mqtt_connected")) == 1
    assert daemon.stop() == 0
    assert daemon.totals()["unacknowledged"] == 0


@pytest.mark.slow
def test_a_terminated_backend_is_replaced_and_costs_nothing(broker, database, ingestd):
    daemon = ingestd().wait_ready()
    for part in range(4):
        publish(broker, numbered(500, start=500 * part))
        with database.server.connect() as c:
            c.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
                      " AND application_name LIKE 'ingestd%%'", (database.name,))
    wait_until(lambda: database.value("SELECT count(DISTINCT payload->>'n') FROM telemetry") == 2000, 60, "all is there")
    assert daemon.events("mqtt_connection_lost") == []
    assert daemon.stop() == 0


def test_a_database_that_comes_later_than_ingestd_is_waited_for(broker, database, ingestd):
    database.server.stop()
    daemon = ingestd()
    trouble = daemon.wait_log("database_unreachable")
    assert "refused" in trouble["reason"].lower()
    publish_after = daemon.wait_log("mqtt_subscribed")
    assert publish_after
    publish(broker, numbered(100))
    database.server.start()
    database.wait_for_rows(100, 60)
    assert database.count() == 100
    daemon.wait_log("database_unreachable", phase="ends")
    assert [e["phase"] for e in daemon.events("database_unreachable")] == ["begins", "ends"]


def test_its_connections_name_themselves(broker, database, ingestd):
    ingestd().wait_ready()
    names = sorted(name for _, name, _ in database.sessions())
    assert len(names) == 2 and all(name.startswith("ingestd") for name in names)


def test_libpq_s_own_variables_work(broker, database, ingestd):
    server = database.server
    ingestd(database=None, env={"PGHOST": "127.0.0.1", "PGPORT": server.port, "PGUSER": "postgres",
                                "PGDATABASE": database.name}).wait_ready()
    publish(broker, numbered(5))
    database.wait_for_rows(5)


@pytest.mark.parametrize("conninfo", ["host=127.0.0.1 no_such_word=1", "dbname='unclosed", "postgresql://[::1"])
def test_a_connection_string_that_cannot_be_read_ends_it_with_78(broker, ingestd, conninfo):
    daemon = ingestd(database=conninfo)
    assert daemon.wait(20) == 78
    assert [e for e in daemon.events() if e.level == "error"]
    assert len(daemon.events("writer_started")) == 2, "a respawn mends no configuration"
    assert daemon.events("queue_drain_timeout") == []


def test_a_password_in_the_environment_reaches_the_writers(broker, database, ingestd):
    role = f"meter_{database.name}"
    database.query(f"CREATE ROLE {role} LOGIN PASSWORD 'hush' IN ROLE asks_password")
    database.query(f"ALTER SCHEMA public OWNER TO {role}")
    database.query(f"ALTER DATABASE {database.name} OWNER TO {role}")
    try:
        daemon = ingestd(database=database.server.dsn(database.name, role), env={"PGPASSWORD": "hush"}).wait_ready()
        assert daemon.stop() == 0
        assert "hush" not in daemon.log()
    finally:
        database.query(f"REASSIGN OWNED BY {role} TO postgres")
        database.query(f"DROP OWNED BY {role}")
        database.query(f"DROP ROLE {role}")


def test_a_password_with_an_at_sign_in_a_uri_ends_it_with_78_and_is_in_no_log(broker, ingestd):
    daemon = ingestd(database="postgresql://user:hun@ter2secret@nohost.invalid/db")
    assert daemon.wait() == 78
    assert "%40" in daemon.log() and "ter2secret" not in daemon.log().replace(" ".join(daemon.arguments), "")
