"""Every connection that is needed passes the NetworkPolicies, and of all others none does."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.k8s.manifests import ROOT, Document, Manifests
from tests.k8s.network import Place, reaches

MANIFESTS = Manifests.of(ROOT / "k8s")
POLICIES = [document for _, document in MANIFESTS.named("NetworkPolicy")]
PORTS = (53, 80, 443, 5000, 5432, 6379, 6443, 8080, 8265, 10001, 22222, 52365)
RAY = ("head", "worker", "job head", "job worker")


def _pod(where: str) -> Mapping[str, str]:
    (labels,) = (pod.labels for pod in MANIFESTS.pods if pod.where == where)
    return labels


def _job(name: str) -> str:
    (where,) = (where for where, document in MANIFESTS.named("Job") if document["metadata"]["name"].startswith(name))
    return where


PLACES = {
    place.name: place
    for place in (
        Place("head", _pod("70-ray.yaml: RayCluster verydeep, head")),
        Place("worker", _pod("70-ray.yaml: RayCluster verydeep, gpu")),
        Place("job head", _pod("jobs/vgg-e.yaml: RayJob vgg-e, head")),
        Place("job worker", _pod("jobs/vgg-e.yaml: RayJob vgg-e, driver")),
        Place("redis cleanup", _pod("70-ray.yaml: RayCluster verydeep, redis cleanup")),
        Place("mlflow", _pod("60-mlflow.yaml: Deployment mlflow")),
        Place("postgresql", _pod("50-postgresql.yaml: StatefulSet postgresql")),
        Place("redis", _pod("55-redis.yaml: StatefulSet redis")),
        Place("bootstrap", _pod(_job("bootstrap"))),
        Place("prepare", _pod(_job("prepare-imagenet"))),
        Place("continue", _pod("jobs/continue.yaml: CronJob continue")),
        Place("files", _pod("jobs/files.yaml: Pod files")),
        Place("backup", _pod("jobs/backup.yaml: CronJob backup")),
        Place("stranger", {"app": "stranger"}),
        Place("elsewhere", {"app.kubernetes.io/name": "mlflow", "ray.io/is-ray-node": "yes"}, namespace="other"),
        Place("operator", {"app.kubernetes.io/component": "kuberay-operator"}, namespace="kuberay"),
        Place("prometheus", {}, namespace="metrics", namespace_labels={"verydeep/monitoring": "true"}),
        Place("ingress", {}, namespace="ingress", namespace_labels={"verydeep/ingress": "true"}),
        Place("dns", {"k8s-app": "kube-dns"}, namespace="kube-system"),
        Place("api server", address="10.0.0.1"),
        Place("internet", address="93.184.216.34"),
    )
}
OURS = [place for place in PLACES.values() if place.namespace == "verydeep" and not place.address]


def allowed(policies: list[Document] = POLICIES) -> set[tuple[str, str, int]]:
    """All connections with one end in the namespace, on ports of interest."""
    return {
        (source.name, target.name, port)
        for source in PLACES.values()
        for target in PLACES.values()
        for port in PORTS
        if source != target and (source in OURS or target in OURS) and reaches(policies, source, target, port)
    }


def wanted() -> set[tuple[str, str, int]]:
    """Drawn up by hand, of what each program does."""
    ray = [*RAY, "redis cleanup"]  # the operator labels it as a Ray node, too
    among = {(a, b, port) for a in ray for b in ray for port in PORTS if a != b}
    out = {(a, b, port) for a in ray for b in PLACES for port in PORTS if PLACES[b] not in OURS}
    submitted = {(a, b, 8265) for a in ("operator", "continue", "files") for b in ray}
    # A cleanup pod is no head, and is not submitted to: only its label as a Ray node opens the port.
    submitted -= {(a, "redis cleanup", 8265) for a in ("continue", "files")}
    submitted -= {(a, b, 8265) for a in ("continue", "files") for b in ("worker", "job worker")}
    tracked = {(a, "mlflow", 5000) for a in (*ray, "continue", "files", "ingress")}
    stored = {("mlflow", "postgresql", 5432), ("backup", "postgresql", 5432)}
    state = {(a, "redis", 6379) for a in ("head", "job head", "redis cleanup")}
    watched = {("prometheus", a, 8080) for a in ray}
    created = {("bootstrap", b, 443) for b in PLACES if PLACES[b] not in OURS}
    created |= {("bootstrap", b, 6443) for b in PLACES if PLACES[b] not in OURS}
    names = {(a.name, b, 53) for a in OURS for b in PLACES if not PLACES[b].address and PLACES[b] not in OURS}
    return among | out | submitted | tracked | stored | state | watched | created | names


def test_what_passes_is_what_is_needed() -> None:
    passes, needed = allowed(), wanted()
    assert sorted(needed - passes) == []
    assert sorted(passes - needed) == []


def test_names_are_looked_up_over_udp_in_any_namespace_and_on_the_node() -> None:
    node = Place("node-local", address="169.254.20.10")
    for place in OURS:
        assert reaches(POLICIES, place, PLACES["dns"], 53, "UDP")
        assert reaches(POLICIES, place, node, 53, "UDP")
        assert reaches(POLICIES, place, node, 53)
        assert not reaches(POLICIES, place, PLACES["stranger"], 53, "UDP") or place.name in RAY


@pytest.mark.parametrize(
    "name", ["nothing", "ray", "mlflow", "postgresql", "redis", "client", "bootstrap", "backup", "dns"]
)
def test_each_policy_is_needed(name: str) -> None:
    """Without one of them something passes that should not, or does not pass that should."""
    others = [policy for policy in POLICIES if policy["metadata"]["name"] != name]
    assert len(others) == len(POLICIES) - 1
    dns = reaches(others, PLACES["mlflow"], PLACES["dns"], 53, "UDP")
    assert allowed(others) != wanted() or not dns


def test_labels_of_ray_in_another_namespace_open_nothing() -> None:
    forged = replace(PLACES["head"], name="forged", namespace="other")
    for target, port in (("redis", 6379), ("mlflow", 5000), ("head", 8265), ("head", 6379), ("postgresql", 5432)):
        assert not reaches(POLICIES, forged, PLACES[target], port)
