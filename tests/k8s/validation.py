"""What the API server refuses beyond its published schemas, which know no choices, patterns or rules across fields.

Pods inside custom resources are checked by nobody until the operator makes them; here they are like all others.
"""

import ipaddress
import re
from collections.abc import Iterator
from typing import Any
from zoneinfo import available_timezones

from tests.k8s.manifests import Document, Manifests, Pod, doubled, place

CHOICES: dict[str, set[Any]] = {
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "concurrencyPolicy": {"Allow", "Forbid", "Replace"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "medium": {"", "Memory"},
    "operator": {"Exists", "Equal", "In", "NotIn", "DoesNotExist"},
    "policyTypes": {"Ingress", "Egress"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
    "unhealthyPodEvictionPolicy": {"IfHealthyBudget", "AlwaysAllow"},
    "upscalingMode": {"Default", "Aggressive", "Conservative"},
    "volumeMode": {"Filesystem", "Block"},
    "whenDeleted": {"Retain", "Delete"},
    "whenScaled": {"Retain", "Delete"},
}
RESTARTS = {"Job": {"OnFailure", "Never"}, "CronJob": {"OnFailure", "Never"}}
AT_LEAST = {  # fields that are numbers, by the least that is allowed
    "activeDeadlineSeconds": 1,
    "backoffLimit": 0,
    "failureThreshold": 1,
    "initialDelaySeconds": 0,
    "periodSeconds": 1,
    "startingDeadlineSeconds": 0,
    "terminationGracePeriodSeconds": 0,
    "timeoutSeconds": 1,
    "ttlSecondsAfterFinished": 0,
}
LABEL = re.compile("([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
PORT_NAME = re.compile("(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
CRON = re.compile(r"([\d*/,-]+ ){4}[\d*/,-]+")


def validation(manifests: Manifests) -> Iterator[str]:
    for file, document in manifests.documents:
        yield from (f"{place(file, document)}: {problem}" for problem in _of_fields(document))
    for pod in manifests.pods:
        yield from (f"{pod.where}: {problem}" for problem in _of_pod(pod))
    for where, document in manifests.named("CronJob"):
        spec = document["spec"]
        if not CRON.fullmatch(spec["schedule"]):
            yield f"{where}: schedule {spec['schedule']}"
        if spec.get("timeZone") not in available_timezones():
            yield f"{where}: timeZone {spec.get('timeZone')}"
        if len(document["metadata"]["name"]) > 52:
            yield f"{where}: its Jobs' names would be too long"
    for where, document in manifests.named("PodDisruptionBudget"):
        if ("minAvailable" in document["spec"]) == ("maxUnavailable" in document["spec"]):
            yield f"{where}: either minAvailable or maxUnavailable"
    for where, document in manifests.named("ConfigMap"):
        yield from (f"{where}: key {key}" for key in document["data"] if not re.fullmatch("[-._A-Za-z0-9]+", key))
    for where, document in manifests.named("Service"):
        ports = document["spec"]["ports"]
        if doubled(port["name"] for port in ports) or doubled((port["port"], port.get("protocol")) for port in ports):
            yield f"{where}: a port twice"


def _of_fields(value: Any) -> Iterator[str]:
    """By the fields' names, wherever they are."""
    if isinstance(value, list):
        for item in value:
            yield from _of_fields(item)
    elif isinstance(value, dict):
        for key, below in value.items():
            yield from _of_field(key, below)
            yield from _of_fields(below)


def _of_field(key: str, value: Any) -> Iterator[str]:
    if key in CHOICES:
        for chosen in value if isinstance(value, list) else [value]:
            if chosen not in CHOICES[key]:
                yield f"{key} {chosen}"
    elif key in AT_LEAST:
        if isinstance(value, int) and value < AT_LEAST[key]:
            yield f"{key} {value}"
    elif key in ("labels", "matchLabels", "nodeSelector"):
        for name, label in value.items():
            if not KEY.fullmatch(name) or not isinstance(label, str) or not LABEL.fullmatch(label):
                yield f"{key} {name}: {label}"
    elif key == "annotations":
        yield from (f"annotation {name}" for name, text in value.items() if not isinstance(text, str))
    elif key in ("requests", "limits"):
        yield from (f"{key} {name}: {q}" for name, q in value.items() if not QUANTITY.fullmatch(str(q)))
    elif key == "sizeLimit":
        if not QUANTITY.fullmatch(str(value)):
            yield f"sizeLimit {value}"
    elif key == "cidr":
        try:
            ipaddress.ip_network(value)
        except ValueError as error:
            yield f"cidr {error}"


def _of_pod(pod: Pod) -> Iterator[str]:
    restart = pod.spec.get("restartPolicy", "Always")
    if restart not in RESTARTS.get(pod.kind, {"Always"} if pod.kind in ("Deployment", "StatefulSet") else {restart}):
        yield f"restartPolicy {restart} of a {pod.kind}"
    yield from (f"container {name} twice" for name in doubled(container["name"] for container in pod.containers))
    ports = [port for container in pod.containers for port in container.get("ports", [])]
    yield from (f"port {name} twice" for name in doubled(port["name"] for port in ports))
    for port in ports:
        if not PORT_NAME.fullmatch(port["name"]) or len(port["name"]) > 15:
            yield f"a port's name is {port['name']}"
    for toleration in pod.spec.get("tolerations", []):
        if toleration.get("operator") == "Exists" and "value" in toleration:
            yield "a toleration with Exists takes no value"
    for container in pod.containers:
        yield from (f"{container['name']}: {problem}" for problem in _of_container(container))


def _of_container(container: Document) -> Iterator[str]:
    yield from (f"env {name} twice" for name in doubled(entry["name"] for entry in container.get("env", [])))
    for entry in container.get("env", []):
        if ("value" in entry) == ("valueFrom" in entry):
            yield f"env {entry['name']}: either value or valueFrom"
    for mount in container.get("volumeMounts", []):
        if not mount["mountPath"].startswith("/") or ":" in mount["mountPath"]:
            yield f"mountPath {mount['mountPath']}"
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        if kind in container:
            probe = container[kind]
            if len({"exec", "httpGet", "tcpSocket", "grpc"} & set(probe)) != 1:
                yield f"{kind}: exactly one of exec, httpGet, tcpSocket and grpc"
            if kind != "readinessProbe" and probe.get("successThreshold", 1) != 1:
                yield f"{kind}: successThreshold has to be 1"
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is False and security.get("privileged"):
        yield "privileged without escalation of privileges"
