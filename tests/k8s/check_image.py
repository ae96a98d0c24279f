"""The image as the manifests run it, through a whole chain: `make check-image`, after `make image`.

IMAGE and BUILDER as for k8s/build-image, if not its defaults; BUILD_FLAGS for the servers beside the image, which are
built upon it of the distribution's PostgreSQL and Redis; RUN_FLAGS for what every container has to be told here.
"""

import json
import os
import shlex
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.containers import Container, Namespace, call, confined, engine, image
from tests.k8s.pods import ROOT, groups, start_command, with_redis

PATIENCE_SECONDS, CHAIN_SECONDS = 300, 2400
TOKEN = "a-token-of-32-characters-or-more"
SECRETS = {
    "token": {"auth_token": TOKEN},
    "mlflow": {"username": "admin", "password": "a-password-of-the-admin", "secret-key": "a-key-of-cookies"},
    "postgresql": {"password": "a-password-of-postgresql"},
    "redis": {"password": "a-password-of-redis"},
}
HEAD = "demo-head-svc.verydeep.svc.cluster.local"  # the shape of the name that the operator makes for a head
SERVERS = "verydeep-servers:check"
OF_THE_SERVERS = """
ARG IMAGE
FROM ${IMAGE}
USER 0:0
RUN echo 'server:x:999:999::/:/bin/bash' >>/etc/passwd && apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql redis-server
"""
# What the image `postgres` does with the manifest's environment.
START_POSTGRESQL = """
set -e; PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
initdb --username "$POSTGRES_USER" --pwfile <(echo "$POSTGRES_PASSWORD") --auth trust $POSTGRES_INITDB_ARGS >/dev/null
echo "create database $POSTGRES_DB" | postgres --single postgres >/dev/null
echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
exec postgres -c listen_addresses='*'
"""
# Prints what is found in the image that should not be there.
SEARCH = r"""
import json, os, shutil, stat, sys
tools = [t for t in "cc c++ gcc g++ clang ld as make cmake nvcc ptxas pip pip3 git".split() if shutil.which(t)]
shut = "/root /etc/ssl/private /var/cache/ldconfig /var/cache/apt/archives/partial /var/lib/apt/lists/partial".split()
mounted, raised, writable, caches, bare, unread = {"/proc", "/sys", "/dev", "/tmp", "/data"}, [], [], [], [], []
for folder, folders, files in os.walk("/", onerror=lambda error: unread.append(error.filename)):
    folders[:] = [f for f in folders if os.path.join(folder, f) not in mounted]
    for name in files + ["."]:
        path = os.path.normpath(os.path.join(folder, name))
        if os.path.islink(path):
            continue
        mode = os.lstat(path).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            raised.append(path)
        if os.access(path, os.W_OK) and not stat.S_ISCHR(mode):
            writable.append(path)
    if folder.endswith((".cache", "/pip/http", "/var/lib/apt/lists")) and files:
        caches.append(folder)
    modules = [f for f in files if f.endswith(".py") and f != "py312_intrinsics.py"]
    if folder.startswith("/opt/venv/lib") and modules:
        there = set(os.listdir(folder + "/__pycache__")) if os.path.isdir(folder + "/__pycache__") else set()
        suffix = "." + sys.implementation.cache_tag + ".pyc"
        bare += [os.path.join(folder, f) for f in modules if f[:-3] + suffix not in there]
try:
    open("/opt/verydeep/new", "w")
    writable.append("/opt/verydeep")
except OSError:
    pass
print(json.dumps({"tools": tools, "raised": raised, "writable": writable, "caches": caches, "without bytecode": bare,
                  "unread": sorted(set(unread) - set(shut)), "user": [os.getuid(), os.getgid()]}))
"""


def documents(name: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((ROOT / "k8s" / name).read_text()) if each is not None]


def document(name: str, kind: str) -> dict[str, Any]:
    (found,) = [each for each in documents(name) if each["kind"] == kind]
    return found


def pod(name: str, kind: str) -> dict[str, Any]:
    """The spec of its pod."""
    found: dict[str, Any] = document(name, kind)["spec"]["template"]["spec"]
    return found


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    try:
        engine()
        call("image", "inspect", image())
    except LookupError as error:
        pytest.fail(str(error), pytrace=False)
    except RuntimeError:
        pytest.fail(f"there is no image {image()}: make image", pytrace=False)


