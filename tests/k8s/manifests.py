"""The manifests as the checks see them: documents with their files, and every pod that comes of them.

The pods of a RayCluster are those that KubeRay 1.7 makes: with its labels, and with the containers that it adds.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
NAMESPACE = "verydeep"
Document = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod that some document makes. `namespace_labels` are those of its namespace."""

    where: str  # file, kind and name, for messages
    kind: str  # of the document
    labels: Mapping[str, str]
    spec: Document
    added: tuple[Document, ...] = ()  # containers that the operator adds
    namespace: str = NAMESPACE
    claims: tuple[str, ...] = ()  # volumes by a StatefulSet's volumeClaimTemplates
    group: str = ""  # of Ray: head, or the worker group's name

    @property
    def own(self) -> list[Document]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def containers(self) -> list[Document]:
        return [*self.own, *self.added]


@dataclass(frozen=True)
class Manifests:
    """All files by their names below k8s/, in the order in which kubectl reads a folder."""

    texts: Mapping[str, str]
    root: Path = field(default=ROOT)  # of the repository

    @classmethod
    def of(cls, folder: Path) -> "Manifests":
        files = [*sorted(folder.glob("*.yaml")), *sorted((folder / "jobs").glob("*.yaml"))]
        return cls({str(file.relative_to(folder)): file.read_text() for file in files})

    def changed(self, file: str, old: str, new: str) -> "Manifests":
        """A copy with the first `old` of a file replaced; all of them, if `old` begins with `*`."""
        every, old = old.startswith("*"), old.removeprefix("*")
        assert old in self.texts[file], f"{file} has no {old!r}"
        return Manifests({**self.texts, file: self.texts[file].replace(old, new, -1 if every else 1)}, self.root)

    @cached_property
    def documents(self) -> list[tuple[str, Document]]:
        return [(name, document) for name, text in self.texts.items() for document in _parsed(text)]

    def named(self, *kinds: str) -> Iterator[tuple[str, Document]]:
        """Where each document of those kinds is, for messages, and the document."""
        for file, document in self.documents:
            if document["kind"] in kinds:
                yield place(file, document), document

    @cached_property
    def pods(self) -> list[Pod]:
        return [pod for file, document in self.documents for pod in _pods(place(file, document), document)]

    @property
    def clusters(self) -> Iterator[tuple[str, str, Document]]:
        """Where, the name, and the spec of each Ray cluster."""
        for where, document in self.named("RayCluster", "RayJob"):
            yield where, document["metadata"]["name"], cluster_spec(document)

    def selected(self, labels: Mapping[str, str], namespace: str = NAMESPACE) -> list[Pod]:
        return [pod for pod in self.pods if pod.namespace == namespace and labels.items() <= pod.labels.items()]


def place(file: str, document: Document) -> str:
    return f"{file}: {document['kind']} {document['metadata']['name']}"


def cluster_spec(document: Document) -> Document:
    spec: Document = document["spec"] if document["kind"] == "RayCluster" else document["spec"]["rayClusterSpec"]
    return spec


@cache
def _parsed(text: str) -> list[Document]:
    return list(yaml.load_all(text, yaml.CSafeLoader))


def _pods(where: str, document: Document) -> Iterator[Pod]:
    kind, spec = document["kind"], document.get("spec", {})
    claims = tuple(claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", []))
    if kind == "Pod":
        yield Pod(where, kind, document["metadata"].get("labels", {}), spec)
    elif kind in ("Deployment", "StatefulSet", "Job", "DaemonSet"):
        yield _templated(where, kind, spec["template"], claims=claims)
    elif kind == "CronJob":
        yield _templated(where, kind, spec["jobTemplate"]["spec"]["template"])
    elif kind in ("RayCluster", "RayJob"):
        yield from _of_ray(where, document)


def _templated(where: str, kind: str, template: Document, **more: Any) -> Pod:
    return Pod(where, kind, template["metadata"].get("labels", {}), template["spec"], **more)


def _of_ray(where: str, document: Document) -> Iterator[Pod]:
    kind, cluster = document["kind"], cluster_spec(document)
    name = document["metadata"]["name"] + ("-abcde" if kind == "RayJob" else "")
    head = cluster["headGroupSpec"]
    added = (_autoscaler(cluster),) if cluster.get("enableInTreeAutoscaling") else ()
    yield _ray_pod(f"{where}, head", kind, name, head, ("head", "headgroup"), added)
    if "gcsFaultToleranceOptions" in cluster:
        yield _ray_pod(f"{where}, redis cleanup", kind, name, head, ("redis-cleanup", "headgroup"))
    for group in cluster["workerGroupSpecs"]:
        names = ("worker", group["groupName"])
        yield _ray_pod(f"{where}, {names[1]}", kind, name, group, names, (_waiting(group),))


def _ray_pod(
    where: str, kind: str, cluster: str, group: Document, names: tuple[str, str], added: tuple[Document, ...] = ()
) -> Pod:
    template = group["template"]
    labels = {
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        **template["metadata"].get("labels", {}),
        "ray.io/is-ray-node": "yes",
        "ray.io/cluster": cluster,
        "ray.io/node-type": names[0],
        "ray.io/group": names[1],
    }
    group_name = "head" if names[0] != "worker" else names[1]
    return Pod(where, kind, labels, template["spec"], added=added, group=group_name)


def _autoscaler(cluster: Document) -> Document:
    """What the operator puts beside Ray in the head's pod."""
    ray, options = cluster["headGroupSpec"]["template"]["spec"]["containers"][0], cluster.get("autoscalerOptions", {})
    taken = ("env", "envFrom", "resources", "securityContext", "volumeMounts", "imagePullPolicy")
    container = {key: deepcopy(options[key]) for key in taken if key in options}
    return {"name": "autoscaler", "image": options.get("image", ray["image"]), **container}


def _waiting(group: Document) -> Document:
    """The init container in which workers wait for the head."""
    ray = group["template"]["spec"]["containers"][0]
    taken = ("image", "imagePullPolicy", "securityContext", "env", "volumeMounts")
    few = {"cpu": "200m", "memory": "256Mi"}
    return {
        "name": "wait-gcs-ready",
        **{key: ray[key] for key in taken if key in ray},
        "resources": {"requests": few, "limits": few},
    }


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text below a value, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield from strings(below, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from strings(below, f"{path}[{index}]")


def environment(container: Document) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


def command(container: Document) -> list[str]:
    return [str(word) for word in (*container.get("command", ()), *container.get("args", ()))]


def doubled(names: Iterable[Any]) -> list[Any]:
    """What is there more than once."""
    return [name for name, times in Counter(names).items() if times > 1]
