"""A stand-in of Kubernetes' API server, 1.36 with KubeRay 1.7: what `kubectl apply` uses, and who else writes.

It stores objects with the defaults and the refusals of the real one (tests/k8s/objects.py). What it is asked and does
not know is kept in `unexpected`, by which tests fail: so it cannot be mistaken for more than it is.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.k8s.objects import Object, as_components, as_go_writes, builtin, changes, custom, stored, type_errors
from tests.k8s.patches import merged, strategically_merged

DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
OPEN_API_2 = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
REASONS = {400: "BadRequest", 404: "NotFound", 409: "AlreadyExists", 422: "Invalid"}


@dataclass(frozen=True)
class Resource:
    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def schema(self) -> Object:
        return custom(self.kind) if self.group == "ray.io" else builtin(self.group, self.version, self.kind)

    @property
    def path(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def called(self, name: str) -> str:
        """As messages name an object."""
        return f'{self.plural}{"." if self.group else ""}{self.group} "{name}"'


RESOURCES = [
    Resource("", "v1", "Namespace", "namespaces", False),
    Resource("", "v1", "ConfigMap", "configmaps"),
    Resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    Resource("", "v1", "Pod", "pods"),
    Resource("", "v1", "Service", "services"),
    Resource("", "v1", "ServiceAccount", "serviceaccounts"),
    Resource("apps", "v1", "Deployment", "deployments"),
    Resource("apps", "v1", "StatefulSet", "statefulsets"),
    Resource("batch", "v1", "CronJob", "cronjobs"),
    Resource("batch", "v1", "Job", "jobs"),
    Resource("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
    Resource("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Resource("rbac.authorization.k8s.io", "v1", "Role", "roles"),
    Resource("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"),
]
OF_KUBERAY = [
    Resource("ray.io", "v1", "RayCluster", "rayclusters"),
    Resource("ray.io", "v1", "RayJob", "rayjobs"),
]
Key = tuple[str, str, str]  # kind, namespace, name


class Refused(Exception):
    """`field`: the path of the one that a kind's validation refuses; `of`: that object's kind and name."""

    def __init__(self, code: int, message: str, of: tuple[str, str] = ("", ""), field: str = "") -> None:
        kind, name = of
        super().__init__(f'{kind} "{name}" is invalid: {field}: {message}' if kind else message)
        self.code = code
        self.details: Object = {"kind": kind, "name": name, "causes": [{"field": field, "message": message}]}


class Api:
    """`objects`: what is stored. `writes`: method, kind, name and body of each request that was not a question."""

    def __init__(self, kuberay: bool = True) -> None:
        self.resources = [*RESOURCES, *(OF_KUBERAY if kuberay else [])]
        self.objects: dict[Key, Object] = {}
        self.writes: list[tuple[str, str, str, Object]] = []
        self.unexpected: list[str] = []
        self._version = 100
        self._lock = threading.Lock()
        self._http = _server(self)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator["Api"]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            thread.join()
            self._http.server_close()

    def forget(self, objects: dict[Key, Object]) -> None:
        """Begins anew, with those objects."""
        self.objects, self.writes, self.unexpected = deepcopy(objects), [], []

    def of(self, kind: str, name: str, namespace: str = "verydeep") -> Object:
        return self.objects[kind, namespace, name]

    def answer(self, method: str, url: str, accept: str, content: str, body: bytes) -> tuple[int, str, Object | None]:
        """Status, content type and body."""
        path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
        with self._lock:
            try:
                if path == "/openapi/v2" and accept == OPEN_API_2:
                    return 200, accept.replace("@", "."), None  # an empty document: version 3 has all that is used
                if method == "GET" and (found := self._about(path, accept)):
                    return 200, *found
                return self._on_objects(method, path, query, content, json.loads(body or b"{}"))
            except Refused as error:
                return error.code, "application/json", _status(error)
            except Exception as error:  # of the stand-in itself: the test has to fail by it, not kubectl to try again
                self.unexpected.append(f"{method} {url} ({accept or content}): {error!r}")
                return 400, "application/json", _status(Refused(400, f"the stand-in does not know: {error!r}"))

    def _about(self, path: str, accept: str) -> tuple[str, Object] | None:
        if path in ("/api", "/apis") and DISCOVERY in accept.replace(" ", ""):
            groups = sorted({r.group for r in self.resources if bool(r.group) == (path == "/apis")})
            items = [self._group(group) for group in groups]
            return DISCOVERY, {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "items": items}
        if path == "/apis/apiextensions.k8s.io/v1/customresourcedefinitions":
            return "application/json", {"kind": "CustomResourceDefinitionList", "items": []}  # asked for unknown kinds
        if path == "/version":
            return "application/json", {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
        if path == "/openapi/v3":
            paths = {r.path.strip("/"): {"serverRelativeURL": f"/openapi/v3{r.path}"} for r in self.resources}
            return "application/json", {"paths": paths}
        if path.startswith("/openapi/v3/"):
            return "application/json", self._open_api(path.removeprefix("/openapi/v3"))
        return None

    def _group(self, group: str) -> Object:
        resources = [
            {
                "resource": r.plural,
                "responseKind": {"group": r.group, "version": r.version, "kind": r.kind},
                "scope": "Namespaced" if r.namespaced else "Cluster",
                "singularResource": r.kind.lower(),
                "verbs": VERBS,
            }
            for r in self.resources
            if r.group == group
        ]
        return {"metadata": {"name": group}, "versions": [{"version": "v1", "resources": resources}]}

    def _open_api(self, path: str) -> Object:
        """What kubectl looks for: that the server validates fields itself, and by which keys lists are merged."""
        operations, schemas = {}, {}
        for r in (r for r in self.resources if r.path == path):
            content = {} if r.group == "ray.io" else {"application/strategic-merge-patch+json": {}}
            operations[f"{r.path}{'/namespaces/{namespace}' if r.namespaced else ''}/{r.plural}/{{name}}"] = {
                "patch": {
                    "parameters": [{"name": "fieldValidation", "in": "query"}],
                    "requestBody": {"content": {"application/merge-patch+json": {}, **content}},
                    "x-kubernetes-group-version-kind": {"group": r.group, "version": r.version, "kind": r.kind},
                }
            }
            schemas |= as_components(r.schema) if content else {}
        info = {"title": "Kubernetes", "version": "v1.36.0"}
        return {"openapi": "3.0.0", "info": info, "paths": operations, "components": {"schemas": schemas}}

    def _on_objects(
        self, method: str, path: str, query: dict[str, list[str]], content: str, body: Object
    ) -> tuple[int, str, Object]:
        resource, namespace, name = self._found(path)
        strict = query.get("fieldValidation") == ["Strict"]
        if method != "GET":
            self.writes.append((method, resource.kind, name or body["metadata"]["name"], body))
            assert strict, "kubectl did not ask for strict validation"
        if method == "POST" and not name:
            return 201, "application/json", self._create(resource, namespace, body)
        assert name, "lists are not known here"
        key = (resource.kind, namespace, name)
        if key not in self.objects:
            raise Refused(404, f"{resource.called(name)} not found")
        if method == "PATCH":
            return 200, "application/json", self._patch(resource, key, content, body)
        assert method == "GET", "this method is not known here"
        return 200, "application/json", self.objects[key]

    def _found(self, path: str) -> tuple[Resource, str, str]:
        """The kind that a path is of, the namespace and the object's name, or ""."""
        for resource in self.resources:
            prefix = f"{resource.path}/"
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            namespace = parts[1] if resource.namespaced and parts[0] == "namespaces" and len(parts) > 2 else ""
            plural, *rest = parts[2:] if namespace else parts
            if plural == resource.plural and bool(namespace) == resource.namespaced and len(rest) <= 1:
                return resource, namespace, rest[0] if rest else ""
        raise LookupError("no such path")

    def _create(self, resource: Resource, namespace: str, body: Object) -> Object:
        if namespace and ("Namespace", "", namespace) not in self.objects:
            raise Refused(404, f'namespaces "{namespace}" not found')
        key = (resource.kind, namespace, body["metadata"]["name"])
        if key in self.objects:
            raise Refused(409, f"{resource.called(key[2])} already exists")
        document = self._checked(resource, body)
        uid = f"00000000-0000-4000-8000-{len(self.objects):012}"
        document["metadata"] |= {"uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1}
        _complete(resource.kind, document)
        return self._store(key, document)

    def _patch(self, resource: Resource, key: Key, content: str, patch: Object) -> Object:
        before = self.objects[key]
        if content == "application/merge-patch+json":
            after = merged(before, patch)
        else:
            assert content == "application/strategic-merge-patch+json", "this kind of patch is not known here"
            assert resource.group != "ray.io", "custom resources take no strategic merge patch"
            after = strategically_merged(before, patch, resource.schema)
        after = self._checked(resource, after)
        refused = [path for path in changes(before.get("spec"), after.get("spec"), "spec") if _fixed(key[0], path)]
        if key[0] == "RoleBinding":
            refused += changes(before["roleRef"], after["roleRef"], "roleRef")
        if refused:
            raise Refused(422, "field is immutable", (resource.kind, key[2]), refused[0])
        return self._store(key, after)

    def _checked(self, resource: Resource, document: Object) -> Object:
        kept, unknown = stored(document, resource.schema)
        if unknown:
            fields = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise Refused(400, f"{resource.kind} in version {resource.version!r} cannot be handled: {fields}")
        wrong = type_errors(document, resource.schema)
        if wrong:
            raise Refused(422, wrong[0][1], (resource.kind, document["metadata"]["name"]), wrong[0][0])
        return kept

    def _store(self, key: Key, document: Object) -> Object:
        if document == self.objects.get(key):
            return document  # as the real one, which then writes nothing
        self._version += 1
        document["metadata"]["resourceVersion"] = str(self._version)
        self.objects[key] = document
        return document

    def settle(self) -> None:
        """What controllers and KubeRay's operator write, when all has come up."""
        with self._lock:
            for key, document in list(self.objects.items()):
                self._store(key, _settled(key[0], deepcopy(document)))

    def scaled(self, name: str, replicas: int, leaving: list[str]) -> None:
        """What Ray's autoscaler does to the first group of workers of a RayCluster."""
        with self._lock:
            document = deepcopy(self.of("RayCluster", name))
            group = document["spec"]["workerGroupSpecs"][0]
            group |= {"replicas": replicas, "scaleStrategy": {"workersToDelete": leaving}}
            self._store(("RayCluster", "verydeep", name), document)


def _complete(kind: str, document: Object) -> None:
    """What the server itself adds to a new object beside defaults."""
    metadata, spec = document["metadata"], document.get("spec", {})
    if kind == "Namespace":
        metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = metadata["name"]
        document["spec"] = {"finalizers": ["kubernetes"]}
    elif kind == "Job":
        labels = {
            "batch.kubernetes.io/controller-uid": metadata["uid"],
            "batch.kubernetes.io/job-name": metadata["name"],
        }
        spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": metadata["uid"]}}
        spec["template"]["metadata"].setdefault("labels", {}).update(labels)
    elif kind == "PersistentVolumeClaim":
        spec.setdefault("storageClassName", "standard")
        metadata["finalizers"] = ["kubernetes.io/pvc-protection"]
    elif kind == "Pod":
        away = [{"key": f"node.kubernetes.io/{key}", "operator": "Exists"} for key in ("not-ready", "unreachable")]
        spec.setdefault("tolerations", []).extend({**t, "effect": "NoExecute", "tolerationSeconds": 300} for t in away)
        spec |= {"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}


def _settled(kind: str, document: Object) -> Object:
    metadata, spec = document["metadata"], document.get("spec", {})
    if kind == "Namespace":
        document["status"] = {"phase": "Active"}
    elif kind == "PersistentVolumeClaim":
        metadata.setdefault("annotations", {})["pv.kubernetes.io/bind-completed"] = "yes"
        spec["volumeName"] = f"pvc-{metadata['uid']}"
        document["status"] = {
            "phase": "Bound",
            "accessModes": spec["accessModes"],
            "capacity": spec["resources"]["requests"],
        }
    elif kind == "Pod":
        spec["nodeName"] = "node-1"
        document["status"] = {"phase": "Running"}
    elif kind in ("Deployment", "StatefulSet"):
        if kind == "Deployment":
            metadata.setdefault("annotations", {})["deployment.kubernetes.io/revision"] = "1"
        document["status"] = {"observedGeneration": 1, "replicas": 1, "readyReplicas": 1}
    elif kind == "Job":
        document["status"] = {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}
    elif kind == "PodDisruptionBudget":
        document["status"] = {"currentHealthy": 1, "desiredHealthy": 1, "disruptionsAllowed": 0, "expectedPods": 1}
    elif kind == "RayCluster":
        metadata["finalizers"] = ["ray.io/gcs-ft-redis-cleanup-finalizer"]
        document["spec"] = _written_by_kuberay(spec)
        document["status"] = {"state": "ready", "observedGeneration": 1}
    elif kind == "RayJob":
        metadata["finalizers"] = ["ray.io/rayjob-finalizer"]
        spec["rayClusterSpec"] = _written_by_kuberay(spec["rayClusterSpec"])
        document["status"] = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    return document


def _written_by_kuberay(spec: Object) -> Object:
    """A cluster as KubeRay's types write it: they do so with all of it, when the operator adds its finalizer."""
    groups = spec.get("workerGroupSpecs", [])
    for group in [spec["headGroupSpec"], *groups]:
        group["template"] = as_go_writes(group["template"], "core.v1.PodTemplateSpec")
    for group in groups:
        group.setdefault("scaleStrategy", {})
    options = spec.get("autoscalerOptions", {})
    for key, definition in (("resources", "ResourceRequirements"), ("securityContext", "SecurityContext")):
        if key in options:
            options[key] = as_go_writes(options[key], f"core.v1.{definition}")
    return spec


_MUTABLE = {  # fields of a spec that may change; of other kinds all may
    "Job": ("activeDeadlineSeconds", "backoffLimit", "parallelism", "suspend", "ttlSecondsAfterFinished"),
    "StatefulSet": (
        "minReadySeconds",
        "ordinals",
        "persistentVolumeClaimRetentionPolicy",
        "replicas",
        "revisionHistoryLimit",
        "template",
        "updateStrategy",
    ),
    "PersistentVolumeClaim": ("resources", "volumeAttributesClassName"),
    "Pod": ("activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations"),
}
_FIXED = {"Deployment": ("selector",), "Service": ("clusterIP", "clusterIPs")}


def _fixed(kind: str, path: str) -> bool:
    """Whether the API server refuses that the field at a path, as spec.selector.matchLabels, is changed."""
    field = path.split(".")[1].partition("[")[0]
    if kind == "Pod" and field in ("containers", "initContainers") and path.endswith(".image"):
        return False
    return field not in _MUTABLE[kind] if kind in _MUTABLE else field in _FIXED.get(kind, ())


def _status(error: Refused) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": str(error),
        "reason": REASONS[error.code],
        "details": error.details,
        "code": error.code,
    }


def _server(api: Api) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = (self.headers.get("Accept", ""), self.headers.get("Content-Type", ""))
            code, content, answer = api.answer(self.command, self.path, *asked, body)
            data = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", content)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

        def log_message(self, *_: Any) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)
