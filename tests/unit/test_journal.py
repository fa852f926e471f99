"""The journal: what it keeps, what it finds damaged, and what it does when it cannot write."""

import asyncio
import errno
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfioflow import ConfigError, JournalError
from vfioflow.handover import Log
from vfioflow.journal import Journal, default_directory
from vfioflow.story import Step, check_session

DEVICES = {"nic0": True, "disk0": False}
WAYS = {
    "source": [
        [Step.BEGUN],
        [Step.BEGUN, Step.BACK],
        [Step.BEGUN, Step.COMMITTED],
        [Step.BEGUN, Step.COMMITTED, Step.RELEASED],
        [Step.BEGUN, Step.COMMITTED, Step.TAKEN_BACK],
        [Step.BEGUN, Step.COMMITTED, Step.BY_HAND],
    ],
    "destination": [
        [Step.BEGUN, Step.DISCARDED],
        [Step.BEGUN, Step.LOADED],
        [Step.BEGUN, Step.LOADED, Step.DISCARDED],
        [Step.BEGUN, Step.LOADED, Step.COMMITTED, Step.RUNNING],
        [Step.BEGUN, Step.LOADED, Step.COMMITTED, Step.RUNNING, Step.TOLD],
        [Step.BEGUN, Step.LOADED, Step.BY_HAND, Step.TOLD],
    ],
}
ALL = [(role, way) for role, ways in WAYS.items() for way in ways]
ABOUT = {
    Step.LOADED: {"states": {"nic0": "RUNNING_P2P", "disk0": "STOP"}},
    Step.BY_HAND: {"choice": "run"},
    Step.COMMITTED: {"identity": "0" * 32},
    Step.DISCARDED: {"reason": "höher\n"},
}


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "state" / "vfioflow")


def write(journal, role, way, session="s"):
    with journal.begin(session, role, "tcp://there:1", DEVICES) as entry:
        for step in way[1:]:
            entry.record(step, **ABOUT.get(step, {}))
    return entry.path


@pytest.mark.parametrize(("role", "way"), ALL)
def test_what_is_recorded_is_found(journal, role, way):
    write(journal, role, way)
    story = journal.find("s", role)
    assert [r.step for r in story.records] == way
    assert (story.peer, story.devices) == ("tcp://there:1", DEVICES)
    assert story.pending == (way[-1] in (Step.BEGUN, Step.LOADED, Step.COMMITTED))
    assert [s.session for s in journal.pending()] == (["s"] if story.pending else [])
    assert not journal.is_held(story)
    for step, about in ABOUT.items():
        if record := story.get(step):
            assert {name: getattr(record, name) for name in about} == about


def test_nobody_else_can_read_it(journal):
    path = write(journal, "source", [Step.BEGUN])
    assert stat.S_IMODE(journal.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert journal.identity == Journal(journal.directory).identity
    assert stat.S_IMODE((journal.directory / "identity").stat().st_mode) == 0o600
    assert Journal(journal.directory.with_name("other")).identity != journal.identity


def test_a_directory_that_others_can_write_is_refused(journal):
    journal.directory.mkdir(parents=True)
    journal.directory.chmod(0o777)
    with pytest.raises(JournalError, match="can be written by others"):
        journal.begin("s", "source", "", DEVICES)
    assert list(journal.directory.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc/x", "a\0b", "a b", "-x", ".x", "é", "x" * 65, "a\n"],
)
def test_what_cannot_name_a_session(journal, name):
    for call in (
        lambda: check_session(name),
        lambda: journal.begin(name, "source", "", DEVICES),
        lambda: journal.open(name, "source", create=True),
        lambda: journal.find(name, "source"),
    ):
        with pytest.raises(ConfigError, match="cannot name a session"):
            call()
    assert not journal.directory.exists()


def test_a_link_in_its_place_is_not_followed(journal, tmp_path):
    path = write(journal, "source", [Step.BEGUN])
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JournalError, match="cannot be opened"):
        journal.open("s", "source")


