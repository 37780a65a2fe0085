"""What every server of the tests needs: to start, to be found, to end with pytest, and to be waited for.

Nothing here sleeps instead of waiting for a condition, and nothing is ended that was not started here.
"""
import ctypes
import fcntl
import os
import random
import signal
import socket
import struct
import subprocess
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("BUILD", "build")
SANITIZED = "-" in BUILD.name
# A sanitizer's build is several times slower. A limit that is part of a promise is stretched as well.
PATIENCE = 4 if SANITIZED else 1

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def wait_until(condition, timeout=15, what=None, interval=0.01):
    """Polls until condition() is true and returns what it returned."""
    deadline = time.monotonic() + timeout * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout * PATIENCE} s: {what or condition}")
        time.sleep(interval)


def die_with_parent(signum=signal.SIGKILL):
    """A preexec_fn: the child gets signum when pytest ends, however it ends."""
    parent = os.getpid()

    def prepare():
        _libc.prctl(_PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def as_user(user, signum):
    """The prefix of a command line that drops root, and the parent-death signal that survives it."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", f"--pdeathsig={signum}", "--"]


def clean_environment(**changes):
    """The environment without what would steer ingestd or libpq behind a test's back."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("INGESTD_", "PG"))}
    env.pop("STATE_DIRECTORY", None)
    env.pop("XDG_STATE_HOME", None)
    env.pop("NOTIFY_SOCKET", None)
    env["LC_ALL"] = "C.UTF-8"
    env.setdefault("ASAN_OPTIONS", "detect_leaks=1:exitcode=99")
    env.setdefault("UBSAN_OPTIONS", "print_stacktrace=1:exitcode=99")
    for name, value in changes.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = str(value)
    return env


def free_port():
    """A port that nothing listens on, below the range that outgoing connections take theirs from."""
    while True:
        port = random.SystemRandom().randrange(11000, 32000)
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def run(*command, **kwargs):
    """Runs a command to its end and returns it, with its output in any failure."""
    kwargs.setdefault("timeout", 60 * PATIENCE)
    done = subprocess.run([str(c) for c in command], capture_output=True, **kwargs)
    if done.returncode != 0:
        raise AssertionError(f"{command} exited {done.returncode}: {done.stdout!r} {done.stderr!r}")
    return done


def make(*arguments):
    """Makes what `make check` makes before the tests, for those who run one file alone; one process at a time."""
    with open(ROOT / "Makefile") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("make", "-s", "-C", ROOT, *arguments, timeout=300)


def end(process, signum=signal.SIGTERM, timeout=15):
    """Ends a Popen: politely, then for good. Returns its exit status."""
    if process.poll() is None:
        process.send_signal(signum)
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def read_proc(pid, name):
    """The text of /proc/PID/NAME, or None when the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None


def state_of(pid):
    """The state's letter (R, S, T, Z …) and the parent, or None when the process is gone."""
    stat = read_proc(pid, "stat")
    if not stat:
        return None
    fields = stat.rpartition(")")[2].split()
    return fields[0], int(fields[1])


def is_running(pid):
    state = state_of(pid)
    return state is not None and state[0] not in "ZX"


def children_of(pid):
    """The pids whose parent is pid, dead and not yet reaped ones included."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            state = state_of(int(entry))
            if state is not None and state[1] == pid:
                found.append(int(entry))
    return found


def cpu_seconds(pid):
    """User and system time together."""
    fields = read_proc(pid, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def unsent_bytes(s):
    """Bytes written to a socket that its peer's kernel has not acknowledged or, of a Unix one, its peer not read."""
    return struct.unpack("i", fcntl.ioctl(s, termios.TIOCOUTQ, b"\0\0\0\0"))[0]


def unread_bytes():
    """{(local port, remote port): bytes} that wait for their reader in the TCP sockets of this machine."""
    waiting = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ports = tuple(int(address.rpartition(":")[2], 16) for address in fields[1:3])
        waiting[ports] = int(fields[4].partition(":")[2], 16)
    return waiting


def memory_of(pid):
    """Resident memory in bytes, without pages that are shared with others."""
    status = read_proc(pid, "smaps_rollup") or ""
    for line in status.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
