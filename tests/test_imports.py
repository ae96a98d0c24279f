"""Imports go one way: jobs -> cluster -> pipelines; big packages have a home."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "pipelines": {"pipelines"},
    "cluster": {"cluster", "pipelines"},
    "jobs": {"jobs", "cluster", "pipelines"},
    "k8s": {"k8s", "jobs", "cluster", "pipelines"},
    "benchmarks": {"benchmarks", "jobs", "cluster", "pipelines"},
}
FILES = {"pipelines": 8, "cluster": 8, "jobs": 8, "k8s": 3, "benchmarks": 8}  # at least
HOMES = {
    "ray": {
        f"cluster/{name}.py"
        for name in (
            "launch",
            "worker",
            "pieces",
            "pool",
            "place",
            "mailbox",
            "fit",
            "controller",
            "failure",
            "network",
            "storage",
            "submission",
        )
    },
    "mlflow": {"cluster/deliver.py", "cluster/registry.py"},
    "onnx": {"cluster/onnx_file.py"},
    "onnxruntime": {"cluster/onnx_file.py", "pipelines/classifier.py"},
    "psutil": {"cluster/system.py", "cluster/leave.py"},
    "pynvml": {"cluster/system.py"},
    "safetensors": {"cluster/foreign.py"},
    "yaml": {"jobs/document.py", "jobs/schema.py", "k8s/values.py"},
    "numba": {"pipelines/resample.py"},
    "matplotlib": {
        "pipelines/figures.py",
        "pipelines/sheet.py",
        "jobs/pictures.py",
        "jobs/curves.py",
        "benchmarks/scaling_picture.py",
    },
    "rich": {"jobs/screen.py", "jobs/watch.py", "jobs/follow.py"},
    "jinja2": {"jobs/report.py", "k8s/render.py"},
    "nvidia": {"pipelines/graphs.py", "pipelines/peers_dali.py"},
    "cv2": {"pipelines/peers.py"},
    "webdataset": {"pipelines/peers.py"},
}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    files = list((ROOT / package).glob("*.py"))
    assert len(files) >= FILES[package]
    for file in files:
        wrong = (imported(file) & set(MAY_IMPORT)) - MAY_IMPORT[package]
        assert not wrong, f"{file} imports {wrong}"
        for name, homes in HOMES.items():
            if name in imported(file):
                assert f"{package}/{file.name}" in homes, f"{file} imports {name}"


def test_the_bootstrap_program_is_of_the_standard_library_alone() -> None:
    """It holds a credential, and starts in a moment."""
    assert imported(ROOT / "k8s" / "bootstrap.py") <= sys.stdlib_module_names


def test_what_ray_trains_controller_imports_does_without_torch() -> None:
    """By whatever way: the controller's process would take seconds more to start, and 200 MB."""
    program = "import sys, cluster.controller, cluster.network; print(*{'ray', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ray"]
