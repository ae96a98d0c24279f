"""What KubeRay 1.7 finds wrong only when it has a cluster or a job before it, and what it does not find at all."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal

from tests.k8s.manifests import Document, Manifests, doubled, environment
from tests.k8s.schemas import amount

MANAGED = {  # environment that the operator sets itself
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_REDIS_ADDRESS",
    "REDIS_PASSWORD",
    "REDIS_USERNAME",
    "RAY_external_storage_namespace",
    "RAY_enable_autoscaler_v2",
    "RAY_CLUSTER_NAME",
    "RAY_CLUSTER_NAMESPACE",
    "RAY_PORT",
    "KUBERAY_GEN_RAY_START_CMD",
    "KUBERAY_GEN_AUTOSCALER_START_CMD",
}
STARTED = {"address", "block", "memory", "port", "metrics-export-port", "dashboard-host", "labels", "no-monitor"}
STARTED |= {"redis-password", "redis-username"}  # parameters of `ray start` that are its to say as well


def clusters(manifests: Manifests) -> Iterator[str]:
    for where, name, cluster in manifests.clusters:
        of_job = "RayJob" in where
        if len(name) > (47 if of_job else 53) or not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):
            yield f"{where}: a name that no RayCluster may have"
        yield from (f"{where}: {problem}" for problem in _of_cluster(cluster, of_job))
        groups = cluster["workerGroupSpecs"]
        yield from (f"{where}: groupName {name} twice" for name in doubled(group["groupName"] for group in groups))
        for group in groups:
            yield from (f"{where}, {group['groupName']}: {problem}" for problem in _of_group(group, cluster))
        for title, group in (("head", cluster["headGroupSpec"]), *((g["groupName"], g) for g in groups)):
            yield from (f"{where}, {title}: {problem}" for problem in _of_any(group))
    for where, document in manifests.named("RayCluster", "RayJob"):
        if document["apiVersion"] != "ray.io/v1":
            yield f"{where}: {document['apiVersion']} is not ray.io/v1"
        annotations = {key for key in document["metadata"].get("annotations", {}) if key.startswith("ray.io/")}
        if annotations:
            yield f"{where}: {sorted(annotations)} have fields in the spec"


def _of_cluster(cluster: Document, of_job: bool) -> Iterator[str]:
    head = cluster["headGroupSpec"]
    if head["rayStartParams"].get("num-cpus") != "0":
        yield "the head takes work"
    if cluster.get("authOptions", {}) != {"mode": "token"}:
        yield "no token authentication"
    for gated in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if gated in cluster:
            yield f"{gated} needs a feature gate of the operator"
    tolerance = cluster.get("gcsFaultToleranceOptions", {})
    if not tolerance.get("redisAddress") or "redisPassword" not in tolerance:
        yield "GCS fault tolerance without Redis or its password"
    if {"storage", "backend"} & set(tolerance):
        yield "GCS fault tolerance by another store than Redis"
    if of_job and "upgradeStrategy" in cluster:
        yield "upgradeStrategy is not a RayJob's to say"
    if cluster.get("enableInTreeAutoscaling"):
        options = cluster.get("autoscalerOptions", {})
        if options.get("version") != "v2":
            yield "the autoscaler is not v2"
        if options.get("idleTimeoutSeconds", 60) < 0:
            yield "idleTimeoutSeconds is negative"
    elif "autoscalerOptions" in cluster:
        yield "autoscalerOptions without enableInTreeAutoscaling"


def _of_group(group: Document, cluster: Document) -> Iterator[str]:
    least, most, now = (group.get(key) for key in ("minReplicas", "maxReplicas", "replicas"))
    if least is None or most is None or now is None or not 0 <= least <= now <= most:
        yield f"replicas {now} of {least} to {most}"
    elif not cluster.get("enableInTreeAutoscaling") and least != now:
        yield f"without the autoscaler {now} replicas stay {now}, not {least}"
    if group.get("suspend"):
        yield "suspended"
    autoscaled = cluster.get("enableInTreeAutoscaling")
    if not autoscaled and (group.get("priority", 0) != 0 or "idleTimeoutSeconds" in group):
        yield "priority or idleTimeoutSeconds without the autoscaler"


def _of_any(group: Document) -> Iterator[str]:
    template, parameters = group["template"], group["rayStartParams"]
    spec = template["spec"]
    container = spec["containers"][0]
    if not all(isinstance(value, str) for value in parameters.values()):
        yield f"rayStartParams {parameters} are not all texts"
    if not container["name"].startswith("ray-"):
        yield "the first container is not Ray's"
    yield from (f"rayStartParams.{name} is the operator's to say" for name in sorted(STARTED & set(parameters)))
    yield from (f"{name} is the operator's to say" for name in sorted(MANAGED & set(environment(container))))
    if "resources" in group or "labels" in group:
        yield "resources and labels belong into rayStartParams and the template"
    if spec.get("restartPolicy", "Never") != "Never":
        yield "restartPolicy has to be Never, or left out"
    if "command" in container or "args" in container:
        yield "a command of its own would come before ray start"
    for volume in spec.get("volumes", []):
        if volume.get("emptyDir", {}).get("medium", "") not in ("", "Memory"):
            yield f"emptyDir medium {volume['emptyDir']['medium']}"
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    patience = int(hook[-1]) if hook and hook[-1].isdigit() else 0
    if not 0 < patience < spec.get("terminationGracePeriodSeconds", 30):
        yield f"preStop takes {patience} of {spec.get('terminationGracePeriodSeconds', 30)} seconds"
    store = Decimal(parameters.get("object-store-memory", "0"))
    shared = [v["emptyDir"]["sizeLimit"] for v in spec["volumes"] if v.get("emptyDir", {}).get("medium") == "Memory"]
    if not shared or not 0 < store < amount(shared[0]):
        yield f"an object store of {store} bytes does not fit into /dev/shm, {shared}"
    if provided(group) is None:
        yield f"rayStartParams.resources is {parameters['resources']}, no JSON in quotes of the shell"


def provided(group: Document) -> dict[str, float] | None:
    """Custom resources that a group's pods have; None if they are not as `ray start` reads them, through bash."""
    text = group["rayStartParams"].get("resources")
    if text is None:
        return {}
    if not re.fullmatch(r'"(\{.*\})"', text, re.DOTALL):
        return None
    try:
        found: dict[str, float] = json.loads(text[1:-1].replace('\\"', '"'))
    except ValueError:
        return None
    return found


