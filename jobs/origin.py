"""Where a run comes from, as tags that MLflow's pages know: who ran which file, of which revision of the program."""

import getpass
import subprocess
from importlib.metadata import version
from pathlib import Path

from pipelines.location import public

_PROGRAM = Path(__file__).parent
_GIT_SECONDS = 5.0


def tags(job_file: str | None) -> dict[str, str]:
    """The revision is that of the repository that the job file is in; is it in none, of the program's, if that is."""
    source = {"mlflow.source.type": "LOCAL"}
    if job_file is not None:
        source["mlflow.source.name"] = job_file
    try:
        source["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        pass
    folders = [Path(job_file).absolute().parent] if job_file is not None else []
    revision = next(filter(None, map(_revision, (*folders, _PROGRAM))), {})
    return {**source, **revision, "verydeep.version": version("verydeep")}


def _revision(folder: Path) -> dict[str, str]:
    """None if there is no repository, or no git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    told = {
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "mlflow.source.git.repoURL": public(_git(folder, "config", "--get", "remote.origin.url")),
        "mlflow.source.git.dirty": str(bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))).lower(),
    }
    return {key: value for key, value in told.items() if value}


def _git(folder: Path, *words: str) -> str:
    """What it prints; nothing if it fails."""
    try:
        command = ["git", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
