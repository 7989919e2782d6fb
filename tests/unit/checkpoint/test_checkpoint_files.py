"""The checkpoint's files: private, ours, whole; anything else is refused with a line that says how to go on."""

import contextlib
import os
import random
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest
from checkpoint_samples import NOON, begin, failed, made, ok, plan

from batchrun.checkpoint import Checkpoint, schema, start_fresh
from batchrun.checkpoint.files import file_system, refuse_network
from batchrun.checkpoint.records import OpenRule
from batchrun.errors import CheckpointError, StorageError, UserError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def loose_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
def test_all_files_are_private(tmp_path: Path) -> None:
    """Whatever the umask: folder 0700; database, log, index and reserve 0600."""
    path = tmp_path / "new" / "x.sqlite"
    with Checkpoint.open(path) as checkpoint:
        plan(checkpoint, ["a"])
        checkpoint.writer.start(begin(checkpoint))
        checkpoint.writer.put(ok(1))
        checkpoint.writer.flush()
        names = {file.name: mode(file) for file in path.parent.iterdir()}
    assert names == dict.fromkeys(["x.sqlite", "x.sqlite-wal", "x.sqlite-shm", "x.sqlite.reserve"], 0o600)
    assert mode(path.parent) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["x.sqlite"]


def test_private_from_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file is there for its owner alone before anything is written into it."""
    seen: list[tuple[int, int]] = []
    real = sqlite3.connect

    def connect(name: str, **options: object) -> sqlite3.Connection:
        new = tmp_path / "x.sqlite.new"
        if new.exists():
            seen.append((mode(new), new.stat().st_size))
        return real(name, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(sqlite3, "connect", connect)
    Checkpoint.open(tmp_path / "x.sqlite").close()
    assert seen == [(0o600, 0)]


@pytest.mark.parametrize("ending", ["", "-wal", ".new", ".lock"])
def test_links_are_not_followed(tmp_path: Path, ending: str) -> None:
    """A symbolic link where a file of ours would be is refused, and its target is untouched."""
    target = tmp_path / "precious"
    target.write_bytes(b"data")
    (tmp_path / f"x.sqlite{ending}").symlink_to(target)
    with pytest.raises(UserError, match="symbolic link"):
        Checkpoint.open(tmp_path / "x.sqlite")
    assert target.read_bytes() == b"data"


def test_wrong_places_are_the_users_to_change(tmp_path: Path) -> None:
    """A folder that is a file, a checkpoint that is a folder, or none where one must be: one line each."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="set checkpoint:"):
        Checkpoint.open(tmp_path / "file" / "x.sqlite")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="set checkpoint:"):
        Checkpoint.open(tmp_path / "folder")
    with pytest.raises(UserError, match="no checkpoint at"):
        Checkpoint.open(tmp_path / "none.sqlite", read_only=True)
    assert not (tmp_path / "none.sqlite").exists()