def jobs(manifests: Manifests) -> Iterator[str]:
    for where, document in manifests.named("RayJob"):
        yield from (f"{where}: {problem}" for problem in _of_job(document["spec"]))


def _of_job(spec: Document) -> Iterator[str]:
    if not spec.get("entrypoint", "").strip():
        yield "no entrypoint"
    if spec.get("submissionMode") != "HTTPMode":
        yield f"submissionMode {spec.get('submissionMode')}: only HTTPMode hangs on no log stream"
    if not spec.get("shutdownAfterJobFinishes") or spec.get("ttlSecondsAfterFinished", 0) <= 0:
        yield "its cluster is not taken down, or before anyone has seen its logs"
    if "deletionStrategy" in spec or "clusterSelector" in spec or "submitterPodTemplate" in spec:
        yield "deletionStrategy, clusterSelector or submitterPodTemplate"
    if "suspend" in spec:
        yield "suspend is Kueue's to say: each apply would suspend a job that runs"
    if spec.get("backoffLimit", 0) < 1:
        yield "no retries"
    for deadline in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(deadline, 1) <= 0:
            yield f"{deadline} is not positive"
    if spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
        yield "the autoscaler is for the standing cluster"
    try:
        wanted = json.loads(spec.get("entrypointResources", ""))
    except ValueError:
        wanted = None
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    if not isinstance(wanted, dict) or not wanted:
        yield "entrypointResources is no JSON"
    elif not any(_has(group, wanted) for group in groups):
        yield f"no worker provides {wanted}"


def _has(group: Document, wanted: Document) -> bool:
    there = provided(group) or {}
    return group["replicas"] > 0 and all(there.get(name, 0) >= number for name, number in wanted.items())