def test_a_session_is_begun_once(journal):
    write(journal, "source", [Step.BEGUN, Step.BACK])
    with pytest.raises(JournalError, match="known already, and BACK"):
        journal.begin("s", "source", "", DEVICES)
    write(journal, "destination", [Step.BEGUN])


def test_one_process_at_a_time(journal):
    entry = journal.begin("s", "source", "", DEVICES)
    with pytest.raises(JournalError, match="another process is at work") as caught:
        journal.open("s", "source")
    assert caught.value.errno == errno.EWOULDBLOCK
    story = journal.find("s", "source")
    assert journal.is_held(story)
    assert journal.claims(["nic0"]) == {}
    code = f"""if True:
        from vfioflow import Journal, JournalError
        try:
            Journal({str(journal.directory)!r}).open("s", "source")
        except JournalError:
            print("held")
    """
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "held\n"
    entry.close()
    entry.close()
    assert list(journal.claims(["nic0", "x"])) == ["nic0"]
    with journal.open("s", "source") as again:
        again.record(Step.BACK)
    assert journal.claims(["nic0"]) == {}


# -------------------------------------------------------------- torn and damaged


@pytest.mark.parametrize("filler", [b"", b"\0" * 40])
@pytest.mark.parametrize(("role", "way"), ALL)
def test_a_last_line_that_was_cut_off_never_was(journal, role, way, filler):
    path = write(journal, role, way)
    data = path.read_bytes()
    begin = data.rstrip(b"\n").rfind(b"\n") + 1
    for size in range(begin + 1, len(data) - 1):
        path.write_bytes(data[:size] + filler)
        story = journal.find("s", role)
        if len(way) == 1:
            assert story is None  # as if it had never begun
            continue
        assert story.torn
        assert [r.step for r in story.records] == way[:-1]
    path.write_bytes(data[:-1])  # all of it but the newline: it is there
    assert [r.step for r in journal.find("s", role).records] == way


def test_what_was_cut_off_is_written_over(journal):
    path = write(journal, "source", [Step.BEGUN, Step.COMMITTED, Step.RELEASED])
    data = path.read_bytes()
    for cut in (1, 2, 30):
        path.write_bytes(data[:-cut])
        with journal.open("s", "source") as entry:
            if cut == 1:
                assert entry.step is Step.RELEASED
                continue
            assert entry.torn
            entry.record(Step.TAKEN_BACK, reason="x")
        assert [r.step for r in journal.find("s", "source").records] == [
            Step.BEGUN, Step.COMMITTED, Step.TAKEN_BACK,
        ]  # fmt: skip
        assert not journal.find("s", "source").torn


def test_a_newline_that_is_missing_is_added(journal):
    path = write(journal, "source", [Step.BEGUN, Step.COMMITTED])
    path.write_bytes(path.read_bytes()[:-1])
    with journal.open("s", "source") as entry:
        entry.record(Step.RELEASED)
    assert path.read_bytes().count(b"\n") == 3
    assert journal.find("s", "source").step is Step.RELEASED


@given(data=st.data())
def test_a_damaged_line_is_found(tmp_path_factory, data):
    journal = Journal(tmp_path_factory.mktemp("journal"))
    role, way = data.draw(st.sampled_from([each for each in ALL if len(each[1]) > 1]))
    path = write(journal, role, way)
    good = path.read_bytes()
    # The last newline alone is missing nothing; the length is not the same each time.
    at = int(data.draw(st.floats(0, 1, exclude_max=True)) * (len(good) - 1))
    bit = data.draw(st.integers(0, 7))
    bad = bytearray(good)
    bad[at] ^= 1 << bit
    path.write_bytes(bad)
    number = good[:at].count(b"\n") + 1
    for call in (journal.find, journal.open):
        with pytest.raises(JournalError, match=f"line {number} is damaged") as caught:
            call("s", role)
        assert str(path) in str(caught.value)
        assert caught.value.filename == str(path)
    with pytest.raises(JournalError):
        journal.pending()
    assert journal.prune(0) == 0


