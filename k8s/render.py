"""Makes the manifests k8s/*.yaml and k8s/jobs/*.yaml out of the templates and values in k8s/source/.

    python -m k8s.render [--values MINE.yaml] [--out FOLDER]

Without arguments (`make manifests`): those that are part of the repository. With values of a site's own: into a folder
of its own, to be applied from there. Versions come from where they are fixed: Ray's from constraints.txt.
"""

import argparse
import hashlib
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from k8s.values import SOURCE, ValuesError, job_file, size, values

HERE = Path(__file__).resolve().parent
_ROOT = HERE.parent
_JOB_TEMPLATE = "jobs/job.yaml"
_HEAD = "# Made of k8s/source/"
_MLFLOW_NAMES = ("mlflow", "mlflow.verydeep", "mlflow.verydeep.svc", "mlflow.verydeep.svc.cluster.local")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m k8s.render", description="Makes the Kubernetes manifests.")
    parser.add_argument("--values", type=Path, action="append", default=[], help="a file of values that differ")
    parser.add_argument("--out", type=Path, default=HERE, help="where the manifests go (default: k8s/)")
    options = parser.parse_args(arguments)
    try:
        if options.values and options.out.resolve() == HERE:
            raise ValuesError("--values: name a folder of your own with --out; k8s/ holds what is in the repository")
        write(rendered(values(options.values)), options.out)
    except (ValuesError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def write(texts: Mapping[str, str], folder: Path) -> None:
    """Manifests of an earlier call that are no longer made are removed: `kubectl apply` would read them."""
    for name, text in texts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    for file in (*folder.glob("*.yaml"), *folder.glob("jobs/*.yaml")):
        if str(file.relative_to(folder)) not in texts and file.read_bytes().startswith(_HEAD.encode()):
            file.unlink()


def rendered(chosen: Mapping[str, Any]) -> dict[str, str]:
    """The manifests' texts by their names below k8s/, out of `values()`."""
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
        + ["localhost:*", "127.0.0.1:*", *chosen["mlflow_hosts"]],
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


def _headed(template: str, text: str) -> str:
    aligned = re.sub(r"(?<=\S) {2,}# ", "  # ", text)  # what was aligned in a template is not after an indent
    lines = [f"{_HEAD}{template} by `make manifests`: change that.", *aligned.splitlines()]
    return "".join(f"{line.rstrip()}\n" for line in lines if line.strip())


def _memory(node: Mapping[str, Any]) -> dict[str, Any]:
    return {**node, "memory": size(f"{node['memory']}Gi")}


def _standing(chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The worker groups of the standing cluster, which the autoscaler starts with no pod."""
    gpus, cpu = chosen["gpus"], chosen["cpu_node"]
    return [
        {**_gpu_group(gpus, gpus["per_node"]), "name": "gpu", "replicas": 0, "least": 0, "most": gpus["most_nodes"]},
        {**_cpu_group(cpu["cpus"], cpu["memory"]), "name": "cpu", "replicas": 0, "least": 0, "most": cpu["most"]},
    ]


def _job(name: str, settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    text, cluster = job_file(settings)
    most = cluster.workers[1]
    groups = list(_groups(settings.get("gpus", most if cluster.gpus_per_worker == 1 else 0), most, chosen))
    return {
        "name": name,
        "title": _title(text),
        "entrypoint": _scalar(shlex.join(["exec", f"jobs/{settings['file']}", *settings.get("arguments", [])])),
        "groups": groups,
        "driver_group": next(group["name"] for group in groups if group["driver"]),
        "head": _memory(chosen["job_head"]),
    }


def _groups(gpus: int, workers: int, chosen: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Worker groups of a job: one pod for the driver, and for each node's GPUs one; without GPUs one pod for all."""
    if gpus:
        pods = -(-gpus // chosen["gpus"]["per_node"])
        each = -(-gpus // pods)
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
        "memory": size(f"{gpus['memory_per_gpu'] * each}Gi"),
        "shared_memory": size(f"{gpus['shared_memory_per_gpu'] * each}Gi"),
        "selector": gpus["selector"],
        "runtime_class": gpus["runtime_class"],
        "driver": False,
    }


def _cpu_group(cpus: int, memory: int) -> dict[str, Any]:
    return {
        "gpus": 0,
        "cpus": cpus,
        "memory": size(f"{memory}Gi"),
        "shared_memory": "2Gi",
        "selector": {},
        "runtime_class": "",
        "driver": False,
    }


def _scalar(text: str) -> str:
    """A text as YAML, without quotes where it can be."""
    return json.dumps(text) if re.search(r": |:$| #|[^ -~]", text) else text


def _title(text: str) -> str:
    """The first sentence of a job file's comment."""
    lines = [line[2:] for line in text.splitlines() if line.startswith("# ") and "yaml-language-server" not in line]
    return re.split(r"(?<=\.)\s", " ".join(lines))[0]


if __name__ == "__main__":
    sys.exit(main())
