"""Large files are there whole or not at all, on a disk and in an object store (moto's S3, with the real client)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import DataError
from pipelines.location import Location
from tests.pipelines.test_shards import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("empty"))
    yield server
    server.stop()


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, server: Server) -> Location:
    if request.param == "disk":
        return Location.of(tmp_path / "new")
    return Location.of(server.place.replace("sets/train", tmp_path.name))


def fill(place: Location, content: bytes, error: BaseException | None = None) -> None:
    with place.filled() as file:
        file.write_bytes(content)
        if error is not None:
            raise error


def test_what_the_block_makes_is_there_at_its_end(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.location._PIECE_BYTES", 1000)
    for content in (bytes(range(256)) * 20, b"", b"other"):
        fill(folder / "large", content)
        assert (folder / "large").read_bytes() == content
        assert list(folder.files()) == ["large"]


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_a_block_that_raises_leaves_what_was_there(folder: Location, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fill(folder / "large", b"half", error)
    assert folder.files() == {}
    fill(folder / "large", b"whole")
    with pytest.raises(type(error)):
        fill(folder / "large", b"half", error)
    assert (folder / "large").read_bytes() == b"whole"
    assert list(folder.files()) == ["large"]


def test_a_place_that_cannot_be_written_to_is_found_before_the_block(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").touch()
    for place in (str(tmp_path / "file" / "large"), server.place.replace("pictures/sets", "no-such-bucket/sets")):
        entered = False
        with pytest.raises(OSError, match=r"exist|Not a directory|NO_SUCH_BUCKET"), Location.of(place).filled():
            entered = True
        assert not entered


@pytest.mark.parametrize("text", [b"\xff.jpg", b"folder-\xe9/image.png", b"s3://bucket/\xff.jpg"])
def test_a_name_that_is_not_utf_8_is_told_in_a_line(text: bytes) -> None:
    with pytest.raises(DataError, match=r"\\udc(ff|e9)\S*: (the path is not UTF-8|no such place)") as raised:
        Location.of(os.fsdecode(text))
    assert "\n" not in str(raised.value)
    str(raised.value).encode()


@pytest.mark.parametrize("text", ["/a/b", "s3://test:test@bucket/a?scheme=http&endpoint_override=127.0.0.1:1"])
def test_a_places_folder_is_where_it_was_named_from(text: str) -> None:
    place = Location.of(text)
    inside = (place / "c" / "d").parent.parent
    assert (inside.path, inside.text) == (place.path, place.text)


def test_a_folder_tells_files_from_folders(folder: Location) -> None:
    assert folder.folders() == {}
    (folder / "file").write(b"1")
    (folder / "inner" / "file").write(b"1")
    assert list(folder.files()) == ["file"]
    assert {name: place.path for name, place in folder.folders().items()} == {"inner": f"{folder.path}/inner"}
