"""File systems that are small, full or not to be written."""
import contextlib
import subprocess

import pytest

from processes import run


@contextlib.contextmanager
def mounted(path, *options):
    """A mount at the path, or a skip where that is not allowed."""
    done = subprocess.run(["mount", *options, str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        # Lazily: of a test that has failed there is an ingestd left, which the fixture ends later.
        run("umount", "--lazy", path)


def small_disk(path, size):
    """An empty one, at a path that is made."""
    path.mkdir()
    return mounted(path, "-t", "tmpfs", "-o", f"size={size}", "none")


def fill(path):
    """Takes all the room that is left on the file system of a directory. Returns the file that does."""
    filler = path / "filler"
    with open(filler, "wb", buffering=0) as f:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    f.write(bytes(size))
    return filler
