"""MLflow's model registry: a net with all that classifying images takes.

What is registered is a dense ONNX file, and the two files of this program that use it. They become a package with a
name of its own, so that they meet neither another version of themselves nor anything called `pipelines` in the process
that loads them. Nothing in the model is a pickle, and nothing of it needs torch, DALI or this program.
"""

import io
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from mlflow import MlflowClient, pyfunc
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Object, ParamSchema, ParamSpec, Property, Schema
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS
from PIL import Image
from xxhash import xxh3_64

from cluster import onnx_file
from cluster.nets import Trained
from pipelines import classifier, still
from pipelines.location import Location

ALIAS = "best"
_REQUIREMENTS = ("onnxruntime", "pillow", "numpy")
_MODULES = (classifier, still)
# Without names, for a column's name would be asked for by calls with a list of bytes. A type hint would do the same
# as this schema, but MLflow would not decode base64 then.
_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.binary)]),
    outputs=Schema(
        [
            ColSpec(
                Array(Object([Property("class", DataType.string), Property("probability", DataType.double)])), "best"
            ),
            ColSpec(DataType.string, "error", required=False),
        ]
    ),
    params=ParamSchema([ParamSpec("count", DataType.long, 5)]),
)


def register(
    client: MlflowClient,
    run: str,
    name: str,
    trained: Trained,
    tags: Mapping[str, str],
    aliases: Sequence[str] = (ALIAS,),
) -> str:
    """The version of the registered model `name` that is this net, which has the aliases from then on.

    A net, which its seal stands for, is registered once, unless the modules change that go with it; its tags are set
    anew. `run`: MLflow's id of that which the net came from, which the model belongs to.
    Raises what MLflow and `onnx_file.write` raise.
    """
    tags = {**tags, "seal": trained.seal, "program": _checksum()}
    found = _version(client, name, trained.seal)
    if found is None:
        with tempfile.TemporaryDirectory() as folder:
            found = _add(client, run, name, trained, tags, Path(folder))
    for key, value in tags.items():  # it may have been tested anew
        client.set_model_version_tag(name, found, key, value)
    for alias in aliases:
        client.set_registered_model_alias(name, alias, found)
    return found


def _version(client: MlflowClient, name: str, seal: str) -> str | None:
    """The newest one of the net with these modules, if there is one; makes the registered model if there is none."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.search_model_versions(f"name = '{name}' and tag.seal = '{seal}' and tag.program = '{_checksum()}'")
    return max((str(each.version) for each in found), key=int, default=None)


def _add(client: MlflowClient, run: str, name: str, trained: Trained, tags: Mapping[str, str], folder: Path) -> str:
    """A model of the run `run`, whose files are made in `folder`, and of it a version, whose number is returned."""
    file = folder / "net.onnx"
    onnx_file.write(trained, Location.of(file), dense=True)
    experiment = client.get_run(run).info.experiment_id
    logged = client.create_logged_model(experiment, name, source_run_id=run, tags=dict(tags))
    status = LoggedModelStatus.FAILED
    try:
        _save(folder / "model", file, trained, logged, tags)
        client.log_model_artifacts(logged.model_id, str(folder / "model"))
        status = LoggedModelStatus.READY
    finally:
        client.finalize_logged_model(logged.model_id, status)
    client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])
    made = client.create_model_version(name, logged.artifact_location, run, tags=dict(tags), model_id=logged.model_id)
    # So that in MLflow the model's page leads to the version's.
    ways = json.dumps([{"name": name, "version": str(made.version)}])
    client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: ways})
    return str(made.version)


def _save(folder: Path, file: Path, trained: Trained, logged: LoggedModel, tags: Mapping[str, str]) -> None:
    """MLflow's files for the ONNX file `file`."""
    card, package, number = trained.card, _package(file.parent), logged.model_id
    pyfunc.save_model(
        str(folder),
        loader_module=f"{package.name}.classifier",
        data_path=str(file),
        code_paths=[str(package)],
        mlflow_model=Model(logged.artifact_location, logged.source_run_id, model_uuid=number, model_id=number),
        signature=_SIGNATURE,
        input_example=[_example(card.input_size)],
        pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
        metadata={**tags, **asdict(card, dict_factory=_listed)},
    )


def _listed(items: list[tuple[str, object]]) -> dict[str, object]:
    """For YAML, which has no tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in items}


def _package(folder: Path) -> Path:
    """The modules that classify, as a package in `folder`; its name changes with their content."""
    package = folder / f"verydeep_{_checksum()}"
    package.mkdir()
    (package / "__init__.py").touch()
    for file in _files():
        shutil.copy(file, package)
    return package


def _checksum() -> str:
    """Of the modules that classify."""
    return xxh3_64(b"".join(file.read_bytes() for file in _files())).hexdigest()


def _files() -> list[Path]:
    return [Path(str(module.__file__)) for module in _MODULES]


def _example(side: int) -> bytes:
    """A JPEG of a shade of grey from black to white."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).save(out, "JPEG")
    return out.getvalue()
