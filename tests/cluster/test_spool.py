"""Journals on a disk and in something like an object store: what was written is read, whatever happened meanwhile."""

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pyarrow import fs as arrow_fs

from cluster.spool import Journal, Reader, left, running
from cluster.track import Tracker
from pipelines.location import Location
from tests.cluster.mlflow_server import wait_for
from tests.serving import free_port

ROOT = Path(__file__).parent.parent.parent
PROCESS = """
import sys
from cluster.spool import Journal
from pipelines.location import Location

journal = Journal(Location.of(sys.argv[1]), "http://mlflow", "job")
for number in range(10 ** 9):
    journal.append({"do": "metrics", "number": number, "text": "x" * (number % 500)})
    print(number, flush=True)
"""


def bucket(folder: Path) -> Location:
    """Files that are not on a disk of this machine, as far as it can be told."""
    (folder / "spool").mkdir(parents=True)
    return Location(arrow_fs.SubTreeFileSystem(str(folder), arrow_fs.LocalFileSystem()), "spool", "s3://bucket/spool")


def numbers(reader: Reader) -> list[int]:
    return [line.call["number"] for line in reader.lines()]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_not_delivered_is_left_in_order_however_much_was_and_whatever_is_torn(
    seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    folder = Location.of(tmp_path)
    journal = Journal(folder, "http://mlflow", "job")
    count, delivered = rng.randrange(1, 60), 0
    for number in range(count):
        journal.append({"number": number, "text": "ä" * rng.randrange(3000)})
        if rng.random() < 0.2 and (lines := journal.reader.next(rng.randrange(1, 9))):
            journal.reader.delivered(lines[-1])
            delivered = lines[-1].call["number"] + 1
    file = journal.reader.file
    journal.close()
    if delivered == count:
        assert not list(tmp_path.iterdir())
        return
    content = file.read_bytes()
    cut = rng.randrange(0, len(content.splitlines(keepends=True)[-1]))  # of the last line, which ends so
    torn = min(cut, len(content) - int(_mark(file)))
    file.write_bytes(content[: len(content) - torn])
    whole = count - (torn > 0)
    with left(folder) as (reader,):
        assert (reader.uri, reader.experiment) == ("http://mlflow", "job")
        assert numbers(reader) == list(range(delivered, whole))
        assert reader.waiting() == whole - delivered
        while lines := reader.next(rng.randrange(1, 9)):
            reader.delivered(lines[-1])
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def _mark(file: Path) -> str:
    mark = file.with_suffix(".done")
    return mark.read_text() if mark.exists() else str(len(file.read_bytes().splitlines(keepends=True)[0]))


def test_threads_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    journal = Journal(Location.of(tmp_path), "http://mlflow", "job")

    def append(first: int) -> None:
        for number in range(first, first + 300):
            journal.append({"number": number, "text": "x" * number})

    threads = [threading.Thread(target=append, args=(300 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = numbers(journal.reader)
    assert sorted(found) == list(range(1200))
    assert all([n for n in found if n // 300 == i] == list(range(300 * i, 300 * i + 300)) for i in range(4))
    journal.close()


def test_a_killed_process_loses_no_line_and_holds_its_journal_until_then(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    folder = Location.of(tmp_path)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(2000):
        last = int(process.stdout.readline())
    assert running(folder)
    with left(folder) as readers:
        assert readers == []
    process.send_signal(signal.SIGKILL)
    last = int((process.stdout.read().split() or [last])[-1])
    process.wait()
    assert not running(folder)
    with left(folder) as (reader,):
        found = numbers(reader)
        assert found == list(range(len(found)))
        assert last < len(found) <= last + 2


def test_an_object_store_has_a_copy_of_what_waits_and_no_more(tmp_path: Path) -> None:
    folder = bucket(tmp_path / "bucket")
    journal = Journal(folder, "http://mlflow", "job")
    for number in range(10):
        journal.append({"number": number})
    assert not folder.files()
    journal.keep(now=True)
    journal.reader.delivered(journal.reader.next(4)[-1])
    journal.close()
    assert not journal.reader.file.exists()
    with left(folder) as (reader,):
        assert numbers(reader) == [4, 5, 6, 7, 8, 9]
        reader.delivered(reader.next(2)[-1])
    with left(folder) as (reader,):
        assert numbers(reader) == [6, 7, 8, 9]
        reader.delivered(reader.next()[-1])
    assert not folder.files()

    journal = Journal(folder, "http://mlflow", "job")
    journal.append({"number": 1})
    journal.keep(now=True)
    assert len(folder.files()) == 1
    journal.reader.delivered(journal.reader.next()[-1])
    journal.close()
    assert not folder.files()


def test_what_is_left_in_an_object_store_is_not_fetched_while_the_server_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, uri, said = bucket(tmp_path), f"http://127.0.0.1:{free_port()}", list[str]()
    journal = Journal(folder, uri, "job")
    journal.append({"do": "metrics"})
    journal.close()
    monkeypatch.setattr(Location, "read", lambda *_: pytest.fail("fetched"))
    tracker = Tracker(uri, "job", folder, said.append)
    wait_for(lambda: said)  # it was tried twice
    tracker.close()
    assert "does not answer" in said[0]
    assert len(folder.files()) == 1


def test_a_journal_is_delivered_though_there_is_no_room_to_note_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(Location.of(tmp_path), "http://mlflow", "job")
    for number in range(3):
        journal.append({"number": number})
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"1"))
        journal.reader.delivered(journal.reader.next(2)[-1])
    assert numbers(journal.reader) == [2]
    journal.close()
    with left(Location.of(tmp_path)) as (reader,):
        assert numbers(reader) == [0, 1, 2]  # once more, which is of no harm


def test_a_full_disk_is_an_error_and_the_next_line_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(Location.of(tmp_path), "http://mlflow", "job")
    journal.append({"number": 0})
    write = os.write
    monkeypatch.setattr(os, "write", lambda opened, text: write(opened, text[:5]))
    with pytest.raises(OSError, match="full"):
        journal.append({"number": 1})
    monkeypatch.setattr(os, "write", write)
    journal.append({"number": 2})
    assert numbers(journal.reader) == [0, 2]
    journal.reader.delivered(journal.reader.next()[-1])
    assert journal.empty
    journal.close()
    assert not list(tmp_path.iterdir())
