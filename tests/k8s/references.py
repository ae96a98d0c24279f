"""Whatever one document says of another: Secrets, Services, volumes, accounts, labels, hosts with their ports."""

import re
from collections.abc import Iterator
from typing import Any

from k8s.bootstrap import SECRETS
from tests.k8s.manifests import NAMESPACE, Document, Manifests, Pod, command, doubled, environment, strings

HOST = re.compile(r"(?<![\w.-])([a-z][a-z0-9-]*)((?:\.[a-z0-9-]+)*):(\d{2,5})\b")
URL = re.compile(r"https?://([a-z][a-z0-9.-]*)(?![a-z0-9.:-])")
FULL = ("", f".{NAMESPACE}", f".{NAMESPACE}.svc", f".{NAMESPACE}.svc.cluster.local")


def known_secrets(manifests: Manifests) -> dict[str, set[str]]:
    """The bootstrap program's, and those that the operator makes, named as a RayCluster."""
    made = {name: set(values) for name, values in SECRETS.items()}
    for _, document in manifests.named("RayCluster"):
        if document["spec"].get("authOptions", {}).get("mode") == "token":
            made[document["metadata"]["name"]] = {"auth_token"}
    return made


def secrets(manifests: Manifests) -> Iterator[str]:
    made = known_secrets(manifests)
    for file, document in manifests.documents:
        for name, key in _secret_keys(document):
            if key not in made.get(name, ()):
                yield f"{file}: nobody makes Secret {name} with the key {key}"


def _secret_keys(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if "secretKeyRef" in value:
            yield value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]
        if "secretName" in value:
            yield value["secretName"], "(all)"
        for below in value.values():
            yield from _secret_keys(below)
    elif isinstance(value, list):
        for below in value:
            yield from _secret_keys(below)


def services(manifests: Manifests) -> dict[str, dict[int, Any]]:
    """The ports of each Service by its name, with where they lead to; those that the operator makes for heads, too."""
    found: dict[str, dict[int, Any]] = {}
    for _, document in manifests.named("Service"):
        ports = {port["port"]: port.get("targetPort", port["port"]) for port in document["spec"]["ports"]}
        found[document["metadata"]["name"]] = ports
    for _, document in manifests.named("RayCluster"):
        ports = document["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
        found[f"{document['metadata']['name']}-head-svc"] = {port["containerPort"]: port["name"] for port in ports}
    return found


def service_targets(manifests: Manifests) -> Iterator[str]:
    """Each Service leads to pods that have its ports by those names; a StatefulSet's Service is there."""
    for where, document in manifests.named("Service"):
        pods = manifests.selected(document["spec"]["selector"])
        if not pods:
            yield f"{where}: its selector is no pod's"
        for pod in pods:
            for port in document["spec"]["ports"]:
                target, names = port.get("targetPort"), _ports(pod)
                if not isinstance(target, str) or target not in names:
                    yield f"{where}: targetPort {target} is no port's name in {pod.where}"
                elif document["spec"].get("clusterIP") == "None" and names[target] != port["port"]:
                    yield f"{where}: without an address of its own it cannot turn {port['port']} to {names[target]}"
    for where, document in manifests.named("StatefulSet"):
        if document["spec"]["serviceName"] not in services(manifests):
            yield f"{where}: no Service {document['spec']['serviceName']}"


def _ports(pod: Pod) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for container in pod.containers for port in container.get("ports", [])}


def ports(manifests: Manifests) -> Iterator[str]:
    """Probes and command lines name ports that the container has."""
    for pod in manifests.pods:
        for container in pod.own:
            own = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            where = f"{pod.where}, {container['name']}"
            if doubled(own.values()):
                yield f"{where}: a port twice"
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                port = container.get(kind, {}).get("httpGet", {}).get("port")
                agent = port == 52365 and pod.group  # of every Ray node; not declared, as the operator does not
                if port is not None and port not in own and not agent:
                    yield f"{where}: {kind} asks port {port}"
            for word in command(container):
                served = re.fullmatch(r"--port=(\d+)", word)
                if served and int(served[1]) not in own.values():
                    yield f"{where}: {word} is none of its ports"


def volumes(manifests: Manifests) -> Iterator[str]:
    """What is mounted is there, and what is there is mounted; claims and ConfigMaps exist; HOME can be written to."""
    claims = {document["metadata"]["name"] for _, document in manifests.named("PersistentVolumeClaim")}
    configurations = {document["metadata"]["name"] for _, document in manifests.named("ConfigMap")}
    for pod in manifests.pods:
        there = [volume["name"] for volume in pod.spec.get("volumes", [])] + list(pod.claims)
        mounts = [mount for container in pod.containers for mount in container.get("volumeMounts", [])]
        yield from (f"{pod.where}: volume {name} twice" for name in doubled(there))
        for name in sorted({mount["name"] for mount in mounts} ^ set(there)):
            yield f"{pod.where}: volume {name} is {'not mounted' if name in there else 'not there'}"
        for volume in pod.spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in claims:
                yield f"{pod.where}: nobody claims {claim}"
            configuration = volume.get("configMap", {}).get("name")
            if configuration is not None and configuration not in configurations:
                yield f"{pod.where}: no ConfigMap {configuration}"
        for container in pod.containers:
            yield from _mounts(f"{pod.where}, {container['name']}", container)
    for where, document in manifests.named("PersistentVolumeClaim"):
        name = document["metadata"]["name"]
        if not any(_claims(pod, name) for pod in manifests.pods):
            yield f"{where}: no pod mounts it"


