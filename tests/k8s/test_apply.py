"""`kubectl apply`, a real one, against a stand-in of the API server: twice, and after what clusters and sites do."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml
from ray.autoscaler.v2.instance_manager.cloud_providers.kuberay.cloud_provider import KubeRayProvider

from k8s import render
from tests.k8s.api import Api, Key
from tests.k8s.manifests import ROOT
from tests.k8s.objects import Object
from tests.k8s.schemas import crd_folder

KUBECTL = shutil.which("kubectl")
pytestmark = [
    pytest.mark.skipif(KUBECTL is None, reason="no kubectl here"),
    pytest.mark.skipif(crd_folder() is None, reason="no folder shared/kuberay with KubeRay's definitions"),
]
# kubectl sends a budget's selector whether it differs or not (its schema says: replace), and calls that `configured`.
ALWAYS_CONFIGURED = "poddisruptionbudget.policy"
Created = dict[str, str]  # what became of each object, by kind and name


class Kubectl:
    """Of a user with nothing but a way to the stand-in."""

    def __init__(self, api: Api, home: Path) -> None:
        cluster = {"name": "cluster", "cluster": {"server": api.url}}
        user = {"name": "user", "user": {"token": "a-token"}}
        context = {"name": "context", "context": {"cluster": "cluster", "user": "user"}}
        configuration = {"apiVersion": "v1", "kind": "Config", "current-context": "context"}
        configuration |= {"clusters": [cluster], "users": [user], "contexts": [context]}
        home.mkdir()
        (home / "config").write_text(json.dumps(configuration))
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(home / "config")}

    def __call__(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(KUBECTL), *map(str, words)]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=120, check=False)

    def apply(self, *words: str | Path) -> Created:
        """What became of each object, in the order of the output."""
        done = self("apply", "-f", *words)
        assert (done.returncode, done.stderr) == (0, "")
        return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def server() -> Iterator[Api]:
    with Api().running() as running:
        yield running


@pytest.fixture
def api(server: Api) -> Iterator[Api]:
    server.forget({})
    yield server
    assert server.unexpected == []


@pytest.fixture(scope="module")
def kubectl(server: Api, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    return Kubectl(server, tmp_path_factory.mktemp("kubectl") / "home")


@pytest.fixture(scope="module")
def first(server: Api, kubectl: Kubectl) -> tuple[Created, dict[Key, Object]]:
    """What came of the first apply, and what is there after controllers and the operator have written."""
    server.forget({})
    created = kubectl.apply(ROOT / "k8s")
    server.settle()
    return created, server.objects


@pytest.fixture
def applied(first: tuple[Created, dict[Key, Object]], api: Api) -> Created:
    api.forget(first[1])
    return first[0]


def documents(place: Path) -> list[Object]:
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    return [document for file in files for document in yaml.load_all(file.read_text(), yaml.CSafeLoader)]


def rendered(out: Path, **values: object) -> Path:
    """The manifests of a site with values of its own."""
    (out.parent / "values.yaml").write_text(yaml.safe_dump(values))
    assert render.main(["--values", str(out.parent / "values.yaml"), "--out", str(out)]) == 0
    return out


def versions(api: Api) -> dict[tuple[str, str, str], str]:
    return {key: document["metadata"]["resourceVersion"] for key, document in api.objects.items()}


def test_applied_as_it_is_everything_is_created_in_order(applied: Created, api: Api) -> None:
    assert len(applied) == len(documents(ROOT / "k8s")) == len(api.objects) > 25
    assert set(applied.values()) == {"created"}
    assert next(iter(applied)) == "namespace/verydeep"


def test_a_second_apply_changes_nothing(applied: Created, api: Api, kubectl: Kubectl) -> None:
    before = versions(api)
    again = kubectl.apply(ROOT / "k8s")
    changed = {name for name, done in again.items() if done != "unchanged"}
    assert {name.split("/")[0] for name in changed} == {ALWAYS_CONFIGURED}
    assert {(method, kind) for method, kind, _, _ in api.writes} == {("PATCH", "PodDisruptionBudget")}
    assert versions(api) == before
    assert list(again) == list(applied)


def test_jobs_are_created_and_applied_again_left_alone(applied: Created, api: Api, kubectl: Kubectl) -> None:
    jobs = ROOT / "k8s" / "jobs"
    first = kubectl.apply(jobs)
    assert set(first.values()) == {"created"}
    assert len(first) == len(documents(jobs)) > 10
    api.settle()
    before = versions(api)
    again = kubectl.apply(jobs)
    assert {name.split("/")[0] for name, done in again.items() if done != "unchanged"} == {ALWAYS_CONFIGURED}
    assert versions(api) == before


def test_without_the_namespace_nothing_else_is_created(api: Api, kubectl: Kubectl) -> None:
    done = kubectl("apply", "-f", ROOT / "k8s" / "30-volumes.yaml")
    assert done.returncode == 1
    assert 'namespaces "verydeep" not found' in done.stderr
    assert api.objects == {}


def test_an_apply_while_workers_run_takes_back_what_the_autoscaler_wrote_and_nothing_else(
    applied: Created, api: Api, kubectl: Kubectl
) -> None:
    """Which costs nothing: with the autoscaler on, KubeRay 1.7 deletes no pod for a lower `replicas`, only those in
    workersToDelete; Ray's autoscaler goes by the pods that are there, where they are more than `replicas`."""
    settled = api.of("RayCluster", "verydeep")
    api.scaled("verydeep", 2, ["verydeep-gpu-worker-abcde"])
    again = kubectl.apply(ROOT / "k8s")
    assert {name for name, done in again.items() if done != "unchanged" and ALWAYS_CONFIGURED not in name} == {
        "raycluster.ray.io/verydeep"
    }
    assert api.of("RayCluster", "verydeep")["spec"] == settled["spec"]


