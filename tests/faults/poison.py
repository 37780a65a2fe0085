"""
Poison: good JSON that the table itself refuses, of ten kinds, and the rules of the table that refuse it.

With the capability "poison rows" of a system class the table gets the rules and the fault is drawn; a system that
cannot tell one bad row from its neighbours would hold for ever. Must never refuse what messages.py calls good.
"""
from faults import between, fault, one_of

# kind: (what stands behind the id and the number, the SQLSTATE of PostgreSQL's refusal).
KINDS = {
    "type": (b',"typed":"no number"}', "22P02"),
    "range": (b',"ranged":70000}', "22003"),
    "not null": (b',"nobody":true}', "23502"),
    "check": (b',"checked":-1}', "23514"),
    "unique": (b',"taken":true}', "23505"),
    "too long": (b',"long":"eleven char"}', "22001"),
    "nul": (b',"nul":"\\u0000"}', "22P05"),
    "depth": (b',"deep":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "54001"),
    "timestamp": (b',"stamped":"294277-01-01"}', "22008"),
    "trigger": (b',"raised":true}', "P0001"),
}

RULES = """
    CREATE TABLE taken (id integer PRIMARY KEY);
    INSERT INTO taken VALUES (1);
    CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.payload ? 'stamped' THEN PERFORM (NEW.payload->>'stamped')::timestamptz; END IF;
            IF NEW.payload ? 'taken' THEN INSERT INTO taken VALUES (1); END IF;
            IF NEW.payload ? 'raised' THEN RAISE EXCEPTION 'this one not'; END IF;
            RETURN NEW;
        END$$;
    CREATE TRIGGER look BEFORE INSERT ON telemetry FOR EACH ROW EXECUTE FUNCTION look();
    ALTER TABLE telemetry
        ADD typed numeric GENERATED ALWAYS AS ((payload->>'typed')::numeric) STORED,
        ADD ranged smallint GENERATED ALWAYS AS ((payload->>'ranged')::smallint) STORED,
        ADD long varchar(10) GENERATED ALWAYS AS (payload->>'long') STORED,
        ADD somebody boolean NOT NULL GENERATED ALWAYS AS (CASE WHEN payload ? 'nobody' THEN NULL ELSE true END) STORED,
        ADD CHECK ((payload->>'checked')::int > 0)
"""


@fault(needs=["poison rows"], share=between(0.001, 0.05), kind=one_of("all", "all", *KINDS), seconds=between(0.5, 5))
def poison_rows(world, share, kind, seconds):
    """rows that the table refuses, up to 5 % of all, for a time"""
    world.note(f"{100 * share:.1f} % of what is published is poison, kind {kind}")
    world.messages.poison = share, [tail for name, (tail, _) in KINDS.items() if kind in ("all", name)]
    yield seconds
    world.messages.poison = None
    world.note("no more poison")
