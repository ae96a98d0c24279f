"""MLflow's client, as this program uses it: without talk, telemetry, or long waits of its own."""

import logging
import os
import warnings

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # calls are made again by us
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds, of a server that takes a call and says nothing

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

warnings.filterwarnings("ignore", module=r"mlflow\.")  # of what it uses of other packages

_TALKATIVE = (
    "alembic",
    "mlflow.pyfunc",
    "mlflow.store.db.utils",
    "mlflow.store.model_registry.abstract_store",
    "mlflow.utils.environment",
)
_REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_STATE",
)


def connect(uri: str) -> MlflowClient:
    """One that does not talk. Raises MlflowException: there is no such kind of store."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def refused(error: BaseException) -> bool:
    """Whether trying again is of no use: the store was reached, and the call is at fault. A server that can't be
    reached, or lets nobody in, may be mended."""
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    return not isinstance(error, OSError) or isinstance(error, FileNotFoundError | IsADirectoryError)
