"""Documents against Kubernetes' and KubeRay's schemas, and what a second `kubectl apply` would find different."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.k8s.manifests import ROOT, Document, Manifests, cluster_spec, doubled, place

KUBERNETES = "1.36"
# Read once, not for each document: with all definitions it is some MB of JSON.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)
WORDS = re.compile("y|n|yes|no|on|off", re.IGNORECASE)  # booleans to kubectl, whose YAML is 1.1


def plain_yaml(manifests: Manifests) -> Iterator[str]:
    """Keys given twice, and words that kubectl reads as booleans where others read text."""
    for file, text in manifests.texts.items():
        for document in yaml.compose_all(text, yaml.CSafeLoader):
            for problem in _of_node(document):
                yield f"{file}:{problem}"


def _of_node(node: yaml.Node) -> Iterator[str]:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        if not node.style and WORDS.fullmatch(node.value):
            yield f"{line}: {node.value} has to be quoted"
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _of_node(item)
    elif isinstance(node, yaml.MappingNode):
        for key in doubled(key.value for key, _ in node.value):
            yield f"{line}: {key} twice"
        for key, value in node.value:
            yield from _of_node(key)
            yield from _of_node(value)


def kubernetes(manifests: Manifests) -> Iterator[str]:
    """Kubernetes' own kinds, strictly; pods of custom resources as pods."""
    for file, document in manifests.documents:
        if "." not in document["apiVersion"].split("/")[0] or document["apiVersion"].split("/")[0].endswith("k8s.io"):
            yield from _against_kubernetes(place(file, document), document)
    for pod in manifests.pods:
        if pod.kind in ("RayCluster", "RayJob"):
            # The operator adds containers; init containers are among them.
            spec = {**pod.spec, "containers": [*pod.spec["containers"], *pod.added]}
            metadata = {"name": "pod", "labels": dict(pod.labels)}
            yield from _against_kubernetes(
                pod.where, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
            )
            for entry in (entry for container in pod.containers for entry in container.get("env", [])):
                if not isinstance(entry.get("value", ""), str):
                    yield f"{pod.where}: env {entry['name']} is no text"


def _against_kubernetes(where: str, document: Document) -> Iterator[str]:
    problem = _first_problem(json.dumps(document))
    if problem:
        yield f"{where}: {problem}"