class OneWorker:
    """What Ray's autoscaler reads of the API server while one worker runs, and the patches that it sends."""

    def __init__(self, cluster: Object) -> None:
        self.cluster = {**cluster, "metadata": {"resourceVersion": "1"}}
        self.patches: list[Object] = []

    def get(self, path: str) -> Object:
        if path.startswith("rayclusters/"):
            return deepcopy(self.cluster)
        pods = (("head", "head", "headgroup"), ("worker", "worker", "gpu"))
        return {"metadata": {"resourceVersion": "1"}, "items": [ray_pod(*pod) for pod in pods]}

    def patch(self, path: str, patches: list[Object]) -> None:
        self.patches += patches


def ray_pod(name: str, kind: str, group: str) -> Object:
    labels = {"ray.io/node-type": kind, "ray.io/group": group, "ray.io/cluster": "verydeep"}
    status = {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": name}]}, "status": status}


def test_rays_autoscaler_goes_by_the_workers_that_run_not_by_what_an_apply_wrote(applied: Created, api: Api) -> None:
    cluster = api.of("RayCluster", "verydeep")
    assert cluster["spec"]["workerGroupSpecs"][0]["replicas"] == 0
    server = OneWorker(cluster)
    provider = KubeRayProvider("verydeep", {"namespace": "verydeep"}, MagicMock(), server)
    provider.launch({"gpu": 1}, "a-request")
    provider.terminate(["worker"], "another-request")
    replicas, leaving = "/spec/workerGroupSpecs/0/replicas", "/spec/workerGroupSpecs/0/scaleStrategy"
    assert server.patches == [
        {"op": "replace", "path": replicas, "value": 2},
        {"op": "replace", "path": leaving, "value": {"workersToDelete": ["worker"]}},
    ]
    assert provider.poll_errors() == []


def test_another_image_is_refused_nowhere(applied: Created, api: Api, kubectl: Kubectl, tmp_path: Path) -> None:
    """The bootstrap Job, whose template cannot be changed, gets another name."""
    kubectl.apply(ROOT / "k8s" / "jobs")
    api.settle()
    site = rendered(
        tmp_path / "site", image="registry.example.org/verydeep:0.2.0", images={"postgresql": "postgres:17.7"}
    )
    done = kubectl.apply(site)
    changed = {name for name, what in done.items() if what == "configured" and ALWAYS_CONFIGURED not in name}
    assert changed == {"statefulset.apps/postgresql", "deployment.apps/mlflow", "raycluster.ray.io/verydeep"}
    created = [name for name, what in done.items() if what == "created"]
    assert len(created) == 1
    assert re.fullmatch("job.batch/bootstrap-[0-9a-f]{8}", created[0])
    assert created[0] not in applied
    for name in ("prepare-imagenet", "restore"):  # Jobs: to be deleted first, if they are still there
        file = (site / "jobs" / f"{name}.yaml").rename(tmp_path / f"{name}.yaml")
        assert f'The Job "{name}" is invalid: spec.template' in kubectl("apply", "-f", file).stderr
    of_jobs = kubectl.apply(site / "jobs")
    assert {what for name, what in of_jobs.items() if ALWAYS_CONFIGURED not in name} == {"configured"}
    specs = [document.get("spec") for key, document in api.objects.items() if key[0] != "Job"]
    assert set(re.findall(r"verydeep:0\.\d\.0", json.dumps(specs))) == {"verydeep:0.2.0"}


@pytest.mark.parametrize(
    ("values", "file", "refused"),
    [
        ({"storage": {"postgresql": "40Gi"}}, "50-postgresql.yaml", 'StatefulSet "postgresql"'),
        ({"storage": {"shared_class": "nfs"}}, "30-volumes.yaml", 'PersistentVolumeClaim "runs"'),
    ],
)
def test_what_kubernetes_does_not_change_is_refused_by_name(
    values: Object, file: str, refused: str, applied: Created, kubectl: Kubectl, tmp_path: Path
) -> None:
    """The databases' sizes and the storage classes: they are chosen before the first apply."""
    done = kubectl("apply", "-f", rendered(tmp_path / "site", **values) / file)
    assert done.returncode == 1
    assert f"{refused} is invalid: spec." in done.stderr
    assert "field is immutable" in done.stderr


def test_larger_volumes_are_taken(applied: Created, api: Api, kubectl: Kubectl, tmp_path: Path) -> None:
    done = kubectl.apply(rendered(tmp_path / "site", storage={"runs": "2Ti"}))
    assert done["persistentvolumeclaim/runs"] == "configured"
    assert api.of("PersistentVolumeClaim", "runs")["spec"]["resources"]["requests"]["storage"] == "2Ti"


def test_without_kuberay_all_but_its_kinds_is_created_and_it_says_so(tmp_path: Path) -> None:
    with Api(kuberay=False).running() as bare:
        kubectl = Kubectl(bare, tmp_path / "home")
        done = kubectl("apply", "-f", ROOT / "k8s")
        assert done.returncode == 1
        assert 'no matches for kind "RayCluster" in version "ray.io/v1"' in done.stderr
        assert "ensure CRDs are installed first" in done.stderr
        assert len(done.stdout.splitlines()) == len(bare.objects) == len(documents(ROOT / "k8s")) - 1
        assert bare.unexpected == []


@pytest.mark.parametrize(
    ("file", "old", "new", "what"),
    [
        ("70-ray.yaml", "numOfHosts: 1", "# numOfHosts: 1", "raycluster.ray.io/verydeep"),
        ("70-ray.yaml", "memory: 8Gi", "memory: 8192Mi", "raycluster.ray.io/verydeep"),
        ("60-mlflow.yaml", 'cpu: "500m"', "cpu: 0.5", "deployment.apps/mlflow"),
        ("20-network.yaml", "{protocol: TCP, port: 8080}", "{port: 8080}", "networkpolicy.networking.k8s.io/ray"),
    ],
)
def test_what_the_server_would_write_otherwise_is_found(
    file: str, old: str, new: str, what: str, api: Api, kubectl: Kubectl, tmp_path: Path
) -> None:
    """That the tests above can fail: without a default inside a list, or with a quantity in another form."""
    text = (ROOT / "k8s" / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    shutil.copy(ROOT / "k8s" / "00-namespace.yaml", tmp_path)
    kubectl.apply(tmp_path)
    api.settle()
    assert kubectl.apply(tmp_path)[what] == "configured"


def test_a_field_that_does_not_exist_is_refused(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl.apply(ROOT / "k8s" / "00-namespace.yaml")
    text = (ROOT / "k8s" / "70-ray.yaml").read_text()
    (tmp_path / "ray.yaml").write_text(text.replace("enableInTreeAutoscaling:", "enableAutoscaling:"))
    done = kubectl("apply", "-f", tmp_path / "ray.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert 'unknown field "spec.enableAutoscaling"' in done.stderr


def test_a_request_that_the_stand_in_does_not_know_is_kept_for_the_test_to_fail_by(tmp_path: Path) -> None:
    with Api().running() as other:
        assert Kubectl(other, tmp_path / "home")("get", "pods", "-n", "verydeep").returncode == 1
        assert len(other.unexpected) == 1
        assert "/api/v1/namespaces/verydeep/pods" in other.unexpected[0]
