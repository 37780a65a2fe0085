"""Fixtures: private servers, and ingestd between them. See the modules beside this file for what each can do."""
import pytest

import daemon as daemon_module
from broker import Broker
from lane import Lane
from letters import Command
from postgres import Database, Server
from wire import Wire


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    setattr(item, "report_" + call.when, outcome.get_result())


def pytest_sessionstart(session):
    if not daemon_module.PROGRAM.exists():
        pytest.exit(f"{daemon_module.PROGRAM} is missing: run make first", 1)


@pytest.fixture(scope="session")
def postgres_server():
    server = Server()
    yield server
    server.destroy()


@pytest.fixture
def database(postgres_server):
    postgres_server.start()
    database = Database(postgres_server)
    yield database
    database.drop()


@pytest.fixture
def table(database):
    """The database, with a table that tells the order of insertion."""
    database.create_numbered_table()
    return database


@pytest.fixture
def make_broker(tmp_path):
    made = []

    def make(**options):
        made.append(Broker(tmp_path / f"broker{len(made)}", **options))
        return made[-1]

    yield make
    for broker in made:
        broker.kill()


@pytest.fixture
def broker(make_broker):
    return make_broker()


@pytest.fixture
def wire(broker):
    """On the way to the broker."""
    wire = Wire(broker.port)
    yield wire
    wire.close()


@pytest.fixture
def ingestd(request, tmp_path):
    """
    Starts ingestd: ingestd(subscribe="t/#", batch_size=1). Where the test has the fixtures broker and
    database it is pointed at them, and its state directory is the same for every start in a test;
    each can be given otherwise, and None leaves an option out.
    """
    defaults = {"state_dir": tmp_path / "state", "subscribe": "t/#"}
    if "broker" in request.fixturenames:
        defaults["broker"] = request.getfixturevalue("broker").url
    if "database" in request.fixturenames:
        defaults["database"] = request.getfixturevalue("database").dsn
    started = []

    def start(*arguments, **options):
        started.append(daemon_module.Ingestd(*arguments, **{**defaults, **options}))
        return started[-1]

    yield start
    ended = [d.process.poll() is not None for d in started]
    left = [d.clean_up() for d in started]
    report = getattr(request.node, "report_call", None)
    if report is not None and report.failed:
        for number, d in enumerate(started):
            print(f"---- ingestd {number}: {' '.join(d.arguments)}\n{d.log()}")
        return
    for number, d in enumerate(started):
        assert not d.strange, f"lines of ingestd {number} that are no log lines: {d.strange}"
        assert not (ended[number] and left[number]), f"writers outlived ingestd {number}: {left[number]}"


@pytest.fixture
def tables(database):
    """The test's database with the tables that ingestd makes."""
    lane = Lane(database.dsn)
    lane.wait_ready()
    lane.end_of_file()
    assert lane.wait_exit() == 0
    lane.clean_up()
    return database


@pytest.fixture
def letters(database):
    """Runs `ingestd dead-letters` on the test's database to its end: (status, output, errors)."""
    return lambda *words, **named: Command(*words, **{"database": database.dsn, **named}).end()


@pytest.fixture
def start_letters(database):
    """Starts it; what still runs at the end of the test is killed."""
    started = []

    def run(*words, **named):
        started.append(Command(*words, **{"database": database.dsn, **named}))
        return started[-1]

    yield run
    for command in started:
        if command.process.poll() is None:
            command.kill()
