"""
What can happen to the database, so that it is away or refuses for some seconds: see faults.py, whose table these are
put into.

Each puts its setting or its lock back by itself, however often it has to try: another fault may have the server down
just then.
"""
from faults import LATE, between, fault, one_of, until

# The harness still reads the table under either.
LOCKS = ("SHARE", "EXCLUSIVE")


def attempt(world, *statements):
    """True when all have been performed; False where the server is away."""
    try:
        for statement in statements:
            world.ask(statement)
        return True
    except world.away as e:
        world.note(f"not yet: {str(e).splitlines()[0]}")
        return False


def end_sessions(world):
    """Of the system under test: the next ones have the settings that hold by then."""
    try:
        world.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_port = ANY(%s)",
                  world.database_link.server_side_ports())
        return True
    except world.away:
        return False


def stored_rows(world):
    """None where the database does not say."""
    try:
        return world.system.stored()
    except world.away:
        return None


# Away

def _outage(world, mode, seconds):
    if mode == "stopped":
        world.freeze_database()
        yield seconds
        world.thaw_database()
    else:
        world.stop_database(mode)
        yield seconds
        world.start_database()


@fault(spools=True, mode=one_of("fast", "immediate", "stopped"), seconds=between(1, 8))
def outage(world, mode, seconds):
    """PostgreSQL away for 1 to 8 s: fast or immediate mode, or SIGSTOP of all of it"""
    return _outage(world, mode, seconds)


@fault(spools=True, mixed=False, mode=one_of("fast", "immediate", "stopped"), seconds=between(10, 60))
def long_outage(world, mode, seconds):
    """PostgreSQL away for 10 to 60 s"""
    return _outage(world, mode, seconds)


# Refusing

@fault(spools=True, table=one_of("telemetry", "ingestd.progress", "ingestd.dead_letter"), mode=one_of(*LOCKS),
       seconds=between(0.3, 8))
def table_locked(world, table, mode, seconds):
    """a table locked for a time"""
    holder = None
    try:
        holder = world.connect()
        holder.autocommit = False
        holder.execute(f"LOCK TABLE {table} IN {mode} MODE")
        world.note(f"{table} is locked, {mode}")
    except (world.away, *world.undefined) as e:
        world.note(f"no lock: {e}")
        if holder is not None:
            holder.close()
        return
    yield seconds
    # Its backend may have been ended meanwhile, and the lock with it.
    holder.close()
    world.note(f"{table} is free")


def _setting(world, name, value, for_whom, seconds):
    whom = {"role": "ROLE postgres", "database": f"DATABASE {world.database.name}"}[for_whom]
    if not attempt(world, f"ALTER {whom} SET {name} = '{value}'"):
        return
    world.note(f"{name} = {value} for the {for_whom}")
    end_sessions(world)
    yield seconds
    yield until(lambda: attempt(world, f"ALTER {whom} RESET {name}"), f"{name} is put back", LATE)
    world.note(f"{name} is put back")
    # Twice: a session that was beginning has the old setting, and is not to be seen yet.
    yield until(lambda: end_sessions(world), "the sessions are ended", LATE)
    yield 0.5
    yield until(lambda: end_sessions(world), "the sessions are ended", LATE)


@fault(spools=True, milliseconds=one_of(1, 5, 20, 100), for_whom=one_of("role", "database"), seconds=between(0.3, 6))
def statement_timeout(world, milliseconds, for_whom, seconds):
    """a statement_timeout that few statements keep to, for a time"""
    return _setting(world, "statement_timeout", f"{milliseconds}ms", for_whom, seconds)


@fault(spools=True, for_whom=one_of("role", "database"), seconds=between(0.3, 6))
def read_only(world, for_whom, seconds):
    """the database read-only for a time"""
    return _setting(world, "default_transaction_read_only", "on", for_whom, seconds)