@given(data=st.binary(max_size=400))
def test_anything_else_is_no_journal(tmp_path_factory, data):
    """Only what can be a torn first line counts as nothing; whatever it is, it never crashes."""
    journal = Journal(tmp_path_factory.mktemp("journal"))
    (journal.directory / "s.source.journal").write_bytes(data)
    if b"\n" in data:
        with pytest.raises(JournalError, match="damaged"):
            journal.find("s", "source")
    else:
        assert journal.find("s", "source") is None


@pytest.mark.parametrize(
    ("role", "steps", "line"),
    [
        ("source", [Step.BEGUN, Step.BEGUN], 2),
        ("source", [Step.BEGUN, Step.RELEASED], 2),
        ("source", [Step.COMMITTED], 1),
        ("destination", [Step.BEGUN, Step.COMMITTED], 2),
        ("destination", [Step.BEGUN, Step.LOADED, Step.RUNNING], 3),
        ("destination", [Step.BEGUN, Step.DISCARDED, Step.COMMITTED], 3),
    ],
)
def test_steps_that_cannot_follow_each_other(journal, monkeypatch, role, steps, line):
    monkeypatch.setattr("vfioflow.journal.Story.allows", lambda *_: True)
    entry = journal.open("s", role, create=True)
    for step in steps:
        entry.record(step)
    entry.close()
    monkeypatch.undo()
    with pytest.raises(JournalError, match=rf"line {line} is damaged: .* cannot come after"):
        journal.find("s", role)


# ------------------------------------------------------------ what cannot be written


