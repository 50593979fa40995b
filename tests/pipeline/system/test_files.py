import errno
import os
import signal
import subprocess
import sys

import pytest

from pipeline.system import files
from pipeline.system.errors import DtkdError


def test_atomic_write_replaces_whole_file_and_leaves_no_temporary(tmp_path):
    target = tmp_path / "a.json"
    files.atomic_write_json(target, {"b": [1, 2], "ä": None})
    files.atomic_write_json(target, {"b": 3})
    assert files.read_json(target) == {"b": 3}
    assert os.listdir(tmp_path) == ["a.json"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("number", "falls_back"), [(errno.EOPNOTSUPP, True), (errno.EPERM, True), (errno.ENOSPC, False)]
)
def test_only_a_file_system_without_links_is_worked_around(tmp_path, monkeypatch, number, falls_back):
    def link(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    if falls_back:
        assert files.create_exclusive(tmp_path / "a", b"1") and not files.create_exclusive(tmp_path / "a", b"2")
        assert (tmp_path / "a").read_bytes() == b"1"
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            files.create_exclusive(tmp_path / "a", b"1")
        assert os.listdir(tmp_path) == []


def test_full_disk_keeps_the_old_file(tmp_path):
    """A real limit (RLIMIT_FSIZE) makes the write fail half-way, as a full disk does."""
    target = tmp_path / "big"
    target.write_bytes(b"old")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pipeline.system.files import atomic_write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: atomic_write_bytes(sys.argv[1], bytes(5000))\n"
        "except OSError as error: sys.exit(error.errno)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(target)], check=False).returncode == 27  # EFBIG
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["big"]


def test_readers_never_see_half_a_file_while_the_writer_is_killed(tmp_path):
    target = tmp_path / "a"
    target.write_bytes(b"0" * 300_000)
    code = (
        "import sys; from pipeline.system.files import atomic_write_bytes\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for digit in b'123': atomic_write_bytes(sys.argv[1], bytes([digit]) * 300_000)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    for _ in range(300):
        data = target.read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(set(target.read_bytes())) == 1


def test_ensure_dir_refuses_what_it_cannot_use(tmp_path):
    assert files.ensure_dir(tmp_path / "a" / "b").is_dir()
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DtkdError, match="choose another folder"):
            files.ensure_dir(path)


def test_ensure_dir_says_when_writing_is_not_allowed(tmp_path):
    """In a child process without rights, since root may write anywhere."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            files.ensure_dir(locked)
        except DtkdError as error:
            os._exit(10 if "cannot write into" in str(error) else 11)
        except BaseException:
            os._exit(12)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10


def test_sample_file_notices_edits_and_sizes(tmp_path):
    path = tmp_path / "photo"
    data = bytearray(os.urandom(3 << 20))
    path.write_bytes(data)
    before = files.sample_file(path)
    assert before == files.sample_file(path)
    data[-1] ^= 1
    path.write_bytes(data)
    assert files.sample_file(path) != before
    path.write_bytes(data[:-1])
    assert files.sample_file(path).split(":")[0] == str(len(data) - 1)


def test_json_that_is_none_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(DtkdError, match=r"x\.json is damaged"):
        files.read_json(tmp_path / "x.json")
