"""What differs from one cluster to another: k8s/source/values.yaml, and over it the files of a site."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

SOURCE = Path(__file__).parent / "source"
JOBS = Path(__file__).parent.parent / "jobs"
_FREE = ("jobs", "gpus.selector", "identity")  # mappings in which a site may name what it likes
_SIZES = ("imagenet", "archives", "runs", "artifacts", "postgresql", "redis")
_OPTIONAL = frozenset(
    {"shared_class", "block_class", "imagenet", "runs", "artifacts", "artifacts_uri", "credentials", "queue"}
)
_MAY_BE_0 = ("gpus.most_nodes", "cpu_node.most")
_QUOTED = ("gpus.selector.", "identity.")  # the values of labels and annotations
# What stands in YAML without quotes.
_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:@%+=&?-]*")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")  # KubeRay appends to it, and Kubernetes takes 63
_SIZE = re.compile(r"([1-9][0-9]*)(Mi|Gi|Ti|Pi)")


class ValuesError(Exception):
    """Values that cannot be used; one line."""


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
    problem = next(_problems(merged), None)
    if problem is not None:
        raise ValuesError(problem)
    storage = merged["storage"]
    return {**merged, "storage": {**storage, **{name: size(storage[name]) for name in _SIZES if storage[name]}}}


def size(text: str) -> str:
    """In the largest unit that leaves a whole number, as Kubernetes stores it: `kubectl apply` compares texts."""
    found = _SIZE.fullmatch(text)
    assert found is not None
    number, units = int(found[1]), ["Mi", "Gi", "Ti", "Pi"]
    unit = units.index(found[2])
    while number % 1024 == 0 and unit + 1 < len(units):
        number, unit = number // 1024, unit + 1
    return f"{number}{units[unit]}"


def job_file(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The text of a job's file, and what it says of its cluster."""
    text = (JOBS / settings["file"]).read_text(encoding="utf-8")
    return text, yaml.safe_load(text).get("cluster", {})


def _over(below: Any, above: Any, file: str, path: str) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        if below is not None and type(below) is not type(above):
            raise ValuesError(f"{file}: {path}: {_kind(below)} is needed, not {above!r}")
        return above
    free = path in _FREE or path.startswith("jobs.")
    merged = dict(below)
    for key, value in above.items():
        where = f"{path}.{key}".lstrip(".")
        if not isinstance(key, str) or (key not in below and (not free or value is None)):
            raise ValuesError(f"{file}: {where}: no such value{_nearest(key, below)}")
        if free and value is None:
            del merged[key]
        else:
            merged[key] = _over(below.get(key), value, file, where)
    return merged


def _kind(value: Any) -> str:
    kinds = {str: "text", int: "a whole number", list: "a list", dict: "a mapping"}
    return kinds[type(value)]


def _nearest(key: object, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(key), list(known), 1, 0.0)
    return f"; the nearest is {near[0]}" if near else ""


def _problems(chosen: Mapping[str, Any]) -> Iterator[str]:
    """One line for each. The types of what values.yaml names are right by now."""
    yield from _of_leaves({key: value for key, value in chosen.items() if key != "jobs"}, "")
    storage = chosen["storage"]
    if bool(storage["artifacts"]) == bool(storage["artifacts_uri"]):
        yield "storage: either artifacts has a size or artifacts_uri a place"
    if chosen["pull_policy"] not in ("Always", "IfNotPresent", "Never"):
        yield f"pull_policy: Always, IfNotPresent or Never, not {chosen['pull_policy']!r}"
    if chosen["gpus"]["shared_memory_per_gpu"] >= chosen["gpus"]["memory_per_gpu"]:
        yield "gpus.shared_memory_per_gpu: less than memory_per_gpu, which it is part of"
    for name, settings in chosen["jobs"].items():
        yield from _of_job(f"jobs.{name}", name, settings)


def _of_leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _of_leaves(below, f"{path}.{key}".lstrip("."))
            if not _TEXT.fullmatch(key):
                yield f"{path}: {key!r} is no name of a label or annotation"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _of_text(item, f"{path}[{index}]")
    elif type(value) is not int or path.startswith(_QUOTED):
        yield from _of_text(value, path)
    elif value < (least := 0 if path.endswith(_MAY_BE_0) else 1):
        yield f"{path}: {least} at least"


def _of_text(value: Any, path: str) -> Iterator[str]:
    section, _, name = path.rpartition(".")
    if not isinstance(value, str):
        yield f"{path}: text is needed, not {value!r}"
    elif not value:
        if name not in _OPTIONAL:
            yield f"{path}: must not be empty"
    elif section == "storage" and name in _SIZES:
        if not _SIZE.fullmatch(value):
            yield f"{path}: a size in Mi, Gi, Ti or Pi, as 200Gi, not {value!r}"
    elif not _TEXT.fullmatch(value) or (not path.startswith(_QUOTED) and yaml.safe_load(value) != value):
        yield f"{path}: {value!r} cannot stand there: letters, digits and _ . / : @ % + = & ? -, and no number"


def _of_job(path: str, name: str, settings: Any) -> Iterator[str]:
    taken = {file.stem for file in (SOURCE / "jobs").glob("*.yaml")} - {"job"}
    if not _NAME.fullmatch(name):
        yield f"{path}: a job's name has small letters, digits and -, 47 at most"
    elif name in taken:
        yield f"{path}: there is another manifest jobs/{name}.yaml"
    elif not isinstance(settings, dict):
        yield f"{path}: a mapping is needed, not {settings!r}"
    else:
        yield from _of_settings(path, settings)


def _of_settings(path: str, settings: Mapping[str, Any]) -> Iterator[str]:
    unknown = next((key for key in settings if key not in ("file", "arguments", "gpus")), None)
    files = {candidate.name: None for candidate in JOBS.glob("*.yaml")}
    file, gpus, arguments = settings.get("file"), settings.get("gpus", 0), settings.get("arguments", [])
    if unknown is not None:
        yield f"{path}.{unknown}: no such value; there are file, arguments and gpus"
    elif file not in files:
        yield f"{path}.file: {file} is not there, in {JOBS}{_nearest(file, files)}"
    elif type(gpus) is not int or gpus < 0:
        yield f"{path}.gpus: a whole number is needed, not {gpus!r}"
    elif not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        yield f"{path}.arguments: a list of texts is needed, not {arguments!r}"
