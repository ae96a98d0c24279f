"""Objects as Kubernetes 1.36 stores them: with defaults, without unknown fields, in the form that Go's types write.

Built-in kinds go by Kubernetes' own schemas (package kubernetes-validate), which name fields, quantities and the keys
by which lists are merged, but no defaults: those are here, for the kinds and fields that the manifests use. Custom
resources go by the schemas of their definitions, defaults included.
"""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from importlib import resources
from typing import Any

import jsonschema

from tests.k8s.schemas import crd, shortest

Object = dict[str, Any]
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_PACKAGES = {"": "core", "networking.k8s.io": "networking", "rbac.authorization.k8s.io": "rbac"}


@cache
def definitions() -> dict[str, Object]:
    file = resources.files("kubernetes_validate") / "kubernetes-json-schema/v1.36.0-local/_definitions.json"
    loaded: dict[str, Object] = json.loads(file.read_text(encoding="utf-8"))["$defs"]
    return loaded


def builtin(group: str, version: str, kind: str) -> Object:
    return {"$ref": f"#/$defs/io.k8s.api.{_PACKAGES.get(group, group)}.{version}.{kind}"}


def resolved(schema: Object) -> tuple[str, Object]:
    """The name of a definition that is referred to, or "", and the schema itself."""
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    return (name, definitions()[name]) if name else ("", schema)


