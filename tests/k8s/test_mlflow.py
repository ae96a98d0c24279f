"""MLflow's server and the backup of its database, by the command lines and environments of the manifests, on a real
PostgreSQL that wants its password."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from cluster.track import Tracker
from jobs import check, cli, run, schema
from jobs.store import SPOOL
from pipelines.location import Location
from tests.cluster.mlflow_server import Postgres, wait_for
from tests.jobs.test_run import in_place_of_ray
from tests.k8s.mlflow_pod import SECRETS, Here, MlflowPod, documents

ADMIN = (SECRETS["mlflow"]["username"], SECRETS["mlflow"]["password"])
API = "/api/2.0/mlflow/experiments/search?max_results=10"
STAGES = ("a", "b")
JOB = """
name: job
data: {{train: {train}, val: {val}}}
storage: {storage}
train:
  {{net: A, scale: 34, input_size: 32, width: 0.05, batch: 50, dropout: 0.0, flip: false, pixel_std: 64, epochs: 1,
   init: {{random: kaiming}}}}
stages:
  a: {{}}
  b: {{net: B, init: {{from: a}}}}
evaluations:
  all: {{models: [a, b]}}
"""


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as found:
        yield found


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Iterator[MlflowPod]:
    """Started; the environment of this process is that of a pod of ours that tracks there."""
    database = Postgres(SECRETS["postgresql"]["password"])
    volumes = tmp_path_factory.mktemp("pod") / "volumes"
    volumes.mkdir()
    pod = MlflowPod(volumes, database)
    patch.setenv("PGPASSWORD", SECRETS["postgresql"]["password"])  # of this module's own look at the database
    patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    patch.setenv("MLFLOW_TRACKING_URI", pod.uri)
    patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
    patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
    try:
        database.start()
        execute(database, "CREATE DATABASE mlflow", "postgres")  # as the image does at its first start
        pod.start()
        yield pod
    finally:
        pod.kill()
        database.stop()
        shutil.rmtree(database.folder, ignore_errors=True)


def execute(database: Postgres, statement: str, within: str = "mlflow") -> list[Any]:
    with closing(psycopg2.connect(host="127.0.0.1", port=database.port, user="mlflow", dbname=within)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []


@dataclass(frozen=True)
class Chain:
    """That was run with the pod's server. `seen`: what its runs were in MLflow then."""

    storage: Path
    seen: Mapping[str, Any]


