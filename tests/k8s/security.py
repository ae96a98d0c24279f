"""Pod Security `restricted`, and what this project asks beyond it."""

from collections.abc import Iterator

from tests.k8s.manifests import ROOT, Document, Manifests, Pod, environment
from tests.k8s.schemas import amount

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}
SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
WITH_TOKEN = {"bootstrap", "ray-head"}  # the accounts whose pods talk to the API
FOREIGN = {"postgres", "redis", "valkey"}  # images of others, beside the one of this project


def restricted(manifests: Manifests) -> Iterator[str]:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, Linux; both levels, in the page's order."""
    for pod in manifests.pods:
        yield from (f"{pod.where}: {problem}" for problem in _of_pod(pod))
        for container in pod.containers:
            where, own = f"{pod.where}, {container['name']}", container.get("securityContext", {})
            yield from (f"{where}: {problem}" for problem in _of_container(container, own))
            yield from (f"{where}: {problem}" for problem in _of_both(pod.spec.get("securityContext", {}), own))
    for where, document in manifests.named("Namespace"):
        if document["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{where}: does not enforce restricted"


def _of_pod(pod: Pod) -> Iterator[str]:
    yield from (key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.spec.get(key))
    for volume in pod.spec.get("volumes", []):
        if not set(volume) - {"name"} <= VOLUMES:
            yield f"volume {volume['name']} is {sorted(set(volume) - {'name'})}"
    security = pod.spec.get("securityContext", {})
    yield from (f"sysctl {entry['name']}" for entry in security.get("sysctls", []) if entry["name"] not in SYSCTLS)
    if security.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess"


def _of_container(container: Document, own: Document) -> Iterator[str]:
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"capabilities are {capabilities}"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "hostPort"
    asked = [container.get(kind, {}) for kind in ("livenessProbe", "readinessProbe", "startupProbe")]
    asked += container.get("lifecycle", {}).values()
    if any(action.get(kind, {}).get("host") for action in asked for kind in ("httpGet", "tcpSocket")):
        yield "a probe or hook of another host"


def _of_both(pod: Document, own: Document) -> Iterator[str]:
    """What a pod may say for its containers."""
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if own.get("runAsUser", pod.get("runAsUser")) == 0:
        yield "runAsUser is 0"
    if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccompProfile"
    if own.get("appArmorProfile", pod.get("appArmorProfile", {})).get("type") == "Unconfined":
        yield "appArmorProfile is Unconfined"
    options = own.get("seLinuxOptions", pod.get("seLinuxOptions", {}))
    if options.get("type", "") not in SELINUX or options.get("user") or options.get("role"):
        yield "seLinuxOptions"


def hardened(manifests: Manifests) -> Iterator[str]:
    """Read-only roots, numbered users, tokens only where the API is talked to, no variables named by Services."""
    for pod in manifests.pods:
        security = pod.spec.get("securityContext", {})
        for key in ("runAsUser", "runAsGroup", "fsGroup"):
            if not security.get(key):
                yield f"{pod.where}: {key} is left to the image"
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.where}: enableServiceLinks is not false"
        if pod.spec.get("automountServiceAccountToken") is not (pod.spec.get("serviceAccountName") in WITH_TOKEN):
            yield f"{pod.where}: automountServiceAccountToken is {pod.spec.get('automountServiceAccountToken')}"
        for container in pod.containers:
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield f"{pod.where}, {container['name']}: its root can be written to"
    for where, document in manifests.named("ServiceAccount"):
        if document.get("automountServiceAccountToken") is not False:
            yield f"{where}: hands its token to every pod"
    for where, document in manifests.named("Role", "ClusterRole", "ClusterRoleBinding"):
        few = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}]
        if document["kind"] != "Role" or document["rules"] != few:
            yield f"{where}: allows more than to create Secrets"


