"""Manifests of a site's own values pass the same checks; wrong values are told in one line."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
import yaml

from k8s import render
from k8s.values import ValuesError
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
        "mlflow_hosts": ["mlflow.example.org", "mlflow.example.com"],
    },
    "buckets, small nodes": {
        "storage": {"imagenet": "", "runs": "", "artifacts": "", "artifacts_uri": "s3://team/mlflow"},
        "credentials": "buckets",
        "identity": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/verydeep"},
        "gpus": {"per_node": 1, "cpus_per_gpu": 4, "selector": {"nvidia.com/gpu.product": "NVIDIA-L4"}},
    },
    # Rows of the table "Sizes" in docs/kubernetes.md.
    "one GPU": {
        "gpus": {"per_node": 1, "most_nodes": 1, "runtime_class": "nvidia"},
        "storage": {"shared_mode": "ReadWriteOnce"},
        "jobs": {"vgg-e": {"arguments": ["--set", "cluster.workers=1"]}},
    },
    "64 GPUs": {
        "gpus": {"per_node": 8, "most_nodes": 8},
        "head": {"cpus": 4, "memory": 16},
        "jobs": {"vgg-e": {"arguments": ["--set", "cluster.workers=64"]}},
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
    large, buckets, *_, jobs = sites.values()
    assert {c["image"] for pod in large.pods for c in pod.containers if "verydeep" in c["image"]} == {REGISTRY}
    assert [pod.where for pod in large.pods if {"name": "pull"} not in pod.spec.get("imagePullSecrets", [])] == []
    claims = {d["metadata"]["name"]: d["spec"]["storageClassName"] for _, d in large.named("PersistentVolumeClaim")}
    assert (claims["runs"], claims["imagenet"], claims["mlflow-artifacts"]) == ("nfs", "nfs", "fast")
    assert {d["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for _, d in large.named("RayJob")} == {"team"}
    (mlflow,) = (pod for pod in large.pods if pod.where == "60-mlflow.yaml: Deployment mlflow")
    told = environment(mlflow.spec["containers"][0])
    assert told["MLFLOW_SERVER_ALLOWED_HOSTS"].endswith(",127.0.0.1:*,mlflow.example.org,mlflow.example.com")
    origins = "https://mlflow.example.org,https://mlflow.example.com"
    assert told["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == origins
    with_key = [pod for pod in buckets.pods if any("envFrom" in container for container in pod.own)]
    assert {pod.group for pod in with_key} >= {"head", "gpu", "driver"}
    assert {pod.where for pod in with_key} >= {"60-mlflow.yaml: Deployment mlflow"}
    (gpus,) = (pod for pod in buckets.pods if pod.where == "jobs/vgg-e.yaml: RayJob vgg-e, gpu")
    assert gpus.spec["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L4"}
    entrypoints = {d["metadata"]["name"]: d["spec"]["entrypoint"] for _, d in jobs.named("RayJob")}
    assert entrypoints["long"] == "exec jobs/vgg_e.yaml --set cluster.workers=4"
    (gpus,) = (pod for pod in jobs.pods if pod.where == "jobs/long.yaml: RayJob long, gpu")
    assert gpus.spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"


@pytest.mark.parametrize(
    ("site", "pods", "each"), [("one GPU", 1, "1"), ("64 GPUs", 8, "8"), ("jobs of its own", 1, "8")]
)
def test_a_job_gets_the_gpus_that_its_workers_take(
    site: str, pods: int, each: str, sites: dict[str, Manifests]
) -> None:
    (job,) = (d for _, d in sites[site].named("RayJob") if d["metadata"]["name"] == "vgg-e")
    (group,) = (g for g in job["spec"]["rayClusterSpec"]["workerGroupSpecs"] if g["groupName"] == "gpu")
    (container,) = group["template"]["spec"]["containers"]
    assert (group["replicas"], container["resources"]["limits"]["nvidia.com/gpu"]) == (pods, each)


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
        ("gpus: {selector: {a: {b: c}}}", "gpus.selector.a: text is needed, not {'b': 'c'}"),
        ("gpus: {selector: {a: [c]}}", "gpus.selector.a: text is needed, not ['c']"),
        ("gpus: {selector: {a: 'b:c'}}", "gpus.selector.a: 'b:c' is no value of a label"),
        ("identity: {a: {}}", "identity.a: text is needed, not {}"),
        ("jobs: {x: {file: [demo.yaml]}}", "jobs.x.file: ['demo.yaml'] is not there"),
        ("jobs: {x: {file: demo.yaml, arguments: [--set, cluster.worker=1]}}", "jobs.x: --set cluster.worker=1"),
        ("image: 2026-13-45", "not YAML: month must be in 1..12"),
        ("queue: '0b_'", "queue: '0b_' cannot stand there"),
        ("storage: {shared_mode: ReadWriteOften}", "storage.shared_mode: ReadWriteMany or ReadWriteOnce"),
        ("storage: {artifacts: ''}", "storage: either artifacts has a size or artifacts_uri a place"),
        (
            "storage: {artifacts_uri: 's3://team/mlflow'}",
            "storage: either artifacts has a size or artifacts_uri a place",
        ),
        ("storage: {runs: 500GB}", "storage.runs: a size in Mi, Gi, Ti or Pi, as 200Gi, not '500GB'"),
        ("gpus: {shared_memory_per_gpu: 48}", "gpus.shared_memory_per_gpu: less than memory_per_gpu"),
        ("pull_policy: Sometimes", "pull_policy: Always, IfNotPresent or Never, not 'Sometimes'"),
        ("pull_secrets: [{name: pull}]", "pull_secrets[0]: text is needed, not {'name': 'pull'}"),
        ("pull_secrets: [1]", "pull_secrets[0]: text is needed, not 1"),
        ("identity: {role: 17}", "identity.role: text is needed, not 17"),
        ("gpus: {selector: {a: 'b\"'}}", "gpus.selector.a: "),
        ("identity: {'a: b': c}", "identity: 'a: b' is no name of a label or annotation"),
        ("jobs: {mine: {file: vgg_f.yaml}}", "jobs.mine.file: vgg_f.yaml is not there"),
        ("jobs: {mine: {file: ../README.md}}", "jobs.mine.file: ../README.md is not there"),
        ("jobs: {mine: {}}", "jobs.mine.file: None is not there"),
        ("jobs: {mine: vgg_e.yaml}", "jobs.mine: a mapping is needed, not 'vgg_e.yaml'"),
        ("jobs: {demo: {workers: 2}}", "jobs.demo.workers: no such value; there are file, arguments and gpus"),
        ("jobs: {demo: {gpus: all}}", "jobs.demo.gpus: a whole number is needed, not 'all'"),
        ("jobs: {demo: {arguments: --fresh}}", "jobs.demo.arguments: a list of texts is needed"),
        ("jobs: {restore: {file: demo.yaml}}", "jobs.restore: there is another manifest jobs/restore.yaml"),
        ("jobs: {Mine: {file: demo.yaml}}", "jobs.Mine: a job's name has small letters"),
        ("jobs: {dmeo: null}", "jobs.dmeo: no such value; the nearest is demo"),
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


def test_a_file_of_values_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render.main(["--values", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "mine.yaml") in line
    assert not (tmp_path / "out").exists()


def leaves(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(value, dict) and value and path != ("jobs",):
        for key, below in value.items():
            yield from leaves(below, (*path, key))
    else:
        yield path, value


WRONG = [None, True, -1, 1.5, [[]], {"a": 1}, "a b", "a: b", "- a", '"', "#", "yes", "12", "{{ a }}", "a\nb"]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_no_value_takes_what_would_make_other_manifests(wrong: object) -> None:
    """Each value of values.yaml in turn: its name is in the one line."""
    tried = 0
    for path, _ in leaves(render.values()):
        own: object = wrong
        for key in reversed(path):
            own = {key: own}
        with pytest.raises(ValuesError) as error, as_file(own) as file:
            render.values([file])
        assert ".".join(path) in str(error.value)
        assert "\n" not in str(error.value)
        tried += 1
    assert tried > 25


@contextmanager
def as_file(document: object) -> Iterator[Path]:
    with NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(document, file)
        file.flush()
        yield Path(file.name)


def test_jobs_left_out_and_made_with_words_that_a_shell_and_yaml_would_read(tmp_path: Path) -> None:
    words = ["--set", "storage=\"/data/a b: 'c' #1\"", "--fresh"]
    values = {"jobs": {"demo": None, "mine": {"file": "photos.yaml", "arguments": words}}}
    manifests = of_site(values, tmp_path)
    assert "jobs/demo.yaml" not in manifests.texts
    (job,) = (d for file, d in manifests.documents if file == "jobs/mine.yaml" and d["kind"] == "RayJob")
    assert shlex.split(job["spec"]["entrypoint"]) == ["exec", "jobs/photos.yaml", *words]


def test_what_is_no_longer_made_is_removed_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    render.write(render.rendered(render.values()), out)
    (out / "jobs" / "own.yaml").write_text("# A manifest of the site's own.\n")
    with as_file({"storage": {"imagenet": ""}, "jobs": {"demo": None}}) as file:
        assert render.main(["--values", str(file), "--out", str(out)]) == 0
    names = {file.name for file in (out / "jobs").iterdir()}
    assert "own.yaml" in names
    assert {"demo.yaml", "prepare-imagenet.yaml"}.isdisjoint(names)
    assert len(list(out.glob("*.yaml"))) == len(list((render.HERE).glob("*.yaml")))


def test_sizes_are_written_as_kubernetes_stores_them(tmp_path: Path) -> None:
    """`kubectl apply` would find 1024Gi and 1Ti different, each time."""
    values = {"storage": {"runs": "2048Gi", "redis": "512Mi"}, "gpus": {"memory_per_gpu": 128}}
    manifests = of_site(values, tmp_path)
    sizes = {d["metadata"]["name"]: d["spec"] for _, d in manifests.named("PersistentVolumeClaim")}
    assert sizes["runs"]["resources"]["requests"]["storage"] == "2Ti"
    need("written_out")
    assert list(CHECKS["written_out"](manifests)) == []
