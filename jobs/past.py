"""What a job's folder knows of its stages as they were, with other settings or data: their key.json."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from jobs.checkpoints import STAGE
from jobs.reasons import Past
from jobs.store import KEY, Store, read_json, reason
from pipelines.errors import ClusterError

READERS = 16  # requests to an object store at a time


def pasts(store: Store, stages: Collection[str]) -> dict[str, list[Past]]:
    """Of each of these stages, the newest first. Raises ClusterError: the storage cannot be read."""
    try:
        folders = store.root.folders()
    except OSError as error:
        raise ClusterError(f"storage: {store.root} cannot be read: {reason(error)}") from error
    matches = [match for match in map(STAGE.fullmatch, folders) if match and match[1] in stages]
    with ThreadPoolExecutor(READERS) as pool:
        notes = list(pool.map(lambda match: Past.of(read_json(folders[match[0]] / KEY) or {}), matches))
    found: dict[str, list[Past]] = {stage: [] for stage in stages}
    for match, past in zip(matches, notes, strict=True):
        if past is not None:
            found[match[1]].append(past)
    return {stage: sorted(each, key=lambda past: past.begun, reverse=True) for stage, each in found.items()}
