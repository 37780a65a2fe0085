"""spool.db as a reader sees it from outside."""
import contextlib
import shutil
import sqlite3
import tempfile
from pathlib import Path

PARTS = ("spool.db", "spool.db-wal")


def spooled(state):
    """Records in the spool of a state directory. ingestd has the file for itself: a copy is read."""
    with tempfile.TemporaryDirectory() as copy:
        for part in PARTS:
            shutil.copy(state / part, copy)
        with contextlib.closing(sqlite3.connect(Path(copy) / "spool.db")) as c:
            return c.execute("SELECT coalesce(sum(count), 0) FROM spool").fetchone()[0]