@cache
def _first_problem(text: str) -> str:
    try:
        kubernetes_validate.validate(json.loads(text), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return error.message
    return ""


def crd_folder() -> Path | None:
    """KubeRay's definitions are not part of this repository; they lie in a folder `shared` beside it, if anywhere."""
    folders = [parent / "shared" / "kuberay" for parent in ROOT.parents]
    return next((folder for folder in folders if list(folder.glob("ray.io_*.yaml"))), None)


@cache
def crd(kind: str, version: str) -> Document | None:
    folder = crd_folder()
    assert folder is not None
    definition = yaml.load((folder / f"ray.io_{kind.lower()}s.yaml").read_text(), yaml.CSafeLoader)
    for candidate in definition["spec"]["versions"]:
        if candidate["name"] == version and candidate["served"]:
            schema: Document = candidate["schema"]["openAPIV3Schema"]
            return schema
    return None


@cache
def _strict(kind: str, version: str) -> jsonschema.Draft202012Validator:
    schema = crd(kind, version)
    assert schema is not None
    root = _closed(schema)
    root["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(root)


def _closed(schema: Any) -> Any:
    """The schema with unknown fields forbidden, as the API server prunes them, and its own words in JSON Schema's."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {key: _closed(part) for key, part in schema.items() if key != "properties"}
    if isinstance(schema.get("properties"), dict):
        closed["properties"] = {name: _closed(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
    return closed


def custom_resources(manifests: Manifests) -> Iterator[str]:
    for where, document in manifests.named("RayCluster", "RayJob"):
        version = document["apiVersion"].removeprefix("ray.io/")
        if crd(document["kind"], version) is None:
            yield f"{where}: no such version {document['apiVersion']}"
            continue
        yield from (f"{where}: {problem}" for problem in _against_crd(document["kind"], version, json.dumps(document)))


@cache
def _against_crd(kind: str, version: str, text: str) -> list[str]:
    errors = _strict(kind, version).iter_errors(json.loads(text))
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in errors]


def written_out(manifests: Manifests) -> Iterator[str]:
    """What a server adds inside lists that kubectl replaces as a whole makes a second apply change what nobody changed.

    kubectl merges a custom resource's mappings and replaces its lists. Of Kubernetes' own kinds a StatefulSet's claims
    and a NetworkPolicy's rules are such lists with defaults. `scaleStrategy: {}` is what KubeRay's Go types write
    whenever the operator updates a RayCluster, as for its finalizer. Quantities are stored in their shortest form.
    """
    for where, document in manifests.named("RayCluster", "RayJob"):
        schema = crd(document["kind"], document["apiVersion"].removeprefix("ray.io/"))
        if schema is not None:
            yield from (f"{where}: {path} is left out" for path in _left_out(schema, document, "", False))
        for group in cluster_spec(document)["workerGroupSpecs"]:
            if "scaleStrategy" not in group:
                yield f"{where}: scaleStrategy of {group['groupName']} is left out"
    for where, document in manifests.named("StatefulSet"):
        for claim in document["spec"].get("volumeClaimTemplates", []):
            whole = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "status": {"phase": "Pending"}}
            if any(claim.get(key) != value for key, value in whole.items()) or "volumeMode" not in claim["spec"]:
                yield f"{where}: claim {claim['metadata']['name']}: apiVersion, kind, volumeMode or status is left out"
    for where, document in manifests.named("NetworkPolicy"):
        for rule in (*document["spec"].get("ingress", []), *document["spec"].get("egress", [])):
            if any("protocol" not in port for port in rule.get("ports", [])):
                yield f"{where}: a port's protocol is left out"
    for file, document in manifests.documents:
        for path, quantity in _quantities(document, ""):
            if shortest(quantity) != quantity:
                yield f"{place(file, document)}: {path}: {quantity!r} is stored as {shortest(quantity)!r}"


def _left_out(schema: Document, value: Any, path: str, in_list: bool) -> Iterator[str]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _left_out(schema.get("items", {}), item, f"{path}[{index}]", True)
    elif isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if name in value:
                yield from _left_out(part, value[name], f"{path}.{name}".lstrip("."), in_list)
            elif in_list and "default" in part:
                yield f"{path}.{name}"
        other = schema.get("additionalProperties")
        if isinstance(other, dict):
            for name, item in value.items():
                yield from _left_out(other, item, f"{path}.{name}", in_list)


_SIZES = ("requests", "limits")


def _quantities(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, below in value.items():
            if key in _SIZES and isinstance(below, dict):
                yield from ((f"{path}.{key}.{name}".lstrip("."), quantity) for name, quantity in below.items())
            elif key == "sizeLimit":
                yield f"{path}.{key}", below
            else:
                yield from _quantities(below, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _quantities(below, f"{path}[{index}]")


_UNITS = {"m": Decimal("0.001"), "": Decimal(1), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9)}
_UNITS |= {"T": Decimal(10**12)}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def amount(quantity: Any) -> Decimal:
    """What a quantity comes to: cores, bytes or pieces."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    assert found, f"{quantity!r} is no quantity"
    return Decimal(found[1]) * Decimal({**_UNITS, **_BINARY}[found[2]])


def shortest(quantity: Any) -> str:
    """As Kubernetes writes it: the largest unit of its family that leaves a whole number."""
    value, binary = amount(quantity), str(quantity).endswith("i")
    units = {"": 1, **_BINARY} if binary else _UNITS
    for unit, size in sorted(units.items(), key=lambda item: -Decimal(item[1])):
        whole = value / Decimal(size)
        if whole == whole.to_integral_value():
            return f"{int(whole)}{unit}"
    return str(quantity)


def names(manifests: Manifests) -> Iterator[str]:
    """Everything lies in the one namespace, under a name of its own, and the namespace comes first."""
    kinds = [
        (file, d["kind"], d["apiVersion"].split("/")[0], d["metadata"].get("name")) for file, d in manifests.documents
    ]
    if kinds[0][1] != "Namespace":
        yield f"{kinds[0][0]}: the Namespace has to come first, kubectl goes by the files' names"
    for kind in doubled(kind[1:] for kind in kinds):
        yield f"{kind[0]} {kind[2]} is there twice"
    for file, document in manifests.documents:
        where, metadata = f"{file}: {document['kind']} {document['metadata'].get('name')}", document["metadata"]
        if "generateName" in str(document):
            yield f"{where}: generateName cannot be applied"
        if not re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", metadata.get("name", "")):
            yield f"{where}: no name for every kind of object"
        if (document["kind"] == "Namespace") == (metadata.get("namespace") == "verydeep"):
            yield f"{where}: the namespace is {metadata.get('namespace')}"
        if metadata.get("labels", {}).get("app.kubernetes.io/part-of") != "verydeep":
            yield f"{where}: the label app.kubernetes.io/part-of is missing"
        if "status" in document:
            yield f"{where}: a status is not ours to say"