@cache
def custom(kind: str) -> Object:
    """The schema of ray.io/v1's RayCluster or RayJob."""
    schema = crd(kind, "v1")
    assert schema is not None
    metadata = {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    return {**schema, "properties": {**schema["properties"], "metadata": metadata}}


def stored(document: Object, schema: Object) -> tuple[Object, list[str]]:
    """What is kept of a document, and the paths of fields that its kind does not have."""
    unknown: list[str] = []
    return _decoded(document, schema, "", unknown, True), unknown


def as_go_writes(value: Any, definition: str) -> Any:
    """What comes of a value that a program in Go reads into Kubernetes' type and writes back: no defaults."""
    return _decoded(value, {"$ref": f"#/$defs/io.k8s.api.{definition}"}, "", [], False)


def type_errors(document: Object, schema: Object) -> list[tuple[str, str]]:
    """The path and what is wrong there."""
    errors = _validator(json.dumps(schema)).iter_errors(document)
    return [(".".join(map(str, error.path)), error.message) for error in errors]


@cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$defs": definitions(), **json.loads(schema)})


def as_components(schema: Object) -> dict[str, Object]:
    """The definitions that a schema needs, as the API server shows them: OpenAPI's components."""
    found: dict[str, Object] = {}
    waiting = [resolved(schema)[0]]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = {"type": "string"} if name == _QUANTITY else _component(definitions()[name], waiting)
    return found


def _component(part: Any, waiting: list[str]) -> Any:
    """Without descriptions and nulls among types; names that it refers to are added to `waiting`."""
    if isinstance(part, list):
        return [_component(item, waiting) for item in part]
    if not isinstance(part, dict):
        return part
    result = {k: _component(v, waiting) for k, v in part.items() if k != "description" or not isinstance(v, str)}
    if isinstance(part.get("type"), list):
        result["type"] = part["type"][0]
    if "$ref" in part:
        name = part["$ref"].removeprefix("#/$defs/")
        waiting.append(name)
        result["$ref"] = f"#/components/schemas/{name}"
    return result


def _decoded(value: Any, schema: Object, path: str, unknown: list[str], defaults: bool) -> Any:
    name, schema = resolved(schema)
    if name == _QUANTITY:
        return shortest(value)
    if isinstance(value, list):
        items = schema.get("items", {})
        return [_decoded(item, items, f"{path}[{index}]", unknown, defaults) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "properties" not in schema:
        others = schema.get("additionalProperties", {})
        return {key: _decoded(item, others, f"{path}.{key}", unknown, defaults) for key, item in value.items()}
    short = name.rpartition(".")[2]
    known = schema["properties"]
    if not schema.get("x-kubernetes-preserve-unknown-fields"):
        unknown += [f"{path}.{key}".lstrip(".") for key in value if key not in known]
    kept = {key: deepcopy(item) for key, item in value.items() if key in known and item is not None}
    if defaults:
        _add(kept, {key: part["default"] for key, part in known.items() if "default" in part})
        _add(kept, DEFAULTS.get(short, lambda _: {})(kept))
    if name:
        _add(kept, {key: {} for key in _WRITTEN_EMPTY.get(short, ())})
        required = schema.get("required", ())
        kept = {key: item for key, item in kept.items() if key in required or not _left_out(key, item, known[key])}
    return {
        key: _decoded(item, known[key], f"{path}.{key}".lstrip("."), unknown, defaults) for key, item in kept.items()
    }


def _add(value: Object, more: Object) -> None:
    for key, item in more.items():
        value.setdefault(key, deepcopy(item))


# What Go leaves out: empty texts, lists and maps, and numbers and truth values that are not behind a pointer.
_POINTERS_TO_TEXT = {"storageClassName"}
_PLAIN = {"hostNetwork", "hostPID", "hostIPC", "readOnly", "tty", "stdin", "stdinOnce", "publishNotReadyAddresses"}
_PLAIN |= {"initialDelaySeconds", "periodSeconds", "timeoutSeconds", "successThreshold", "failureThreshold"}
_PLAIN |= {"minReadySeconds", "hostPort", "nodePort"}
_WRITTEN_EMPTY = {  # structures that are no pointers
    "Container": ["resources"],
    "PodTemplateSpec": ["metadata", "spec"],
    "PersistentVolumeClaimSpec": ["resources"],
    "NetworkPolicySpec": ["podSelector"],
}


def _left_out(key: str, value: Any, schema: Object) -> bool:
    if value == "":
        return key not in _POINTERS_TO_TEXT
    if value == []:
        return True
    if value == {}:
        return "additionalProperties" in resolved(schema)[1]
    return key in _PLAIN and not value


def _image_policy(container: Object) -> str:
    tag = container["image"].rpartition("/")[2].partition(":")[2]
    return "Always" if tag in ("", "latest") else "IfNotPresent"


def _container(container: Object) -> Object:
    return {
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": _image_policy(container),
    }


def _pod(spec: Object) -> Object:
    account = {"serviceAccount": spec["serviceAccountName"]} if "serviceAccountName" in spec else {}
    return {
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "terminationGracePeriodSeconds": 30,
        "schedulerName": "default-scheduler",
        "securityContext": {},
        **account,
    }


def _deployment(spec: Object) -> Object:
    rolling = {"maxSurge": "25%", "maxUnavailable": "25%"}
    if spec.get("strategy", {}).get("type", "RollingUpdate") == "RollingUpdate":
        spec["strategy"] = {"type": "RollingUpdate", "rollingUpdate": rolling, **spec.get("strategy", {})}
    return {"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600}


def _stateful_set(spec: Object) -> Object:
    for claim in spec.get("volumeClaimTemplates", []):
        _add(claim, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "status": {"phase": "Pending"}})
    return {
        "replicas": 1,
        "podManagementPolicy": "OrderedReady",
        "revisionHistoryLimit": 10,
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
    }


def _service(spec: Object) -> Object:
    address = spec.get("clusterIP", "10.96.0.17")
    for port in spec["ports"]:
        _add(port, {"protocol": "TCP", "targetPort": port["port"]})
    return {
        "type": "ClusterIP",
        "clusterIP": address,
        "clusterIPs": [address],
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
        "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster",
    }


DEFAULTS: dict[str, Callable[[Object], Object]] = {
    "Container": _container,
    "ContainerPort": lambda _: {"protocol": "TCP"},
    "PodSpec": _pod,
    "Probe": lambda _: {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
    "HTTPGetAction": lambda _: {"path": "/", "scheme": "HTTP"},
    "ObjectFieldSelector": lambda _: {"apiVersion": "v1"},
    "ConfigMapVolumeSource": lambda _: {"defaultMode": 420},
    "SecretVolumeSource": lambda _: {"defaultMode": 420},
    "ProjectedVolumeSource": lambda _: {"defaultMode": 420},
    "HostPathVolumeSource": lambda _: {"type": ""},
    "DeploymentSpec": _deployment,
    "StatefulSetSpec": _stateful_set,
    "ServiceSpec": _service,
    "PersistentVolumeClaimSpec": lambda _: {"volumeMode": "Filesystem"},
    "JobSpec": lambda _: {
        "backoffLimit": 6,
        "completionMode": "NonIndexed",
        "suspend": False,
        "podReplacementPolicy": "TerminatingOrFailed",
        "completions": 1,
        "parallelism": 1,
    },
    "CronJobSpec": lambda _: {
        "concurrencyPolicy": "Allow",
        "suspend": False,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 1,
    },
    "NetworkPolicySpec": lambda spec: {"policyTypes": ["Ingress", *(["Egress"] if "egress" in spec else [])]},
    "NetworkPolicyPort": lambda _: {"protocol": "TCP"},
    "RoleRef": lambda _: {"apiGroup": "rbac.authorization.k8s.io"},
}


def changes(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """The paths at which two values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            yield from changes(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from changes(old, new, f"{path}[{index}]")
    elif before != after:
        yield path
