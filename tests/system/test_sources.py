"""What the sources promise about themselves: format, who may know whom, what each program links."""
import re
import shutil
import subprocess

import pytest

from daemon import PROGRAM, WRITER
from processes import ROOT

SOURCES = sorted(p for d in ("common", "supervisor", "worker", "tests/unit") for p in (ROOT / d).glob("*.[ch]"))


def includes(path):
    return re.findall(r'^#include [<"]([^>"]+)[>"]', path.read_text(), re.M)


@pytest.mark.skipif(shutil.which("clang-format") is None, reason="no clang-format")
def test_the_sources_are_in_the_project_s_format():
    done = subprocess.run(["clang-format", "--dry-run", "-Werror", *SOURCES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]


@pytest.mark.parametrize("header, allowed", [
    ("mosquitto.h", r"supervisor/mqtt\w*\.c"),
    ("libpq-fe.h", r"worker/pg\.c"),
    ("msgpack.h", r"common/message\.c"),
    ("sqlite3.h", r"supervisor/(dbfile|store|spool)\w*\.[ch]"),
    ("json-c/json.h", r"worker/(dead_letter|letter|letters_list)\.c"),
])
def test_a_library_is_known_to_its_own_files_only(header, allowed):
    users = [str(p.relative_to(ROOT)) for p in SOURCES if header in includes(p) and "tests" not in p.parts]
    assert users and all(re.fullmatch(allowed, u) for u in users), users


@pytest.mark.parametrize("directory, may_know", [("common", ["common"]), ("supervisor", ["supervisor", "common"]),
                                                 ("worker", ["worker", "common"])])
def test_dependencies_point_towards_common_only(directory, may_know):
    ours = {p.name: p.parent.name for p in SOURCES if p.suffix == ".h"}
    for path in (ROOT / directory).glob("*.[ch]"):
        known = {ours[i] for i in includes(path) if i in ours}
        assert known <= set(may_know), f"{path.name} knows {known - set(may_know)}"


@pytest.mark.parametrize("program, library", [(PROGRAM, "libpq"), (WRITER, "libmosquitto")])
def test_neither_program_links_what_is_the_other_s(program, library):
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "libmsgpack" in linked
    assert library not in linked


def test_every_source_file_says_what_it_is_for():
    for path in SOURCES:
        if path.suffix == ".c":
            assert path.read_text().startswith("/*"), f"{path} has no header comment"
