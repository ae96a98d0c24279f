"""Reading: from a real S3 server, through lost connections, bounded, and of files that are what they were."""

import gc
import logging
import shutil
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pytest
import torch
from moto.server import ThreadedMotoServer

from pipelines.augment import Recipe
from pipelines.errors import DataError
from pipelines.loader import TrainingBatches
from pipelines.location import persistently
from pipelines.order import Order
from pipelines.seat import Seat
from pipelines.shards import DataSet, ReadAhead

PATIENCE_SECONDS = 60
SEAT = Seat(0, 1, torch.device("cpu"), 1)


class Server:
    """moto's S3, with a data set in it."""

    def __init__(self, folder: Path) -> None:
        self._server = ThreadedMotoServer(port=0)
        self._server.start()
        host, self.port = self._server.get_host_and_port()
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{self.port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        client.create_bucket(Bucket="pictures")
        for file in folder.iterdir():
            client.upload_file(str(file), "pictures", f"sets/train/{file.name}")
        self.place = (
            f"s3://test:test@pictures/sets/train?scheme=http&region=us-east-1&endpoint_override={host}:{self.port}"
        )

    def stop(self) -> None:
        self._server.stop()


class Cutter(socketserver.ThreadingTCPServer):
    """Stands before a server, and while `cuts` is set cuts off connections, some bytes into the answer."""

    allow_reuse_address, daemon_threads = True, True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Cut)
        self.behind, self.cuts = port, False
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Cut(socketserver.BaseRequestHandler):
    server: Cutter

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.behind)) as behind:
            answers = threading.Thread(
                target=self._answers, args=(behind, 700 if self.server.cuts else None), daemon=True
            )
            answers.start()
            try:
                while data := self.request.recv(65536):
                    behind.sendall(data)
            except OSError:
                pass

    def _answers(self, behind: socket.socket, most: int | None) -> None:
        try:
            while data := behind.recv(65536):
                self.request.sendall(data[:most])
                if most is not None:
                    break
            self.request.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


@pytest.fixture
def server(picture_set: DataSet) -> Iterator[Server]:
    server = Server(Path(picture_set.location.path))
    yield server
    server.stop()


def batches(data: DataSet) -> TrainingBatches:
    assert data.manifest.statistics is not None
    order = Order.of(data.manifest, 16, 5)
    recipe = Recipe((32, 64), 32, True, 0.1, 2.0, data.manifest.statistics)
    return TrainingBatches(data, order, recipe, SEAT, 0, order.steps_per_epoch)


def test_batches_from_s3_are_those_from_the_disk(server: Server, picture_set: DataSet) -> None:
    remote = DataSet.open(server.place)
    assert remote.manifest.fingerprint == picture_set.manifest.fingerprint
    for near, far in zip(batches(picture_set), batches(remote), strict=True):
        assert torch.equal(near.rows, far.rows)
        assert torch.equal(near.images, far.images)


def test_what_cut_connections_took_is_read_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def told() -> list[str]:
        return [r.getMessage() for r in caplog.records if "trying again in" in r.getMessage()]

    with Cutter(server.port) as cutter, caplog.at_level(logging.WARNING, logger="pipelines.location"):
        data = DataSet.open(server.place.replace(str(server.port), str(cutter.server_address[1])))
        reader = ReadAhead(data, threads=1)
        cutter.cuts = True
        reader.want([1], [])
        for _ in range(600):  # the client library itself tries for some seconds
            if told():
                break
            time.sleep(0.1)
        cutter.cuts = False
        group = reader.get(1)
        reader.close()
        cutter.shutdown()
    assert len(group.labels) == data.manifest.group_rows[1]
    assert "row group 1" in told()[0]


def test_what_is_not_in_the_bucket_is_told_of_at_once(server: Server) -> None:
    with pytest.raises(DataError, match="no such data set"):
        DataSet.open(server.place.replace("sets/train", "sets/nothing"))


@pytest.fixture
def copy(picture_set: DataSet, tmp_path: Path) -> Path:
    return Path(shutil.copytree(picture_set.location.path, tmp_path / "train"))


def test_a_shard_of_another_length_is_named_when_the_set_is_opened(copy: Path) -> None:
    shard = copy / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"part-00001\.parquet: copy it again"):
        DataSet.open(str(copy))


def test_a_changed_byte_of_an_image_is_found_when_its_row_group_is_read(copy: Path) -> None:
    image = bytes(DataSet.open(str(copy)).read_group(0).encoded[2])
    shard = copy / "part-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[content.index(image) + len(image) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"part-00000\.parquet: row group 0 changed since it was prepared"):
        DataSet.open(str(copy)).read_group(0)


def test_images_are_handed_on_where_arrow_has_read_them(picture_set: DataSet) -> None:
    picture_set.read_group(0)  # the file's footer is kept from now on
    gc.collect()
    before = pa.total_allocated_bytes()
    group = picture_set.read_group(0)
    held = pa.total_allocated_bytes() - before
    starts = [image.__array_interface__["data"][0] for image in group.encoded]
    lengths = [len(image) for image in group.encoded]
    assert [b - a for a, b in zip(starts, starts[1:], strict=False)] == lengths[:-1], "one behind the other, as stored"
    assert sum(lengths) <= held
    del group
    deadline = time.monotonic() + PATIENCE_SECONDS
    while pa.total_allocated_bytes() > before:  # Arrow's threads let go a moment after they have delivered
        assert time.monotonic() < deadline, "held after the group is gone"
        time.sleep(0.01)


def test_row_groups_are_held_up_to_the_bound(picture_set: DataSet) -> None:
    groups = len(picture_set.manifest.group_rows)
    reader = ReadAhead(picture_set)
    reader.want([0, 3], range(groups))
    assert len(reader) == groups, "small ones all fit"
    reader.want([2], [])
    assert len(reader) == 1
    reader._ahead = 2
    reader.want([0, 1], range(groups))
    assert len(reader) == 4
    reader.close()


def test_rows_are_read_little_more_than_once(picture_set: DataSet) -> None:
    loader = batches(picture_set)
    rows = np.concatenate([batch.rows.numpy() for batch in loader])
    assert sorted(rows.tolist()) == list(range(picture_set.rows))
    assert loader.read_per_used == 1.0, "one stream, everything inside the bound"


def test_reading_that_is_given_up_ends_at_once(picture_set: DataSet) -> None:
    given_up = threading.Event()
    tries = []

    def read() -> None:
        tries.append(0)
        if len(tries) == 2:
            given_up.set()
        raise OSError("AWS Error NETWORK_CONNECTION during GetObject")

    with pytest.raises(OSError, match="NETWORK"):
        persistently(read, "shard", given_up)
    assert len(tries) == 2


def test_what_is_wrong_with_a_file_is_not_tried_again() -> None:
    for error in (OSError("Couldn't deserialize thrift: TProtocolException"), FileNotFoundError(2, "No such file")):
        tries = []

        def read(error: OSError = error, tries: list[int] = tries) -> None:
            tries.append(0)
            raise error

        with pytest.raises(OSError, match=r"thrift|No such"):
            persistently(read, "shard")
        assert len(tries) == 1
