"""That `make bench` runs to its end and prints what it promises. No test judges a speed."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "system")]

import sizing
from processes import BUILD, die_with_parent

pytestmark = pytest.mark.slow


def test_the_benchmark_measures_every_row_and_draws_them():
    picture = BUILD / "bench.svg"
    picture.unlink(missing_ok=True)
    done = subprocess.run([sys.executable, "-B", HERE / "run"], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "BENCH_SMOKE": "1", "BENCH_PLOT": "1"}, preexec_fn=die_with_parent(15))
    assert done.returncode == 0, done.stderr
    rows = [r"psql \copy", "ingestd, receive maximum 500", "ingestd, receive maximum 5,000",
            "ingestd, receive maximum 65,535", "ingestd, into the spool", "ingestd, out of the spool",
            "asyncio, paho, asyncpg", *(name for name, _, _ in sizing.rows(smoke=True))]
    for row in rows:
        assert re.search(rf"^{re.escape(row)} +[\d,]+ +[\d,]+ +\d+\.\d\d", done.stdout, re.M), done.stdout
    drawn = picture.read_text()
    assert all(name in drawn for name in rows[1:]), "rows are missing in the picture"
    for rate in ("100", "1,000"):
        assert f"From publish to visible row at {rate} messages/s" in done.stdout
    # Every block, and a mark after the first, the second and the last.
    assert len(re.findall(r"^ +[\d,]+ +\d+\.\d +\d+\.\d$", done.stdout, re.M)) == 3
    assert len(re.findall(r"^ +[\d,]+ +[\d,]+ +\d+\.\d\d +\d+\.\d\d$", done.stdout, re.M)) == 3