@contextmanager
def largest_file(size):
    """As on a full disk; the interpreter ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_record_that_does_not_fit_was_not_made(journal, room):
    with journal.begin("s", "source", "tcp://there:1", DEVICES) as entry:
        size = entry.path.stat().st_size
        with (
            largest_file(size + room),
            pytest.raises(JournalError, match="File too large") as caught,
        ):
            entry.record(Step.COMMITTED)
        assert caught.value.exit_code == 8
        assert "--journal DIR" in str(caught.value)
        assert entry.step is Step.BEGUN
        assert entry.path.stat().st_size == size
        entry.record(Step.BACK)
    assert [r.step for r in journal.find("s", "source").records] == [Step.BEGUN, Step.BACK]


def test_a_session_that_cannot_begin_leaves_nothing(journal):
    assert journal.identity
    with largest_file(0), pytest.raises(JournalError, match="cannot record BEGUN"):
        journal.begin("s", "source", "tcp://there:1", DEVICES)
    assert journal.stories() == []
    write(journal, "source", [Step.BEGUN])


def test_a_full_disk(journal, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with journal.begin("s", "source", "", DEVICES) as entry:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(JournalError, match=r"No space left on device.*make room"):
            entry.record(Step.COMMITTED)
        monkeypatch.undo()
    assert journal.find("s", "source").step is Step.BEGUN


def test_a_place_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "journal")
    with pytest.raises(JournalError, match=r"cannot be made .Not a directory"):
        journal.begin("s", "source", "", DEVICES)
    with pytest.raises(JournalError):
        Journal("/proc/vfioflow").begin("s", "source", "", DEVICES)
    assert Journal(tmp_path / "nowhere").pending() == []


def test_a_record_that_is_under_way_when_it_is_closed(journal, monkeypatch):
    """The descriptor must not be closed under it: its number may belong to somebody else by then."""
    entry = journal.begin("s", "source", "", DEVICES)
    under_way, go_on = threading.Event(), threading.Event()

    def slow(_):
        under_way.set()
        go_on.wait(10)

    monkeypatch.setattr(os, "fsync", slow)
    thread = threading.Thread(target=entry.record, args=(Step.COMMITTED,))
    thread.start()
    under_way.wait(10)
    entry.close()
    assert journal.is_held(entry)
    go_on.set()
    thread.join(10)
    monkeypatch.undo()
    assert not journal.is_held(entry)
    assert journal.find("s", "source").step is Step.COMMITTED
    with pytest.raises(JournalError, match="Bad file descriptor"):
        entry.record(Step.RELEASED)


@pytest.mark.parametrize(("role", "last"), [("source", Step.BACK), ("destination", Step.DISCARDED)])
def test_one_that_begins_when_nobody_waits_any_more_ends_at_once(journal, monkeypatch, role, last):
    go_on = threading.Event()
    sync = os.fsync

    def slow(fd):
        go_on.wait(10)
        sync(fd)

    async def body():
        log = Log(journal, timeout=0.05)
        with pytest.raises(JournalError, match=r"no answer for 0\.05 s"):
            await log.begin("s", role, "", [])
        log.close()
        go_on.set()

    monkeypatch.setattr(os, "fsync", slow)
    asyncio.run(body())
    for thread in threading.enumerate():
        if thread.name.startswith("vfioflow-"):
            thread.join(10)
    story = journal.find("s", role)
    assert story.step is last
    assert not journal.is_held(story)


def test_what_could_not_be_cut_off_is_written_over(journal, monkeypatch):
    """The longer record that failed must not show behind the shorter one that takes its place."""
    entry = journal.begin("s", "source", "", DEVICES)

    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        patch.setattr(os, "ftruncate", fails)
        with pytest.raises(JournalError, match="cannot record COMMITTED"):
            entry.record(Step.COMMITTED, identity="0" * 32)
    entry.record(Step.BACK, reason="short")
    entry.close()
    assert journal.find("s", "source").step is Step.BACK


def test_a_step_that_comes_too_late_is_an_error(journal):
    with journal.begin("s", "source", "", DEVICES) as entry:
        entry.record(Step.BACK)
        with pytest.raises(
            JournalError, match=r"BACK cannot come after BACK \(Protocol error\); see whether"
        ):
            entry.record(Step.BACK)
    assert [record.step for record in journal.find("s", "source").records] == [
        Step.BEGUN,
        Step.BACK,
    ]


def test_looking_at_a_lock_keeps_nobody_from_it(journal):
    journal.begin("s", "source", "", DEVICES).close()
    story = journal.find("s", "source")
    stop = threading.Event()

    def look():
        while not stop.is_set():
            journal.is_held(story)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(2000):
            journal.open("s", "source").close()
    finally:
        stop.set()
        thread.join(10)


# ---------------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    ("role", "way", "goes"),
    [
        ("source", [Step.BEGUN], False),
        ("source", [Step.BEGUN, Step.COMMITTED], False),
        ("source", [Step.BEGUN, Step.BACK], True),
        ("source", [Step.BEGUN, Step.COMMITTED, Step.RELEASED], True),
        ("destination", [Step.BEGUN, Step.LOADED], False),
        ("destination", [Step.BEGUN, Step.DISCARDED], True),
        ("destination", [Step.BEGUN, Step.LOADED, Step.COMMITTED, Step.RUNNING], False),
        ("destination", [Step.BEGUN, Step.LOADED, Step.COMMITTED, Step.RUNNING, Step.TOLD], True),
    ],
)
def test_old_entries_go_when_nobody_can_ask_for_them(journal, monkeypatch, role, way, goes):
    path = write(journal, role, way)
    assert journal.prune() == 0
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 31 * 86400)
    assert journal.prune() == int(goes)
    assert path.exists() is not goes


def test_other_files_of_the_directory_are_left_alone(journal):
    write(journal, "source", [Step.BEGUN])
    for name in ("x.source.journal.swp", "s.nobody.journal", "note", ".x.source.journal"):
        (journal.directory / name).write_text("something else\n")
    (journal.directory / "d.source.journal.d").mkdir()
    assert [s.session for s in journal.stories()] == ["s"]


def test_where_it_is_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "vfioflow"
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", ignored)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert default_directory() == tmp_path / ".local" / "state" / "vfioflow"
