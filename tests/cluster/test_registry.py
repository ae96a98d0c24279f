"""Against a real registry in a SQLite file, the model as others load it, and MLflow's own scoring server."""

import base64
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from mlflow import MlflowClient, pyfunc
from mlflow.pyfunc import scoring_server

from cluster import onnx_file, registry
from cluster.deliver import connect
from pipelines.classifier import Classifier
from pipelines.location import Location
from tests.cluster.nets import random_net
from tests.conftest import encoded

NET = random_net("A", classes=("ant", "bee", "cat", "dog", "eel", "fox"))
IMAGES = [encoded(150, 90, 1, "JPEG"), encoded(70, 130, 2, "PNG"), b"no image"]
LOADS = """
import base64, json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/job@best")
answers = model.predict([base64.b64decode(image) for image in sys.argv[2:]])
print(json.dumps([answers, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The address of a registry where the net is version 1 of `job`, and the run that it came from."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"
    client = connect(uri)
    run = client.create_run(client.create_experiment("job")).info.run_id
    assert registry.register(client, run, "job", NET, {"net": "A", "top1_error": "0.25"}) == "1"
    return uri, run


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the net's file itself makes of the images."""
    file = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx_file.write(NET, Location.of(file), dense=True)
    classifier = Classifier(file)
    best = [[{"class": name, "probability": p} for name, p in classifier.best(image)] for image in IMAGES[:2]]
    return [*({"best": each, "error": None} for each in best), {"best": [], "error": "not an image"}]


def test_a_process_without_torch_dali_and_this_program_classifies_images_as_they_come(
    store: tuple[str, str], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    texts = [base64.b64encode(image).decode() for image in IMAGES]
    command = [sys.executable, "-I", "-W", "ignore", "-c", LOADS, store[0], *texts]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    answers, modules = json.loads(out.splitlines()[-1])
    assert answers == expected
    assert {"mlflow", "onnxruntime", "PIL"} <= set(modules)
    assert not {"torch", "nvidia", "pipelines", "cluster", "jobs", "ray"} & set(modules)


@pytest.fixture(scope="module")
def served(store: tuple[str, str]) -> Iterator[str]:
    """What `mlflow models serve` runs, at this address."""
    place = MlflowClient(store[0]).get_model_version_by_alias("job", "best").source
    app = scoring_server.init(pyfunc.load_model(place))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/invocations"
        server.should_exit = True
        thread.join()


def asked(address: str, content: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["predictions"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["inputs", "instances", "dataframe_split", "dataframe_records"])
def test_mlflows_scoring_server_takes_base64_in_every_form(
    form: str, served: str, expected: list[dict[str, Any]]
) -> None:
    texts = [base64.b64encode(image).decode() for image in IMAGES]
    content: Any = texts
    if form == "dataframe_split":
        content = {"data": [[text] for text in texts]}
    elif form == "dataframe_records":
        content = [{"image": text} for text in texts]
    assert asked(served, {form: content}) == expected


def test_the_number_of_classes_is_a_parameter(served: str, expected: list[dict[str, Any]]) -> None:
    text = base64.b64encode(IMAGES[0]).decode()
    (answer,) = asked(served, {"inputs": [text], "params": {"count": 2}})
    assert answer["best"] == expected[0]["best"][:2]


def test_a_net_is_one_version_and_the_last_registered_is_the_best(
    store: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    uri, run = store
    client = MlflowClient(uri)
    assert registry.register(client, run, "job", random_net("A", seed=2), {"net": "A"}, ["best", "e-jitter"]) == "2"
    assert int(client.get_model_version_by_alias("job", "best").version) == 2
    assert registry.register(client, run, "job", NET, {}) == "1"
    assert int(client.get_model_version_by_alias("job", "best").version) == 1
    assert int(client.get_model_version_by_alias("job", "e-jitter").version) == 2
    assert len(client.search_model_versions("name = 'job'")) == 2
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_version_knows_its_run_its_model_and_its_tags(store: tuple[str, str]) -> None:
    uri, run = store
    client = MlflowClient(uri)
    version = client.get_model_version("job", "1")
    assert version.run_id == run
    assert len(version.tags.pop("program")) == 16
    assert version.tags == {"net": "A", "top1_error": "0.25", "seal": NET.seal}
    outputs = [output.model_id for output in client.get_run(run).outputs.model_outputs]
    models = [client.get_logged_model(number) for number in outputs]
    assert version.source in [model.artifact_location for model in models]
    assert all(json.loads(model.tags["mlflow.modelVersions"])[0]["name"] == "job" for model in models)


def test_what_is_kept_needs_three_packages_and_is_no_pickle(store: tuple[str, str]) -> None:
    folder = Path(MlflowClient(store[0]).get_model_version("job", "1").source.removeprefix("file://"))
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pth"))]
    assert sorted(name.rpartition("/")[2] for name in names if name.endswith(".py")) == [
        "__init__.py",
        "classifier.py",
        "still.py",
    ]
    needed = {line.partition("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()}
    assert needed == {"mlflow", "onnxruntime", "pillow", "numpy"}