def foreign(path: Path, kind: str) -> None:
    if kind == "text":
        path.write_text("id,text\n" * 100)
        return
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine(x)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("kind", ["text", "database"])
def test_foreign_files_are_refused_untouched(tmp_path: Path, kind: str) -> None:
    """A file that never was a checkpoint is neither opened nor put aside."""
    path = tmp_path / "x.sqlite"
    foreign(path, kind)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="not a checkpoint of batchrun"):
        Checkpoint.open(path)
    with pytest.raises(CheckpointError, match="not a checkpoint of batchrun"):
        start_fresh(path, NOON)
    assert path.read_bytes() == before


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of another version of the tables is not touched by this one."""
    path = tmp_path / "x.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", schema.VERSION + 1)
        made(path, ["a"])
    with pytest.raises(CheckpointError, match="use the batchrun that wrote it"):
        Checkpoint.open(path)


MOUNTS = """\
21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
30 21 0:40 / /home rw shared:2 - nfs4 server:/home rw
31 30 0:41 / /home/ann\\040lee/local rw - xfs /dev/sdb1 rw
32 21 0:42 / /mnt/share rw - fuse.sshfs me@there:/ rw
33 21 0:43 / /mnt/share2 rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/home/bob", "nfs4"),
        ("/home/ann lee/local/jobs", "xfs"),
        ("/mnt/share/x", "fuse.sshfs"),
        ("/mnt/share2", "tmpfs"),
    ],
)
def test_file_system_is_that_of_the_nearest_mount(folder: str, kind: str) -> None:
    """The kind of file system is read from the deepest mount above the folder, whatever its name holds."""
    assert file_system(Path(folder), MOUNTS) == kind


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network file system the line says which, and what to set."""
    refuse_network(tmp_path / "x.sqlite")
    monkeypatch.setattr("batchrun.checkpoint.files.file_system", lambda *_: "nfs4")
    with pytest.raises(UserError, match=r"network file system \(nfs4\): set checkpoint: to a local path"):
        Checkpoint.open(tmp_path / "x.sqlite")


def use(path: Path) -> int:
    """Do with a checkpoint what a run and a look at it do; give its rows, or -1 where `verify` finds it unsound."""
    with Checkpoint.open(path) as checkpoint:
        rows = checkpoint.counts().rows
        checkpoint.outcomes(0, 1000)
        list(checkpoint.open_questions(OpenRule(("timeout",), None), start=0))
        checkpoint.current_plan()
        checkpoint.runs()
        checkpoint.answer_tokens()
        checkpoint.spent()
        return rows if not checkpoint.verify() else -1


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_refused_or_harmless(tmp_path: Path, seed: int) -> None:
    """Wherever bytes are flipped or the file is cut off: a line for people, or it works; never a start from nothing."""
    texts = [f"text {number}" for number in range(300)]
    outcomes = [ok(n, "answer " * 20, cost=n) if n % 3 else failed(n, "timeout") for n in range(1, 250)]
    path = made(tmp_path / "x.sqlite", texts, outcomes)
    whole = path.read_bytes()
    chance = random.Random(seed)  # noqa: S311  (a seed, not a secret)
    refused = 0
    for _ in range(15):
        harmed = bytearray(whole)
        if chance.random() < 0.3:
            del harmed[chance.randrange(len(harmed)) :]
        else:
            start = chance.randrange(len(harmed)) if chance.random() < 0.7 else chance.randrange(100)
            for place in range(start, min(start + chance.choice([1, 8, 4096]), len(harmed))):
                harmed[place] ^= chance.randrange(1, 256)
        for file in tmp_path.iterdir():
            file.unlink()
        path.write_bytes(harmed)
        said = ""
        try:
            rows = use(path)
        except StorageError as error:
            rows, said = None, str(error)
        assert rows in {300, -1, None}
        assert "\n" not in said
        assert path.exists()
        refused += rows is None
    assert refused


def test_unclean_end_is_checked(tmp_path: Path) -> None:
    """After a run that did not end, the file is checked before it is used."""
    path = made(tmp_path / "x.sqlite", [f"text {number}" for number in range(3000)])
    with Checkpoint.open(path) as checkpoint:
        begin(checkpoint)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(CheckpointError, match=r"damaged.*--fresh"):
        Checkpoint.open(path)


def test_orphaned_log_is_not_replayed(tmp_path: Path) -> None:
    """A log whose database is gone never runs into a new one."""
    path = made(tmp_path / "x.sqlite", ["a"])
    (tmp_path / "x.sqlite-wal").write_bytes(b"log")
    path.unlink()
    with pytest.raises(CheckpointError, match="put the file back"):
        Checkpoint.open(path)


def test_fresh_keeps_the_old_one_and_the_days_money(tmp_path: Path) -> None:
    """A fresh start gives the old checkpoint another name and carries over what was spent that UTC day."""
    path = made(tmp_path / "x.sqlite", ["a", "b"], [ok(1, cost=7), ok(2, cost=100, finished_at=NOON - 86_400)])
    assert start_fresh(tmp_path / "none.sqlite", NOON) is None
    aside = start_fresh(path, NOON + 5)
    assert aside == tmp_path / "x.20251122-120005.sqlite"
    assert mode(aside) == 0o600
    with Checkpoint.open(path) as checkpoint:
        assert checkpoint.current_plan() is None
        assert (checkpoint.spent(day="2025-11-22"), checkpoint.spent()) == (7, 7)
        assert checkpoint.verify() == []
    with Checkpoint.open(aside, read_only=True) as old:
        assert old.spent() == 107
    second = start_fresh(path, NOON + 5)
    assert second == tmp_path / "x.20251122-120005-2.sqlite"
    with Checkpoint.open(path) as checkpoint:
        assert checkpoint.spent() == 7


def test_fresh_puts_a_damaged_one_aside(tmp_path: Path) -> None:
    """A damaged checkpoint is never deleted: it lies there under the new name, byte for byte."""
    path = made(tmp_path / "x.sqlite", ["a"], [ok(1, cost=7)])
    harmed = path.read_bytes()[:4096] + b"\xff" * 20_000
    path.write_bytes(harmed)
    aside = start_fresh(path, NOON)
    assert aside is not None
    assert aside.read_bytes() == harmed
    with Checkpoint.open(path) as checkpoint:
        assert checkpoint.verify() == []


def test_fresh_beside_a_reader_keeps_the_log(tmp_path: Path) -> None:
    """What stands in the log alone, because another program still reads, goes with the old checkpoint."""
    path = made(tmp_path / "x.sqlite", ["a"])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM answers").fetchone()
        with Checkpoint.open(path) as checkpoint:
            checkpoint.writer.start(begin(checkpoint))
            checkpoint.writer.put(ok(1, cost=7))
        aside = start_fresh(path, NOON)
    assert aside is not None
    with Checkpoint.open(aside, read_only=True) as old, Checkpoint.open(path) as new:
        assert (old.counts().ok, new.counts().rows, new.spent()) == (1, 0, 7)


def test_copies_without_links_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system knows no hard links, a fresh start still keeps the old checkpoint."""

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = made(tmp_path / "x.sqlite", ["a"], [ok(1, cost=7)])
    monkeypatch.setattr(os, "link", no_links)
    aside = start_fresh(path, NOON)
    assert aside is not None
    with Checkpoint.open(aside, read_only=True) as old, Checkpoint.open(path) as new:
        assert (old.spent(), new.spent(), new.counts().rows) == (7, 7, 0)


