"""Makes the manifests k8s/*.yaml and k8s/jobs/*.yaml out of the templates and values in k8s/source/.

    python -m k8s.render [--values MINE.yaml] [--out FOLDER]

Without arguments (`make manifests`): those that are part of the repository. With values of a site's own: into a folder
of its own, to be applied from there. Versions come from where they are fixed: Ray's from constraints.txt.
"""

import argparse
import difflib
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent
SOURCE = HERE / "source"
_ROOT = HERE.parent
_JOB_TEMPLATE = "jobs/job.yaml"
_MLFLOW_NAMES = ("mlflow", "mlflow.verydeep", "mlflow.verydeep.svc", "mlflow.verydeep.svc.cluster.local")


class ValuesError(Exception):
    """Values that cannot be used; one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m k8s.render", description="Makes the Kubernetes manifests.")
    parser.add_argument("--values", type=Path, action="append", default=[], help="a file of values that differ")
    parser.add_argument("--out", type=Path, default=HERE, help="where the manifests go (default: k8s/)")
    options = parser.parse_args(arguments)
    try:
        if options.values and options.out.resolve() == HERE:
            raise ValuesError("--values: name a folder of your own with --out; k8s/ holds what is in the repository")
        texts = rendered(values(options.values))
        for name, text in texts.items():
            file = options.out / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except (ValuesError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def values(files: Sequence[Path] = ()) -> dict[str, Any]:
    """Those of the repository, and over them those of `files`. Raises ValuesError and OSError."""
    merged: dict[str, Any] = yaml.safe_load((SOURCE / "values.yaml").read_text(encoding="utf-8"))
    for file in files:
        try:
            own = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValuesError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(own, dict):
            raise ValuesError(f"{file}: a mapping is needed, as in {SOURCE / 'values.yaml'}")
        merged = _over(merged, own, str(file), "")
    return merged


def rendered(chosen: Mapping[str, Any]) -> dict[str, str]:
    """The manifests' texts by their names below k8s/. Raises ValuesError."""
    _check(chosen)
    environment = Environment(
        loader=FileSystemLoader(SOURCE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["without_comments"] = without_comments
    context = {
        "values": chosen,
        "ray_version": ray_version(),
        "mlflow_hosts": [f"{name}{port}" for name in _MLFLOW_NAMES for port in ("", ":5000")]
        + ["localhost:*", "127.0.0.1:*"],
        "head": _memory(chosen["head"]),
        "standing_groups": _standing(chosen),
    }
    texts = {}
    for template in sorted(environment.list_templates(extensions=["yaml"])):
        if template in ("values.yaml", _JOB_TEMPLATE):
            continue
        if template == "jobs/prepare-imagenet.yaml" and not chosen["storage"]["imagenet"]:
            continue
        digest = hashlib.sha256(environment.get_template(template).render(**context, digest="").encode()).hexdigest()
        texts[template] = _headed(template, environment.get_template(template).render(**context, digest=digest[:8]))
    for name, settings in chosen["jobs"].items():
        job = _job(name, settings, chosen)
        texts[f"jobs/{name}.yaml"] = _headed(
            _JOB_TEMPLATE, environment.get_template(_JOB_TEMPLATE).render(**context, job=job)
        )
    return texts


def ray_version() -> str:
    """As constraints.txt fixes it."""
    found = re.search(r"^ray(?:\[.*?\])?==(\S+)", (_ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValuesError("constraints.txt has no line ray==VERSION")
    return found[1]


def without_comments(text: str) -> str:
    """YAML of ours without its comments: none of our values has ` #` in it."""
    lines = (re.sub(r"(^|\s+)#( .*)?$", "", line) for line in text.split("\n"))
    return "\n".join(line for line in lines if line.strip())


def _check(chosen: Mapping[str, Any]) -> None:
    storage = chosen["storage"]
    if bool(storage["artifacts"]) == bool(storage["artifacts_uri"]):
        raise ValuesError("storage: either artifacts has a size or artifacts_uri a place")
    for path, number in (("gpus", "per_node"), ("gpus", "cpus_per_gpu"), ("gpus", "memory_per_gpu")):
        if chosen[path][number] < 1:
            raise ValuesError(f"{path}.{number}: 1 at least")


def _headed(template: str, text: str) -> str:
    aligned = re.sub(r"(?<=\S) {2,}# ", "  # ", text)  # what was aligned in a template is not after an indent
    lines = [f"# Made of k8s/source/{template} by `make manifests`: change that.", *aligned.splitlines()]
    return "".join(f"{line.rstrip()}\n" for line in lines if line.strip())


def _over(below: Any, above: Any, file: str, path: str) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        free = path in ("jobs", "gpus.selector", "identity") or path.startswith("jobs.")
        for key in above:
            if not isinstance(key, str) or (key not in below and not free):
                raise ValuesError(f"{file}: {path + '.' if path else ''}{key}: no such value{_nearest(key, below)}")
        changed = {
            key: _over(below.get(key), value, file, f"{path}.{key}" if path else key) for key, value in above.items()
        }
        return {key: value for key, value in {**below, **changed}.items() if not (free and value is None)}
    if below is not None and above is not None and type(below) is not type(above):
        raise ValuesError(f"{file}: {path}: {_kind(below)} is needed, not {above!r}")
    return above


def _kind(value: Any) -> str:
    kinds = {str: "text", int: "a whole number", list: "a list", dict: "a mapping"}
    return kinds.get(type(value), type(value).__name__)


def _nearest(key: object, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(key), list(known), 1, 0.0)
    return f"; the nearest is {near[0]}" if near else ""


def _memory(node: Mapping[str, Any]) -> dict[str, Any]:
    return {**node, "memory": f"{node['memory']}Gi"}


def _standing(chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The worker groups of the standing cluster, which the autoscaler starts with no pod."""
    gpus, cpu = chosen["gpus"], chosen["cpu_node"]
    return [
        {**_gpu_group(gpus, gpus["per_node"]), "name": "gpu", "replicas": 0, "least": 0, "most": gpus["most_nodes"]},
        {**_cpu_group(cpu["cpus"], cpu["memory"]), "name": "cpu", "replicas": 0, "least": 0, "most": cpu["most"]},
    ]


def _job(name: str, settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    file = _ROOT / "jobs" / str(settings.get("file", ""))
    if not file.is_file():
        raise ValuesError(f"jobs.{name}.file: {file} is not there")
    unknown = next((key for key in settings if key not in ("file", "arguments", "gpus")), None)
    if unknown is not None:
        raise ValuesError(f"jobs.{name}.{unknown}: no such value; there are file, arguments and gpus")
    text = file.read_text(encoding="utf-8")
    cluster = yaml.safe_load(text).get("cluster", {})
    workers = cluster.get("workers", 1)
    most = max(workers) if isinstance(workers, list) else workers
    wanted = settings.get("gpus", most if cluster.get("gpus_per_worker") == 1 else 0)
    groups = list(_groups(wanted, most, chosen))
    return {
        "name": name,
        "title": _title(text),
        "entrypoint": " ".join([f"jobs/{file.name}", *settings.get("arguments", [])]),
        "groups": groups,
        "driver_group": next(group["name"] for group in groups if group["driver"]),
        "head": {"cpus": 1, "memory": "4Gi"},
    }


def _groups(gpus: int, workers: int, chosen: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Worker groups of a job: one pod for the driver, and for each node's GPUs one; without GPUs one pod for all."""
    if gpus:
        each = min(gpus, chosen["gpus"]["per_node"])
        pods = -(-gpus // each)
        count = {"replicas": pods, "least": pods, "most": pods}
        driver = _cpu_group(chosen["driver"]["cpus"], chosen["driver"]["memory"])
        yield {**_gpu_group(chosen["gpus"], each), "name": "gpu", **count}
        yield {**driver, "name": "driver", "driver": True, "replicas": 1, "least": 1, "most": 1}
    else:
        group = _cpu_group(max(workers, chosen["cpu_node"]["cpus"]), chosen["cpu_node"]["memory"])
        yield {**group, "name": "cpu", "driver": True, "replicas": 1, "least": 1, "most": 1}


def _gpu_group(gpus: Mapping[str, Any], each: int) -> dict[str, Any]:
    return {
        "gpus": each,
        "cpus": gpus["cpus_per_gpu"] * each,
        "memory": f"{gpus['memory_per_gpu'] * each}Gi",
        "shared_memory": f"{gpus['shared_memory_per_gpu'] * each}Gi",
        "selector": gpus["selector"],
        "driver": False,
    }


def _cpu_group(cpus: int, memory: int) -> dict[str, Any]:
    return {
        "gpus": 0,
        "cpus": cpus,
        "memory": f"{memory}Gi",
        "shared_memory": "2Gi",
        "selector": {},
        "driver": False,
    }


def _title(text: str) -> str:
    """The first sentence of a job file's comment."""
    lines = [line[2:] for line in text.splitlines() if line.startswith("# ") and "yaml-language-server" not in line]
    return re.split(r"(?<=\.)\s", " ".join(lines))[0]


if __name__ == "__main__":
    sys.exit(main())
