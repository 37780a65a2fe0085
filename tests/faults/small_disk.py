"""
A disk that can be filled: a tmpfs of some MiB, which has the state directory, or the spool alone, of a run.

Only root can have one, and not everywhere: where it cannot be had, everything stands on the ordinary disk and fill()
does nothing. It is mounted in a mount namespace of the calling thread, so that nothing is left when the process ends,
however it ends. Must never fill a disk that is not its own.
"""
import contextlib
import ctypes
import errno
import os
import subprocess
import threading

_CLONE_NEWNS = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)
_own = threading.local()


def _in_a_namespace_of_its_own():
    """Once a thread; its children inherit it."""
    if not getattr(_own, "unshared", False):
        if _libc.unshare(_CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True, capture_output=True)
        _own.unshared = True


def can_be_had():
    """For who would rather skip than do it on the ordinary disk."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"],
                                                capture_output=True).returncode == 0


def _mount(size, directory):
    """True if it is there."""
    if os.geteuid() != 0:
        return False
    try:
        _in_a_namespace_of_its_own()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=0700", "tmpfs", directory], check=True,
                       capture_output=True)
        return True
    except (OSError, subprocess.CalledProcessError):
        return False


class SmallDisk:
    """
    what: "state 8", a state directory of 8 MiB; "spool 8", one on the ordinary disk whose spool.db is a link to the
    8 MiB. .state_dir is what --state-dir is given.
    """

    def __init__(self, home, what):
        kind, size = what.split()
        self.directory = home / "disk"
        self.directory.mkdir(mode=0o700)
        self.is_small = _mount(size, self.directory)
        self.is_full = False
        self._filler = self.directory / "filler"
        self.state_dir = self.directory if kind == "state" else home / "state"
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        if kind == "spool":
            (self.state_dir / "spool.db").symlink_to(self.directory / "spool.db")

    def fill(self):
        """To the last byte. False where there is no disk to be filled."""
        if not self.is_small:
            return False
        self.is_full = True
        with open(self._filler, "ab") as filler:
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        self._write(filler, size)
        return True

    @staticmethod
    def _write(filler, size):
        # All or nothing: a page is what tmpfs gives out.
        if os.write(filler.fileno(), b"\0" * size) < size:
            raise OSError(errno.ENOSPC, "full")

    def empty(self):
        """There is room again, as much as the service itself has left."""
        self._filler.unlink(missing_ok=True)
        self.is_full = False

    def destroy(self):
        if self.is_small:
            subprocess.run(["umount", "-l", self.directory], capture_output=True)
