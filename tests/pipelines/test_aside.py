"""What a preparation replaces, and what it never touches: images, links, folders of others."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli
from pipelines import sources
from pipelines.errors import DataError
from pipelines.prepare import prepare
from pipelines.schema import Manifest
from pipelines.shards import DataSet
from pipelines.sources import Source
from tests.conftest import encoded

Said = pytest.CaptureFixture[str]


def pictures_in(root: Path) -> Path:
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for i in range(3):
            (root / name / f"{i}.png").write_bytes(encoded(20, 16, i))
    return root


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def refusal(said: Said, *command: str | Path) -> str:
    """What the command says, which does nothing else."""
    assert cli.main(["prepare", *map(str, command)]) == 2
    (line,) = said.readouterr().err.splitlines()
    assert "--overwrite" not in line
    return line


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    ("source", "dest", "what"),
    [
        ("mine/train", "mine", "mine/train: is .*/mine/train, which the images come from"),
        ("mine/train", "mine/train", "mine/train/train: lies inside"),
        ("mine/train", "mine/train/out", "mine/train/out/train: lies inside"),
        ("mine/train", "link", "link/train: lies inside"),
        ("link", "mine/train", "mine/train/train: lies inside"),
        ("other/train/deep", "other", "other/train: holds .*/other/train/deep"),
    ],
)
def test_a_source_is_never_written_to(
    tmp_path: Path, capsys: Said, source: str, dest: str, what: str, overwrite: list[str]
) -> None:
    pictures_in(tmp_path / "mine" / "train")
    pictures_in(tmp_path / "other" / "train" / "deep")
    (tmp_path / "link").symlink_to("mine/train")
    before = snapshot(tmp_path)
    line = refusal(capsys, "folder", tmp_path / source, tmp_path / dest, *overwrite)
    assert re.search(what, line), line
    assert snapshot(tmp_path) == before


def test_the_validation_images_are_a_source_too(tmp_path: Path, capsys: Said) -> None:
    train, val = pictures_in(tmp_path / "a" / "images"), pictures_in(tmp_path / "b" / "train")
    assert "b/train: is " in refusal(capsys, "folder", train, tmp_path / "b", "--val", val)
    assert "train/train: lies inside" in refusal(capsys, "folder", train, val, "--val", val)


def parquet_file(file: Path) -> Path:
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"image": [encoded(16, 16, i) for i in range(4)], "label": [0, 1, 0, 1]}), file)
    return file


def test_referenced_parquet_files_are_never_written_over(tmp_path: Path, capsys: Said) -> None:
    hub = parquet_file(tmp_path / "hub" / "train" / "0000.parquet").parent.parent
    parquet_file(tmp_path / "hub" / "test" / "0000.parquet")
    before = snapshot(tmp_path)
    for overwrite in ([], ["--overwrite"]):
        assert "hub/train: holds " in refusal(capsys, "parquet", hub, hub, *overwrite)
        assert snapshot(tmp_path) == before
    assert cli.main(["prepare", "parquet", str(hub)]) == 0
    assert cli.main(["prepare", "parquet", str(hub), "--overwrite"]) == 0
    assert DataSet.open(str(hub / "verydeep" / "train")).rows == 4


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        ("thesis.txt", b"dear to somebody"),
        ("0000.parquet", b"PAR1"),
        ("part-00000.parquet", b"PAR1"),
        ("manifest.json", b'{"name": "a web page"}'),
        ("manifest.json", b"no JSON"),
    ],
)
def test_what_is_not_ours_is_never_replaced(tmp_path: Path, capsys: Said, entry: str, content: bytes) -> None:
    source = pictures_in(tmp_path / "src")
    (tmp_path / "d" / "train").mkdir(parents=True)
    (tmp_path / "d" / "train" / entry).write_bytes(content)
    before = snapshot(tmp_path)
    for overwrite in ([], ["--overwrite"]):
        assert "d/train: is there already (" in refusal(capsys, "folder", source, tmp_path / "d", *overwrite)
        assert snapshot(tmp_path) == before


def test_a_note_or_a_folder_beside_a_data_set_is_not_deleted_with_it(tmp_path: Path, capsys: Said) -> None:
    source = pictures_in(tmp_path / "src")
    command = ["folder", source, tmp_path / "d"]
    assert cli.main(["prepare", *map(str, command)]) == 0
    (tmp_path / "d" / "train" / "part-00009.parquet").mkdir()
    assert "(it holds part-00009.parquet, which no" in refusal(capsys, *command, "--seed", "1", "--overwrite")
    (tmp_path / "d" / "train" / "part-00009.parquet").rmdir()
    assert cli.main(["prepare", *map(str, command), "--seed", "1", "--overwrite"]) == 0


@pytest.mark.parametrize("state", ["empty", "whole", "another version", "cut short", "shards lost"])
def test_data_sets_of_ours_and_empty_folders_are_replaced(tmp_path: Path, state: str) -> None:
    source = sources.folder(pictures_in(tmp_path / "src"))
    dest = tmp_path / "d"
    prepare(source, dest)
    manifest = dest / "manifest.json"
    if state == "empty":
        shutil.rmtree(dest)
        dest.mkdir()
    elif state == "another version":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 1}))
    elif state == "cut short":
        manifest.write_bytes(manifest.read_bytes()[:90])
    elif state == "shards lost":
        (dest / "part-00000.parquet").unlink()
    with pytest.raises(DataError, match="is there already; choose another place or give --overwrite"):
        prepare(source, dest, seed=1)
    prepare(source, dest, seed=1, overwrite=True)
    assert DataSet.open(str(dest)).manifest.seed == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "src"]


def test_links_to_nowhere_and_links_that_would_be_replaced_are_told_of_at_once(tmp_path: Path, capsys: Said) -> None:
    source = pictures_in(tmp_path / "src")
    (tmp_path / "gone").symlink_to("nowhere")
    assert refusal(capsys, "folder", source, tmp_path / "gone").endswith("/gone: a link to nowhere, which is not there")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train").symlink_to("nothing")
    assert "d/train: a link to nothing" in refusal(capsys, "folder", source, tmp_path / "d")
    assert cli.main(["prepare", "folder", str(source), str(tmp_path / "disk")]) == 0
    (tmp_path / "d" / "train").unlink()
    (tmp_path / "d" / "train").symlink_to(tmp_path / "disk" / "train")
    line = refusal(capsys, "folder", source, tmp_path / "d", "--overwrite", "--seed", "1")
    assert "d/train: is there already (a link to " in line
    assert cli.main(["prepare", "folder", str(source), str(tmp_path / "d")]) == 0
    assert "prepared already" in capsys.readouterr().out
    assert (tmp_path / "d" / "train").is_symlink()


KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines import prepare, sources

rename = Path.rename
def kill_after(self, to):
    rename(self, to)
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = kill_after
prepare.prepare(sources.folder(sys.argv[1]), Path(sys.argv[2]), seed=1, overwrite=True)
"""


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Manifest, Path]:
    """A source, what a data set `d` of it was, and the folder of that after a replacement was killed half way."""
    place = tmp_path_factory.mktemp("torn")
    source, folder = sources.folder(pictures_in(place / "src")), place / "folder"
    first = prepare(source, folder / "d")
    command = [sys.executable, "-c", KILLED, str(place / "src"), str(folder / "d")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (folder / "d").exists()
    return source, first, folder


@pytest.mark.parametrize(("seed", "overwrite"), [(0, False), (1, True), (2, False)])
def test_killed_between_the_two_steps_of_a_replacement_the_old_data_set_comes_back(
    torn: tuple[Source, Manifest, Path], tmp_path: Path, seed: int, overwrite: bool
) -> None:
    source, first, folder = torn
    dest = Path(shutil.copytree(folder, tmp_path / "copy")) / "d"
    if seed == 2:
        with pytest.raises(DataError, match="is there already"):
            prepare(source, dest, seed=seed)
        assert DataSet.open(str(dest)).manifest == first
    else:
        assert prepare(source, dest, seed=seed, overwrite=overwrite).seed == seed
    assert DataSet.open(str(dest)).manifest.seed == (1 if seed == 1 else 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["folder", "", "d"], "SRC: is empty"),
        (["folder", "src", ""], "DEST: is empty"),
        (["folder", "src", "d", "--val", ""], "--val: is empty"),
        (["parquet", ""], "SRC: is empty"),
        (["parquet", "src", ""], "DEST: is empty"),
        (["digits", ""], "DEST: is empty"),
        (["imagenet", "--devkit", "kit", "--train", "", "d"], "--train: is empty"),
        (["digits", "d", "--seed", "-1"], "--seed -1: has to be 0 to 2**64 - 1"),
        (["folder", "src", "d", "--seed", str(2**64)], f"--seed {2**64}: has to be"),
    ],
)
def test_names_that_are_empty_and_seeds_that_cannot_be_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said, options: list[str], message: str
) -> None:
    pictures_in(tmp_path / "src")
    monkeypatch.chdir(tmp_path)
    assert refusal(capsys, *options).startswith(f"verydeep: {message}")
    assert os.listdir(tmp_path) == ["src"]


@pytest.mark.parametrize(("verb", "goes_on"), [(["prepare", "folder", "s", "d"], True), (["show", "d"], False)])
def test_what_goes_on_after_an_interruption_says_so_and_nothing_else_does(
    monkeypatch: pytest.MonkeyPatch, capsys: Said, verb: list[str], goes_on: bool
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "folder", interrupt)
    monkeypatch.setattr(cli, "_check_png", interrupt)
    assert cli.main(verb) == 130
    line = capsys.readouterr().err
    assert line.startswith("verydeep: interrupted")
    assert ("goes on where this one stopped" in line) == goes_on
