"""Whether every node sees the same storage: found out before the first step, not by a checkpoint that is not there."""

import uuid
from collections.abc import Sequence
from typing import Any

import ray
import ray.exceptions
from pyarrow import fs as arrow_fs
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.errors import ClusterError, DataError, first_line
from pipelines.location import Location

_ANSWER_SECONDS = 60.0


class Shared:
    """The nodes of a cluster, and which of them are known to see a place."""

    def __init__(self) -> None:
        self._known = {ray.get_runtime_context().get_node_id()}  # the driver's own

    def check(self, folder: str, data: Sequence[str]) -> None:
        """Of nodes that are new since the last call: whether they see what the driver writes into `folder`, and the
        `data` files. Raises ClusterError, naming the nodes by address."""
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in _workers()}
        new = {node: address for node, address in nodes.items() if node not in self._known}
        if not new:
            return
        with _Marker(Location.of(folder)) as marker:
            tasks = {
                node: ray.remote(look)
                .options(
                    num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
                )
                .remote({marker.place.absolute: marker.content, **dict.fromkeys(data)})
                for node in new
            }
            ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=_ANSWER_SECONDS)
            seen = {node: _answer(task) for node, task in tasks.items()}
        blind: dict[str, list[str]] = {}
        for node, missing in seen.items():
            for place in missing or ():
                blind.setdefault(folder if place == marker.place.absolute else place, []).append(new[node])
        if blind:
            raise ClusterError("; ".join(_problem(place, addresses) for place, addresses in blind.items()))
        self._known |= {node for node, missing in seen.items() if missing is not None}


def look(places: dict[str, bytes | None]) -> list[str]:
    """Runs on a node: which of the places it cannot read, or finds with another content than the one given."""
    return [place for place, content in places.items() if not _sees(Location.of(place), content)]


def _sees(place: Location, content: bytes | None) -> bool:
    try:
        return place.exists() if content is None else place.read_bytes() == content
    except DataError:
        return False


def _workers() -> list[dict[str, Any]]:
    """The nodes that may be given workers."""
    return [node for node in ray.nodes() if node["Alive"] and {"CPU", "GPU"} & set(node["Resources"])]


def _answer(task: object) -> list[str] | None:
    """None if the node has gone, or says nothing: it will not train, either."""
    try:
        return list(ray.get(task, timeout=0))
    except ray.exceptions.RayError:
        return None


def _problem(place: str, addresses: list[str]) -> str:
    nodes = ", ".join(sorted(set(addresses)))
    return f"{place}: not seen on {nodes}: it has to be a folder that all nodes share, or an object store"


class _Marker:
    """A file of random content, while the block lasts."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self.content = uuid.uuid4().bytes
        self.place = folder / f".shared-{uuid.uuid4().hex[:8]}"

    def __enter__(self) -> "_Marker":
        try:
            self._folder.filesystem.create_dir(self._folder.path, recursive=True)
            with self.place.filesystem.open_output_stream(self.place.path) as stream:
                stream.write(self.content)
        except OSError as error:
            raise ClusterError(f"storage: {self._folder} cannot be written: {first_line(error)}") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self.place.filesystem.get_file_info(self.place.path).type == arrow_fs.FileType.File:
            self.place.filesystem.delete_file(self.place.path)