def run(*command: str, network: str = "none") -> str:
    """In a container as the bootstrap Job's is, with volumes at /tmp and /data, as Ray's pods have them."""
    job = pod("40-bootstrap.yaml", "Job")
    flags = confined({**job["securityContext"], **job["containers"][0]["securityContext"]})
    return call("run", "--rm", *flags, "--network", network, "--volume", "/tmp", "--volume", "/data", image(), *command)


def test_nothing_is_in_it_that_pods_do_not_need_nor_can_be_written_to() -> None:
    assert json.loads(run("python", "-c", SEARCH)) == {
        "tools": [], "raised": [], "writable": [], "caches": [], "without bytecode": [], "unread": [],
        "user": [1000, 1000],
    }  # fmt: skip


def test_what_is_installed_starts_on_a_read_only_root() -> None:
    imports = "import torch, ray, mlflow, nvidia.dali, onnxruntime; print(torch.__version__)"
    assert run("python", "-W", "error::ImportWarning", "-c", imports).startswith("2.")
    assert "e-jitter" in run("verydeep", "plan", "jobs/demo.yaml")
    assert "--cluster-name" in run("ray", "kuberay-autoscaler", "--help")
    assert "stages" in run("bash", "-c", "jobs/demo.yaml --help && cat jobs/paper.yaml")


def test_every_program_that_the_manifests_start_is_there() -> None:
    """Modules of `python -m`, and the first words of commands."""
    commands = [
        container["command"]
        for name in ("40-bootstrap.yaml", "60-mlflow.yaml")
        for found in documents(name)
        if "template" in found.get("spec", {})
        for kind in ("initContainers", "containers")
        for container in found["spec"]["template"]["spec"].get(kind, [])
        if container["image"].startswith("verydeep")
    ]
    assert len(commands) == 3
    modules = [command[2] for command in commands if command[:2] == ["python", "-m"]]
    find = "import importlib.util, sys; print([name for name in sys.argv[1:] if not importlib.util.find_spec(name)])"
    assert run("python", "-c", find, *modules).strip() == "[]"
    run("bash", "-c", 'for program; do command -v "$program" || exit 1; done', "-", *(each[0] for each in commands))


def test_the_bootstrap_program_says_in_one_line_that_it_is_in_no_pod() -> None:
    command = pod("40-bootstrap.yaml", "Job")["containers"][0]["command"]
    with pytest.raises(RuntimeError, match=r"ended with 1:\nbootstrap: .*KUBERNETES_SERVICE_HOST.*\n$"):
        run(*command)


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    config = tmp_path_factory.mktemp("config")
    for name, text in document("60-mlflow.yaml", "ConfigMap")["data"].items():
        (config / name).write_text(text)
    for folder in (config, *config.parents[:2]):
        folder.chmod(0o755)
    found = Namespace(SECRETS, {"mlflow": config}, ("postgresql", "redis", "mlflow", HEAD, "worker", "operator"))
    found.create()
    try:
        yield found
    finally:
        found.remove()


