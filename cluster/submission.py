"""Which of Ray's jobs this process is."""

import json
import os

import ray


def job_ids() -> dict[str, str]:
    """Ray's id of this driver's job; and, of `ray job submit`, the one that it was submitted by. None without Ray."""
    if not ray.is_initialized():
        return {}
    try:
        metadata = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]  # as Ray tells its drivers
        submitted = {"ray.submission_id": str(metadata["job_submission_id"])}
    except (KeyError, TypeError, ValueError):
        submitted = {}
    return {"ray.job_id": str(ray.get_runtime_context().get_job_id()), **submitted}