@pytest.fixture(scope="module")
def chain(
    pod: MlflowPod, patch: pytest.MonkeyPatch, digits: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Chain:
    storage = tmp_path_factory.mktemp("storage")
    room = in_place_of_ray(patch, 2)
    file = storage / "job.yaml"
    file.write_text(JOB.format(train=digits[0], val=digits[1], storage=storage))
    run.run(check.check(schema.load(file)), None, str(file))
    assert sorted(room.began) == sorted(STAGES)
    return Chain(storage, seen(pod))


def seen(pod: MlflowPod) -> dict[str, Any]:
    """All runs by name, and the registered nets: what must never be lost."""
    client = MlflowClient(pod.uri)
    experiment = client.get_experiment_by_name("job")
    runs = client.search_runs([experiment.experiment_id])
    told = {run.info.run_name: (run.info.run_id, run.info.status, run.data.metrics, run.data.tags) for run in runs}
    model = client.get_registered_model("job")
    return {"runs": told, "nets": dict(model.aliases)}


def test_a_password_and_a_name_of_its_own_are_wanted_but_for_kubelet(pod: MlflowPod) -> None:
    name, namespace = pod.service["metadata"]["name"], pod.service["metadata"]["namespace"]
    (port,) = (entry["port"] for entry in pod.service["spec"]["ports"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert pod.ask(pod.server[probe]["httpGet"]["path"], host="10.244.1.7:5000").status == 200
    for domain in ("", f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.cluster.local"):
        for host in (name + domain, f"{name}{domain}:{port}"):
            assert pod.ask(API, host, ADMIN).status == 200, host
            assert pod.ask(API, host).status == 401
    assert pod.ask(API, "localhost:8080", ADMIN).status == 200, "kubectl port-forward, to any port"
    for host in ("evil.example", "mlflow:5001", f"{name}.other.svc:{port}", "10.244.1.7:5000"):
        assert pod.ask(API, host, ADMIN).status == 403, host
    for path in ("/", API, "/version", "/metrics", "/api/2.0/mlflow-artifacts/artifacts", "/signup"):
        assert pod.ask(path, f"{name}:{port}").status == 401, path
    for user in (("admin", ""), ("admin", "password1234"), ("other", ADMIN[1])):
        assert pod.ask(API, f"{name}:{port}", user).status == 401


def test_no_password_is_in_a_command_line_or_in_the_log(pod: MlflowPod) -> None:
    secrets = [value for secret in SECRETS.values() for key, value in secret.items() if key != "username"]
    lines = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if os.access(file, os.R_OK)]
    assert any(f"--port={pod.port}".encode() in line for line in lines)
    for secret in secrets:
        assert secret not in pod.log.read_text()
        assert not any(secret.encode() in line for line in lines)


def test_a_chain_is_tracked_and_its_checkpoints_come_back_through_the_proxy(chain: Chain, tmp_path: Path) -> None:
    runs = chain.seen["runs"]
    assert {name: status for name, (_, status, _, _) in runs.items()} == dict.fromkeys(("job", *STAGES), "FINISHED")
    assert set(chain.seen["nets"]) == {"best", "b"}
    for stage in STAGES:
        number, _, metrics, tags = runs[stage]
        assert tags["mlflow.parentRunId"] == runs["job"][0]
        assert metrics["validation_loss"] > 0
        (there,) = MlflowClient().list_artifacts(number, "checkpoints")
        (folder,) = (chain.storage / "runs/job").glob(f"{stage}-*")
        back = Path(download_artifacts(run_id=number, artifact_path=there.path, dst_path=str(tmp_path / stage)))
        assert back.read_bytes() == (folder / Path(there.path).name).read_bytes()
        assert back.stat().st_size > 10_000
    net = Path(download_artifacts("models:/job@best", dst_path=str(tmp_path / "net")))
    assert (net / "MLmodel").is_file()


def test_a_wrong_password_is_told_of_in_one_line_and_loses_nothing(
    pod: MlflowPod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    spool = Location.of(str(tmp_path / SPOOL))
    for password, reason in (
        ("a-wrong-password", "does not know the user of MLFLOW_TRACKING_USERNAME with MLFLOW_TRACKING_PASSWORD"),
        ("", "wants a name and a password: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are not set"),
    ):
        told.clear()
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        tracker = Tracker(pod.uri, "locked", spool, told.append)
        tracker.metrics(tracker.open_run("kept", None, {}, None), {"loss": 1.5}, 3)
        wait_for(lambda: told)
        tracker.close()
        assert [line for line in told if reason in line] == told[:1], told
        assert "\n" not in told[0]
        assert cli.main(["sync", str(spool)]) == 1
        assert capsys.readouterr().out.splitlines()[0] == f"MLflow at {pod.uri} {reason}"
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
    assert cli.main(["sync", str(spool)]) == 0
    client = MlflowClient(pod.uri)
    runs = client.search_runs([client.get_experiment_by_name("locked").experiment_id])
    assert [run.data.metrics for run in runs] == [{"loss": 1.5}, {"loss": 1.5}]


def test_a_name_that_the_server_does_not_go_by_is_told_of(pod: MlflowPod, tmp_path: Path) -> None:
    told: list[str] = []
    uri = pod.uri.replace("127.0.0.1", "127.0.0.2")
    tracker = Tracker(uri, "named", Location.of(str(tmp_path / SPOOL)), told.append)
    tracker.open_run("kept", None, {}, None)
    wait_for(lambda: told)
    tracker.close()
    assert f"{uri} answers to other names alone: give it this one with --allowed-hosts, with the port;" in told[0]


def test_it_goes_on_when_its_database_has_been_away(pod: MlflowPod, chain: Chain) -> None:
    pod.database.stop()
    assert pod.ask(API, "mlflow:5000", ADMIN).status == 503
    path = pod.server["livenessProbe"]["httpGet"]["path"]
    assert pod.ask(path, "10.244.1.7:5000").status == 200, "to start it anew would not help"
    pod.database.start()
    wait_for(lambda: pod.ask(API, "mlflow:5000", ADMIN).status == 200)  # its log has to be gone through first
    assert seen(pod) == chain.seen


def test_nothing_but_its_volumes_can_be_written(pod: MlflowPod, chain: Chain) -> None:
    del chain  # it has worked
    assert list((pod.volumes / "work").iterdir()) == [], "where it was started"
    if not pod.read_only:
        pytest.skip("no file system can be mounted here, as in a container without privileges")
    (root,) = (line for line in pod.mounts().splitlines() if line.split()[4] == "/")
    assert root.split()[5].split(",")[0] == "ro"


def test_a_lost_database_is_brought_back_from_a_backup_and_the_next_pod_serves_it(
    pod: MlflowPod, chain: Chain, tmp_path: Path
) -> None:
    backup, restore = (
        Client("jobs/backup.yaml", "CronJob", pod, tmp_path),
        Client("jobs/restore.yaml", "Job", pod, tmp_path),
    )
    backups = tmp_path / "backups"
    assert restore.run().returncode != 0, "there is none"

    backups.mkdir(exist_ok=True)
    older = [f"mlflow-202501{day:02d}T023000Z.dump" for day in range(1, 16)]
    for name in (*older, "mlflow-20250116T023000Z.dump.part"):
        (backups / name).write_bytes(b"x")
    done = backup.run()
    assert done.returncode == 0, done.stderr
    *kept, newest = sorted(file.name for file in backups.iterdir())
    assert kept == older[-13:], "the newest 14, and nothing unfinished"
    assert (backups / newest).stat().st_mode & 0o077 == 0

    client = MlflowClient(pod.uri)
    later = client.create_experiment("later")
    assert restore.run().returncode != 0, "the server is connected"
    assert client.get_experiment(later).name == "later", "and nothing was changed"

    assert pod.end() < pod.grace_seconds
    execute(pod.database, "DROP DATABASE mlflow", "postgres")
    assert restore.run(BACKUP=older[-1]).returncode != 0, "of no use"
    done = restore.run()
    assert done.returncode == 0, done.stderr
    assert f"restoring {newest}" in done.stdout
    pod.start()
    assert seen(pod) == chain.seen
    assert client.get_experiment_by_name("later") is None
    left = {name for (name,) in execute(pod.database, "SELECT datname FROM pg_database")}
    assert left == {"mlflow", "postgres", "template0", "template1"}
    assert pod.ask(API, "mlflow:5000", ADMIN).status == 200, "users are in it, too"
    assert pod.log.read_text().count("Creating initial MLflow database tables") == 1, "at the first start alone"


class Client:
    """A manifest's one container, to be run to its end. `folder` stands for the volume."""

    def __init__(self, file: str, kind: str, pod: MlflowPod, folder: Path) -> None:
        spec = documents(file)[kind]["spec"]
        template = spec.get("jobTemplate", {}).get("spec", spec)["template"]
        (self._container,) = template["spec"]["containers"]
        (mount,) = self._container["volumeMounts"]
        self._here = Here({mount["mountPath"]: str(folder), "postgresql": "127.0.0.1"})
        self._port = str(pod.database.port)

    def run(self, **more: str) -> subprocess.CompletedProcess[str]:
        command = self._here.command(self._container)
        environment = {**self._here.environment(self._container), "PGPORT": self._port, **more}
        return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
