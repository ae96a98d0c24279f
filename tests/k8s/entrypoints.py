"""What the manifests start of this project is there, can be executed and parses."""

import os
import shlex
from collections.abc import Iterator
from functools import cache

from cluster.settings import ClusterSettings
from jobs import cli, schema
from jobs.job import Job
from pipelines.errors import VerydeepError
from tests.k8s.manifests import Document, Manifests, command
from tests.k8s.schemas import amount


def entrypoints(manifests: Manifests) -> Iterator[str]:
    for where, document in manifests.named("RayJob"):
        words = shlex.split(document["spec"].get("entrypoint", "")) or [""]
        problem = _of_job_file(manifests, words)
        if problem:
            yield f"{where}: {problem}"
        else:
            settings = _job(str(manifests.root / words[0]), tuple(_changes(words[1:]))).cluster
            yield from (f"{where}: {problem}" for problem in _room(document["spec"]["rayClusterSpec"], settings))
    for pod in manifests.pods:
        for container in pod.own:
            words = command(container)
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
            for module in (line[2] for line in (words, hook) if line[:2] == ["python", "-m"]):
                if not (manifests.root / f"{module.replace('.', '/')}.py").is_file():
                    yield f"{pod.where}: no module {module}"
            for word in words:
                problem = _of_job_file(manifests, [word]) if word.startswith("jobs/") else ""
                if problem:
                    yield f"{pod.where}: {problem}"
            if words[:1] == ["verydeep"] and not _parses(words[1:]):
                yield f"{pod.where}: verydeep does not know {shlex.join(words)}"


def job_files(manifests: Manifests) -> Iterator[str]:
    """There is a RayJob for each job file that is shipped."""
    shipped = {file.name for file in (manifests.root / "jobs").glob("*.yaml")}
    run = {d["spec"].get("entrypoint", "").split(" ")[0].removeprefix("jobs/") for _, d in manifests.named("RayJob")}
    yield from (f"jobs/{name}: no RayJob runs it" for name in sorted(shipped - run))


def _changes(words: list[str]) -> list[str]:
    """What is said after --set."""
    return [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--set"]


def _of_job_file(manifests: Manifests, words: list[str]) -> str:
    file, further = manifests.root / words[0], words[1:]
    if not words[0].startswith("jobs/") or not file.is_file():
        return f"{words[0]!r} is no job file"
    if not os.access(file, os.X_OK):
        return f"{words[0]} cannot be executed"
    if further[::2] != ["--set"] * (len(further) // 2) or len(further) % 2:
        return f"{shlex.join(further)} is more than --set"
    try:
        _job(str(file), tuple(_changes(further)))
    except VerydeepError as error:
        return " ".join(str(error).split())
    return ""


@cache
def _job(file: str, changes: tuple[str, ...]) -> Job:
    return schema.load(file, changes)


def _parses(words: list[str]) -> bool:
    try:
        cli._parser().parse_args(words)
    except SystemExit:
        return False
    return True


def _room(cluster: Document, settings: ClusterSettings) -> Iterator[str]:
    """The workers' places, all at once."""
    cpus, gpus = 0, 0
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus += group["replicas"] * int(amount(limits["cpu"]))
        gpus += group["replicas"] * int(amount(limits.get("nvidia.com/gpu", 0)))
    most = settings.workers[1]
    each = 1 if settings.cpus_per_worker == "auto" else settings.cpus_per_worker
    wanted = 0 if settings.gpus_per_worker == "auto" else settings.gpus_per_worker
    if gpus < most * wanted or cpus < most * each:
        yield f"{most} workers need {most * each} CPUs and {most * wanted} GPUs; there are {cpus} and {gpus}"
