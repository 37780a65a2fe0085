"""A disk that can be filled is full when it says so, is only the run's own, and has room again afterwards."""
import errno
import os
import threading

import pytest

import small_disk

pytestmark = pytest.mark.skipif(not small_disk.can_be_had(), reason="that takes root and a mount")


@pytest.fixture
def in_a_thread():
    """What is mounted stays in the thread that did it: not in that of all other tests."""
    def run(function):
        failure = []

        def perform():
            try:
                function()
            except BaseException as e:
                failure.append(e)

        thread = threading.Thread(target=perform)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
    return run


@pytest.mark.parametrize("what, state_dir", [("state 8", "disk"), ("spool 8", "state")])
def test_it_is_full_to_the_last_byte_and_has_room_again(what, state_dir, tmp_path, in_a_thread):
    def check():
        disk = small_disk.SmallDisk(tmp_path, what)
        assert disk.is_small and disk.state_dir == tmp_path / state_dir
        file = disk.state_dir / "spool.db"
        file.write_bytes(b"before")
        assert disk.fill()
        assert file.read_bytes() == b"before"
        with pytest.raises(OSError) as refused:
            with open(file, "ab") as f:
                f.write(b"x" * 5000)
        assert refused.value.errno == errno.ENOSPC
        disk.empty()
        file.write_bytes(b"y" * 1_000_000)
        disk.destroy()

    in_a_thread(check)
    # Nobody else sees it, and nobody else's disk was filled.
    assert not os.path.ismount(tmp_path / "disk") and list((tmp_path / "disk").iterdir()) == []


def test_where_it_cannot_be_had_nothing_is_filled(tmp_path, monkeypatch):
    monkeypatch.setattr(small_disk.os, "geteuid", lambda: 1000)
    disk = small_disk.SmallDisk(tmp_path, "state 8")
    assert not disk.fill() and not disk.is_full and list(disk.state_dir.iterdir()) == []
