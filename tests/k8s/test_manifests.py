"""The manifests as they are committed: every check, and that they are what their templates make."""

import pytest

from k8s import render
from tests.k8s import schemas
from tests.k8s.checks import CHECKS, NEED_DEFINITIONS
from tests.k8s.manifests import ROOT, Manifests

MANIFESTS = Manifests.of(ROOT / "k8s")


def need(check: str) -> None:
    if check in NEED_DEFINITIONS and schemas.crd_folder() is None:
        pytest.skip("no folder shared/kuberay with KubeRay's definitions beside the repository")


def test_all_of_them_are_read() -> None:
    kinds = [document["kind"] for _, document in MANIFESTS.documents]
    assert len(MANIFESTS.texts) >= 21
    assert kinds.count("RayCluster") == 1
    assert kinds.count("RayJob") == len(list((ROOT / "jobs").glob("*.yaml"))) == 6
    assert len(MANIFESTS.pods) >= 30
    assert {pod.group for pod in MANIFESTS.pods} == {"", "head", "gpu", "cpu", "driver"}
    assert {container["name"] for pod in MANIFESTS.pods for container in pod.added} == {"autoscaler", "wait-gcs-ready"}


@pytest.mark.parametrize("check", CHECKS)
def test_check(check: str) -> None:
    need(check)
    assert list(CHECKS[check](MANIFESTS)) == []


def test_they_are_what_the_templates_make() -> None:
    made = render.rendered(render.values())
    assert sorted(made) == sorted(MANIFESTS.texts)
    for name, text in made.items():
        assert text == MANIFESTS.texts[name], f"k8s/{name}: run make manifests"


def test_kubectl_finds_nothing_in_the_folder_that_is_no_manifest() -> None:
    """It reads every .yaml, .yml and .json of k8s/ itself; a kustomization.yaml would be an error."""
    read = {file.name for pattern in ("*.yaml", "*.yml", "*.json") for file in (ROOT / "k8s").glob(pattern)}
    assert read == {name for name in MANIFESTS.texts if "/" not in name}
    assert next(iter(MANIFESTS.texts)) == "00-namespace.yaml"


@pytest.mark.parametrize(
    ("given", "short"),
    [
        ("1000m", "1"),
        ("500m", "500m"),
        ("0.5", "500m"),
        ("2048Mi", "2Gi"),
        ("1536Mi", "1536Mi"),
        ("1000M", "1G"),
        (2, "2"),
    ],
)
def test_quantities_in_the_form_that_is_stored(given: str | int, short: str) -> None:
    assert schemas.shortest(given) == short