def test_creation_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    """What a killed process left half made is replaced, never taken for a checkpoint."""
    made(tmp_path / "x.sqlite", ["a"])
    shutil.move(tmp_path / "x.sqlite", tmp_path / "x.sqlite.new")
    (tmp_path / "x.sqlite.new").write_bytes(b"half")
    with contextlib.closing(Checkpoint.open(tmp_path / "x.sqlite")) as checkpoint:
        assert checkpoint.current_plan() is None
    assert [file.name for file in tmp_path.iterdir()] == ["x.sqlite"]


@pytest.mark.parametrize("name", ["x", "x[1]"])
def test_a_fresh_start_killed_in_its_midst_never_happened(tmp_path: Path, name: str) -> None:
    """Killed after the log went aside and before the new file came, `--fresh` leaves every committed answer there."""
    path = made(tmp_path / f"{name}.sqlite", ["a"])
    log = path.with_name(f"{name}.sqlite-wal")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM answers").fetchone()  # so that the answer stands in the log alone
        with Checkpoint.open(path) as checkpoint:
            checkpoint.writer.start(begin(checkpoint))
            checkpoint.writer.put(ok(1, cost=7))
        was = path.read_bytes(), log.read_bytes()
    path.write_bytes(was[0])
    log.write_bytes(was[1])
    aside = tmp_path / f"{name}.20251122-120000.sqlite"
    os.link(path, aside)
    log.rename(aside.with_name(f"{aside.name}-wal"))
    with Checkpoint.open(path) as checkpoint:
        assert (checkpoint.counts().ok, checkpoint.spent(), checkpoint.verify()) == (1, 7, [])
    assert not aside.exists()
