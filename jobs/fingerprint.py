"""The identity of a stage: a hash of all that determines its result, and of nothing else; pure."""

import json
from hashlib import sha256
from typing import Any

# Raised whenever training with the same settings on the same data gives another net than before. 4: weights of conv1_1
# that come from a net of another pixel_std are scaled. (GPUs decode colours otherwise since November 2026, before which
# nothing had been trained on one.)
RECIPE_VERSION = 4

# Settings that change no result: what ends a run, how the same sums are computed, and when.
_WITHOUT_EFFECT = ("max_unreadable", "micro_batch", "compile", "exchange", "after")

# Settings that came later, and their values with which a stage is what it was before.
_SINCE: dict[str, Any] = {"exchange_precision": "float32"}
_EXACT_SINCE: dict[str, Any] = {"exchange": "ddp"}  # of influence on the last bit alone


def content(settings: dict[str, Any], training: str, validation: str, start: str | None) -> dict[str, Any]:
    """All that determines a stage's result, plain: what its key is made of.

    `settings`: the stage's; `training`, `validation`: the data sets' fingerprints; `start`: the key of the stage, or
    the seal of the file, that it starts from.
    """
    # Which stage it starts from is told by that stage's key; its name changes nothing.
    init = {k: v for k, v in settings["init"].items() if k != "from"}
    since, left_out = _SINCE, set(_WITHOUT_EFFECT)
    if settings["reproducible"] == "exact":
        since = _SINCE | _EXACT_SINCE
        left_out -= _EXACT_SINCE.keys()
    left_out |= {k for k, v in since.items() if settings[k] == v}
    return {
        "recipe": RECIPE_VERSION,
        "settings": {k: v for k, v in settings.items() if k not in left_out} | {"init": init},
        "training": training,
        "validation": validation,
        "start": start,
    }


def key(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
