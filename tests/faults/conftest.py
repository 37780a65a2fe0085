"""Fixtures for the ledger harness, which has its own servers: see sandbox.py. It uses the modules of tests/system."""
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

from processes import SANITIZED

RATE = 500 if SANITIZED else 3000


@pytest.fixture(scope="session")
def workshop():
    """A directory for sandboxes with the template of their servers. Not pytest's own: PostgreSQL has to get in."""
    from sandbox import make_template

    home = Path(tempfile.mkdtemp(prefix="ingestd-faults-"))
    try:
        make_template(home)
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def perform(workshop, tmp_path):
    """perform(name, seed): one run with ingestd. Returns its outcome; where it is not ok, logs lie in its .kept."""
    import trial

    def run(name, seed=1, rate=RATE, system="ingestd"):
        return trial.run(name, seed, system, workshop / "sandbox", workshop / "template", rate, tmp_path / "kept")

    return run