def _claims(pod: Pod, name: str) -> bool:
    return any(
        volume.get("persistentVolumeClaim", {}).get("claimName") == name for volume in pod.spec.get("volumes", [])
    )


def _mounts(where: str, container: Document) -> Iterator[str]:
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container.get("volumeMounts", [])}
    yield from (f"{where}: {path} twice" for path in doubled(m["mountPath"] for m in container.get("volumeMounts", [])))
    home = environment(container).get("HOME")
    if home is not None and mounts.get(home) is not False:
        yield f"{where}: HOME={home} is no volume that can be written to"


def accounts(manifests: Manifests) -> Iterator[str]:
    known = {document["metadata"]["name"] for _, document in manifests.named("ServiceAccount")}
    roles = {document["metadata"]["name"] for _, document in manifests.named("Role")}
    for pod in manifests.pods:
        if pod.spec.get("serviceAccountName") not in known:
            yield f"{pod.where}: no ServiceAccount {pod.spec.get('serviceAccountName')}"
    for where, document in manifests.named("RoleBinding"):
        if document["roleRef"]["name"] not in roles:
            yield f"{where}: no Role {document['roleRef']['name']}"
        for subject in document["subjects"]:
            if subject["name"] not in known or subject.get("namespace") != NAMESPACE:
                yield f"{where}: no ServiceAccount {subject['name']} in {subject.get('namespace')}"


def selectors(manifests: Manifests) -> Iterator[str]:
    """Controllers select what they make, and no two the same pod; budgets and policies select some pod."""
    for where, document in manifests.named("Deployment", "StatefulSet"):
        labels = document["spec"]["selector"]["matchLabels"]
        selected = {pod.where for pod in manifests.selected(labels)}
        if selected != {where}:
            yield f"{where}: selects {sorted(selected) or 'nothing'}"
    for where, document in manifests.named("PodDisruptionBudget"):
        selected = {pod.where for pod in manifests.selected(document["spec"]["selector"]["matchLabels"])}
        if len(selected) != 1:
            yield f"{where}: one pod is meant, but it selects {sorted(selected) or 'nothing'}"
    for where, document in manifests.named("NetworkPolicy"):
        for selector in _pod_selectors(document["spec"]):
            if not any(matches(selector, pod.labels) for pod in manifests.pods):
                yield f"{where}: {selector} is no pod's"


def _pod_selectors(spec: Document) -> Iterator[Document]:
    """Those for pods of this namespace."""
    yield spec["podSelector"]
    for rule in (*spec.get("ingress", []), *spec.get("egress", [])):
        for peer in (*rule.get("from", []), *rule.get("to", [])):
            if "podSelector" in peer and "namespaceSelector" not in peer:
                yield peer["podSelector"]


def matches(selector: Document, labels: Any) -> bool:
    """Whether a label selector of Kubernetes matches; an empty one matches everything."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for expression in selector.get("matchExpressions", []):
        value, values = labels.get(expression["key"]), expression.get("values", [])
        fits = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not fits[expression["operator"]]:
            return False
    return True


def hosts(manifests: Manifests) -> Iterator[str]:
    """Hosts with ports, in environments, command lines and configurations, are Services with those ports."""
    known = services(manifests)
    for where, text in _spoken(manifests):
        for name, domain, port in HOST.findall(text):
            if name not in known or domain not in FULL:
                yield f"{where}: {name}{domain}:{port} is no Service"
            elif int(port) not in known[name]:
                yield f"{where}: Service {name} has no port {port}"
        for name in URL.findall(text):
            yield f"{where}: {name} without its port"
        if where.endswith("HOST") and text not in known:
            yield f"{where}: {text} is no Service"


def _spoken(manifests: Manifests) -> Iterator[tuple[str, str]]:
    for pod in manifests.pods:
        for container in pod.containers:
            where = f"{pod.where}, {container['name']}"
            for name, value in environment(container).items():
                if name not in ("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"):  # from outside
                    yield f"{where}, {name}", value
            yield from ((where, word) for word in command(container))
    for where, document in manifests.named("ConfigMap"):
        yield from ((where, text) for _, text in strings(document["data"]))
    for where, _, cluster in manifests.clusters:
        yield where, cluster.get("gcsFaultToleranceOptions", {}).get("redisAddress", "")


def allowed_hosts(manifests: Manifests) -> Iterator[str]:
    """MLflow's server lets through every name of its Service, with and without port, and no pattern for all."""
    for where, document in manifests.named("Deployment"):
        for container in document["spec"]["template"]["spec"]["containers"]:
            text = environment(container).get("MLFLOW_SERVER_ALLOWED_HOSTS")
            if text is None:
                continue
            allowed, (port,) = text.split(","), services(manifests)["mlflow"]
            wanted = {f"mlflow{domain}{end}" for domain in FULL for end in ("", f":{port}")}
            yield from (f"{where}: {host} is not allowed" for host in sorted(wanted - set(allowed)))
            if any(host.startswith("*") or " " in host for host in allowed):
                yield f"{where}: {text} lets too much through"
            break
        else:
            yield f"{where}: MLFLOW_SERVER_ALLOWED_HOSTS is missing"