@pytest.fixture(scope="module")
def servers() -> str:
    """The image with PostgreSQL and Redis in it: no registry is needed for them."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Dockerfile").write_text(OF_THE_SERVERS)
        flags = shlex.split(os.environ.get("BUILD_FLAGS", ""))
        call("build", *flags, "--build-arg", f"IMAGE={image()}", "--tag", SERVERS, folder)
    return SERVERS


@pytest.fixture(scope="module")
def mlflow(namespace: Namespace, servers: str) -> Container:
    """On PostgreSQL; after its init container."""
    database = pod("50-postgresql.yaml", "StatefulSet")
    postgresql = namespace.start(
        database, database["containers"][0], "postgresql", servers, ["bash", "-c", START_POSTGRESQL]
    )
    ready = database["containers"][0]["readinessProbe"]["exec"]["command"]
    postgresql.wait_for(lambda: postgresql.succeeds(*ready), PATIENCE_SECONDS)
    tracking = pod("60-mlflow.yaml", "Deployment")
    (upgrade,), (server,) = tracking["initContainers"], tracking["containers"]
    namespace.start(tracking, upgrade, "operator", image(), upgrade["command"]).wait_ended(PATIENCE_SECONDS)
    started = namespace.start(tracking, server, "mlflow", image(), server["command"])
    health = f"http://mlflow:5000{server['readinessProbe']['httpGet']['path']}"
    started.wait_for(lambda: started.ask(health).status == 200, PATIENCE_SECONDS)
    return started


@pytest.fixture(scope="module")
def ray(namespace: Namespace, servers: str, mlflow: Container) -> tuple[Container, Container]:
    """Head and worker of k8s/jobs/demo.yaml."""
    tables = pod("55-redis.yaml", "StatefulSet")
    (server,) = tables["containers"]
    redis = namespace.start(tables, server, "redis", servers, [*server["command"], *server["args"]])
    redis.wait_for(lambda: redis.succeeds(*server["readinessProbe"]["exec"]["command"]), PATIENCE_SECONDS)

    cluster = document("jobs/demo.yaml", "RayJob")["spec"]["rayClusterSpec"]
    of_head, of_worker = groups(cluster, SECRETS)[0], groups(cluster, SECRETS)[1][0]
    address = cluster["gcsFaultToleranceOptions"]["redisAddress"]
    of_head = with_redis(of_head, address, SECRETS["redis"]["password"])
    started = []
    for group, spec, service in (
        (of_head, cluster["headGroupSpec"], HEAD),
        (of_worker, cluster["workerGroupSpecs"][0], "worker"),
    ):
        template = spec["template"]["spec"]
        command = ["/bin/bash", "-c", "--", start_command(group, f"{HEAD}:6379")]
        more = {**group.environment, "RAY_ADDRESS": "127.0.0.1:6379" if group.head else f"{HEAD}:6379"}
        container = namespace.start(template, template["containers"][0], service, image(), command, more)
        probe = template["containers"][0]["readinessProbe"]["httpGet"]
        url = f"http://127.0.0.1:{probe['port']}{probe['path']}"
        container.wait_for(lambda c=container, u=url: c.ask(u).status == 200, PATIENCE_SECONDS)  # type: ignore[misc]
        started.append(container)
    return started[0], started[1]


def test_workers_find_the_head_as_their_init_container_looks_for_it(ray: tuple[Container, Container]) -> None:
    ray[1].execute("ray", "health-check", "--address", f"{HEAD}:6379")


@pytest.mark.timeout(CHAIN_SECONDS + 600)
def test_a_chain_that_is_posted_to_the_head_runs_to_its_end(ray: tuple[Container, Container]) -> None:
    """From outside the head, as the operator posts it; its results are on the volume and with MLflow's server."""
    _, worker = ray
    job, url = document("jobs/demo.yaml", "RayJob")["spec"], f"http://{HEAD}:8265/api/jobs/"
    body = {
        "entrypoint": job["entrypoint"],
        "submission_id": "demo",
        "entrypoint_resources": json.loads(job["entrypointResources"]),
    }
    assert worker.ask(url, body=body).status == 401
    allowed = {"x-ray-authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    worker.wait_for(lambda: worker.ask(url, allowed, body).status == 200, PATIENCE_SECONDS)

    def status() -> str:
        said = worker.ask(f"{url}demo", allowed)
        return str(json.loads(said.body)["status"]) if said.status == 200 else "UNKNOWN"

    def log() -> str:
        return str(json.loads(worker.ask(f"{url}demo/logs", allowed).body)["logs"])

    worker.wait_for(lambda: status() in ("SUCCEEDED", "FAILED", "STOPPED"), CHAIN_SECONDS)
    print(log()[-2500:])
    assert status() == "SUCCEEDED", log()
    results = worker.execute("bash", "-c", "cd ~/verydeep/runs/demo && ls && cat results.csv")
    assert "report.html" in results
    assert "fused" in results


def test_the_chain_is_with_the_tracking_server(mlflow: Container) -> None:
    """Runs of all its stages, and the net that it registered; to a client that knows the password."""
    account = ":".join(SECRETS["mlflow"][key] for key in ("username", "password"))
    allowed = {"Authorization": "Basic " + b64encode(account.encode()).decode(), "Content-Type": "application/json"}
    api = "http://mlflow:5000/api/2.0/mlflow"
    assert mlflow.ask(f"{api}/registered-models/search").status == 401
    models = json.loads(mlflow.ask(f"{api}/registered-models/search", allowed).body)
    assert [model["name"] for model in models["registered_models"]] == ["demo"]
    experiments = json.loads(mlflow.ask(f"{api}/experiments/search", allowed, {"max_results": 100}).body)
    numbers = [each["experiment_id"] for each in experiments["experiments"]]
    found = json.loads(mlflow.ask(f"{api}/runs/search", allowed, {"experiment_ids": numbers}).body)["runs"]
    names = {run["info"]["run_name"] for run in found}
    stages = ("a", "e", "e-large", "e-jitter")
    assert all(any(name.startswith(stage) for name in names) for stage in stages), names