def no_secrets(manifests: Manifests) -> Iterator[str]:
    """No value of a Secret stands in a file, and none in a command line, where every process can read it."""
    for where, _ in manifests.named("Secret"):
        yield f"{where}: Secrets are made by the bootstrap Job"
    for pod in manifests.pods:
        for container in pod.containers:
            for name, value in environment(container).items():
                if value and any(word in name for word in ("PASSWORD", "SECRET", "TOKEN", "REDISCLI_AUTH")):
                    yield f"{pod.where}, {container['name']}: {name} stands in the file"
    for where, _, cluster in manifests.clusters:
        if "value" in cluster.get("gcsFaultToleranceOptions", {}).get("redisPassword", {}):
            yield f"{where}: redisPassword stands in the file"


def resources(manifests: Manifests) -> Iterator[str]:
    """CPU, memory and GPUs are asked for as they are limited; memory volumes have a size below the memory's."""
    for pod in manifests.pods:
        for container in pod.containers:
            where, given = f"{pod.where}, {container['name']}", container.get("resources", {})
            if given.get("requests") != given.get("limits") or not {"cpu", "memory"} <= set(given.get("limits", {})):
                yield f"{where}: requests and limits are {given.get('requests')} and {given.get('limits')}"
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{pod.where}: emptyDir {volume['name']} may fill the node's disk"
        yield from _shared_memory(pod)
        gpus = any("nvidia.com/gpu" in container.get("resources", {}).get("limits", {}) for container in pod.own)
        keys = {toleration.get("key") for toleration in pod.spec.get("tolerations", [])}
        if gpus is not ("nvidia.com/gpu" in keys):
            yield f"{pod.where}: {'GPUs without' if gpus else 'without GPUs'} the toleration of their nodes"


def _shared_memory(pod: Pod) -> Iterator[str]:
    """/dev/shm of Ray's pods: in memory, within the limit, and with room for the object store."""
    memory = {v["name"]: v["emptyDir"] for v in pod.spec.get("volumes", []) if v.get("emptyDir", {}).get("medium")}
    for container in pod.own:
        for mount in container.get("volumeMounts", []):
            size = memory.get(mount["name"], {}).get("sizeLimit")
            if size is not None and amount(size) * 2 > amount(container["resources"]["limits"]["memory"]):
                yield f"{pod.where}: {mount['mountPath']} is more than half of the memory"
    if pod.group and not any(m["mountPath"] == "/dev/shm" and m["name"] in memory for m in pod.own[0]["volumeMounts"]):
        yield f"{pod.where}: /dev/shm is no memory volume"


def probes(manifests: Manifests) -> Iterator[str]:
    """Where a container serves, it is asked; the operator's own, autoscaler and wait-gcs-ready, do not serve."""
    for pod in manifests.pods:
        for container in pod.own:
            where = f"{pod.where}, {container['name']}"
            asked = {kind: container[kind] for kind in ("readinessProbe", "livenessProbe") if kind in container}
            if container.get("ports") and len(asked) < 2:
                yield f"{where}: it has ports, and of probes {sorted(asked)}"
            for kind, probe in asked.items():
                if probe.get("timeoutSeconds", 1) < 2:
                    yield f"{where}: {kind} waits for a second only"


def versions(manifests: Manifests) -> Iterator[str]:
    """One image for all that is ours, with the version that is released; Ray's version is the one in it."""
    lines = (manifests.root / "constraints.txt").read_text().splitlines()
    (ray,) = (line.removeprefix("ray==") for line in lines if line.startswith("ray=="))
    for where, _, cluster in manifests.clusters:
        if cluster.get("rayVersion") != ray:
            yield f"{where}: rayVersion is {cluster.get('rayVersion')}, the image's Ray {ray}"
    for pod in manifests.pods:
        for container in pod.containers:
            name, _, tag = container["image"].rpartition("/")[2].partition(":")
            if (name, tag) != ("verydeep", version()) and (name not in FOREIGN or not any(c.isdigit() for c in tag)):
                yield f"{pod.where}, {container['name']}: image {container['image']}, not verydeep:{version()}"
            if container.get("imagePullPolicy") != "IfNotPresent":
                yield f"{pod.where}, {container['name']}: imagePullPolicy {container.get('imagePullPolicy')}"


def version() -> str:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("version = "))
    return line.split('"')[1]
