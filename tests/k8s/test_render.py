"""Manifests of a site's own values pass the same checks; wrong values are told in one line."""

from pathlib import Path

import pytest
import yaml

from k8s import render
from tests.k8s.checks import CHECKS
from tests.k8s.manifests import Document, Manifests, environment
from tests.k8s.test_manifests import MANIFESTS, need

REGISTRY = "registry.example.org/team/verydeep:0.1.0"
SITES: dict[str, Document] = {
    "a registry, classes, a queue": {
        "image": REGISTRY,
        "pull_secrets": ["pull", "pull-too"],
        "images": {"redis": "valkey/valkey:8.1.1"},
        "storage": {"shared_class": "nfs", "block_class": "fast", "runs": "2Ti"},
        "queue": "team",
    },
    "buckets, small nodes": {
        "storage": {"imagenet": "", "runs": "", "artifacts": "", "artifacts_uri": "s3://team/mlflow"},
        "credentials": "buckets",
        "identity": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/verydeep"},
        "gpus": {"per_node": 1, "cpus_per_gpu": 4, "selector": {"nvidia.com/gpu.product": "NVIDIA-L4"}},
    },
    "jobs of its own": {
        "jobs": {"long": {"file": "vgg_e.yaml", "arguments": ["--set", "cluster.workers=4"]}, "paper": {"gpus": 64}}
    },
}


def of_site(values: Document, folder: Path) -> Manifests:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(values))
    return Manifests(render.rendered(render.values([file])))


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifests]:
    return {name: of_site(values, tmp_path_factory.mktemp("site")) for name, values in SITES.items()}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("check", CHECKS)
def test_a_sites_manifests_pass(check: str, site: str, sites: dict[str, Manifests]) -> None:
    need(check)
    assert list(CHECKS[check](sites[site])) == []


def test_what_a_site_says_is_there(sites: dict[str, Manifests]) -> None:
    large, buckets, jobs = sites.values()
    assert {c["image"] for pod in large.pods for c in pod.containers if "verydeep" in c["image"]} == {REGISTRY}
    assert [pod.where for pod in large.pods if {"name": "pull"} not in pod.spec.get("imagePullSecrets", [])] == []
    claims = {d["metadata"]["name"]: d["spec"]["storageClassName"] for _, d in large.named("PersistentVolumeClaim")}
    assert (claims["runs"], claims["imagenet"], claims["mlflow-artifacts"]) == ("nfs", "nfs", "fast")
    assert {d["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for _, d in large.named("RayJob")} == {"team"}
    with_key = [pod for pod in buckets.pods if any("envFrom" in container for container in pod.own)]
    assert {pod.group for pod in with_key} >= {"head", "gpu", "driver"}
    assert {pod.where for pod in with_key} >= {"60-mlflow.yaml: Deployment mlflow"}
    (gpus,) = (pod for pod in buckets.pods if pod.where == "jobs/vgg-e.yaml: RayJob vgg-e, gpu")
    assert gpus.spec["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L4"}
    entrypoints = {d["metadata"]["name"]: d["spec"]["entrypoint"] for _, d in jobs.named("RayJob")}
    assert entrypoints["long"] == "jobs/vgg_e.yaml --set cluster.workers=4"


def test_another_image_makes_another_bootstrap_job_and_nothing_else_does(tmp_path: Path) -> None:
    """A Job's template cannot be changed by a second apply."""

    def name(manifests: Manifests) -> str:
        (found,) = (d["metadata"]["name"] for file, d in manifests.documents if file == "40-bootstrap.yaml")
        return str(found)

    assert name(of_site({"image": REGISTRY}, tmp_path)) != name(MANIFESTS)
    assert name(of_site({"storage": {"shared_class": "nfs"}}, tmp_path)) == name(MANIFESTS)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("imgae: x", "imgae: no such value; the nearest is image"),
        ("gpus: {per_nodes: 4}", "gpus.per_nodes: no such value; the nearest is per_node"),
        ("gpus: {per_node: eight}", "gpus.per_node: a whole number is needed, not 'eight'"),
        ("gpus: {per_node: 0}", "gpus.per_node: 1 at least"),
        ("- image", "a mapping is needed"),
        ("image: {", "not YAML"),
        ("storage: {artifacts: ''}", "storage: either artifacts has a size or artifacts_uri a place"),
        ("jobs: {mine: {file: mine.yaml}}", "mine.yaml is not there"),
    ],
)
def test_wrong_values_are_told_in_one_line(
    written: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(written)
    assert render.main(["--values", str(file), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "out").exists()


def test_a_sites_manifests_go_into_a_folder_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("image: " + REGISTRY)
    assert render.main(["--values", str(file)]) == 2
    assert "--out" in capsys.readouterr().err
    assert render.main(["--values", str(file), "--out", str(tmp_path / "out")]) == 0
    written = Manifests.of(tmp_path / "out")
    assert sorted(written.texts) == sorted(MANIFESTS.texts)
    (server,) = (pod for pod in written.pods if pod.where == "60-mlflow.yaml: Deployment mlflow")
    assert environment(server.own[-1])["HOME"] == "/tmp"
