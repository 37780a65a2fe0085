"""How a mutant is built: a copy of the tree in which a piece of one source file is replaced."""
import os
import shutil
from pathlib import Path

from processes import BUILD, ROOT, run

# The tree that is mutated, if not this one.
TREE = Path(os.environ.get("TREE", ROOT))
SOURCES = ["Makefile", "common", "supervisor", "worker", "tests/unit"]
PROGRAMS = ["build/ingestd", "build/ingestd-writer"]


def copy_tree(home):
    """Sources into home and what was made of them into home/build, so that make has little to compile there."""
    for source in SOURCES:
        copy = shutil.copytree if (TREE / source).is_dir() else shutil.copy2
        copy(TREE / source, home / source)
    for objects in ("common", "supervisor", "worker"):
        if (BUILD / objects).is_dir():
            shutil.copytree(BUILD / objects, home / "build" / objects)


def build_mutant(home, path, piece, instead, targets=PROGRAMS):
    """Returns the build directory. When the piece is not there exactly once the test fails, and says so."""
    copy_tree(home)
    text = (home / path).read_text()
    assert text.count(piece) == 1, f"the mutant does not fit {path} any more: look at it again"
    (home / path).write_text(text.replace(piece, instead))
    run("make", "-s", "-C", home, *targets, "CFLAGS=-O1 -Wno-error", timeout=300)
    return home / "build"
