"""Why a stage is trained, though the storage has others like it: what has changed since; pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOTHING = "nothing with these settings and data in the storage"
_MOST = 3  # that are named

_NONE = object()


@dataclass(frozen=True)
class Past:
    """A stage that was begun: its key, what that was made of (see `fingerprint.content`), the stage or file that it
    started from, and when, in a form that sorts."""

    key: str
    content: Mapping[str, Any]
    source: str | None
    begun: str

    @classmethod
    def of(cls, note: Mapping[str, Any]) -> "Past | None":
        """Of a key.json; None if it is damaged."""
        match note:
            case {"key": str(key), "content": dict(content), "from": None | str() as source, "begun": str(begun)}:
                whole = isinstance(content.get("settings"), dict) and {"recipe", "training", "validation"} <= set(
                    content
                )
                return cls(key, content, source, begun) if whole else None
        return None


def reason(stage: str, now: Mapping[str, Past], pasts: Mapping[str, Sequence[Past]]) -> str:
    """Beside the stage as it was that is nearest to it as it is now: with the fewest differences, of these the newest.

    `now`: of all stages; `pasts`: of each stage, the newest first.
    """
    told = [list(_changes(past, now[stage], now, pasts)) for past in pasts.get(stage, ()) if past.key != now[stage].key]
    if not told:
        return NOTHING
    changes = min(told, key=len)
    if len(changes) <= _MOST + 1:
        return "; ".join(changes)
    return "; ".join([*changes[:_MOST], f"{len(changes) - _MOST} other changes"])


def _changes(old: Past, new: Past, now: Mapping[str, Past], pasts: Mapping[str, Sequence[Past]]) -> Iterator[str]:
    """A line for each; the most far-reaching first."""
    before, after = old.content, new.content
    if before["recipe"] != after["recipe"]:
        yield f"recipe version {before['recipe']} -> {after['recipe']}"
    for name, words in (("training", "training"), ("validation", "validation")):
        if before[name] != after[name]:
            yield f"the {words} set changed"
    if before.get("start") != after.get("start"):
        yield _other_start(old, new, now, pasts)
    was, is_now = _flat(before["settings"]), _flat(after["settings"])
    for key in dict.fromkeys([*is_now, *was]):
        if was.get(key, _NONE) != is_now.get(key, _NONE):
            yield _setting(key, was.get(key, _NONE), is_now.get(key, _NONE))


def _other_start(old: Past, new: Past, now: Mapping[str, Past], pasts: Mapping[str, Sequence[Past]]) -> str:
    """Why it starts from another net, if that is of a stage under the same name."""
    if old.source != new.source:
        return f"it starts from {new.source or 'random weights'} instead of {old.source or 'random weights'}"
    if new.source is None or new.source not in now:
        return f"it starts from another {new.source}"
    source = now[new.source]
    was = next((past for past in pasts.get(new.source, ()) if past.key == old.content.get("start")), None)
    why = "; ".join(_changes(was, source, now, pasts)) if was is not None and was.key != source.key else ""
    return f"it starts from another {new.source}{f' ({why})' * bool(why)}"


def _setting(key: str, was: object, is_now: object) -> str:
    if was is _NONE:
        return f"{key} is new: {_text(is_now)}"
    if is_now is _NONE:
        return f"{key} is gone: {_text(was)}"
    return f"{key} changed: {_text(was)} -> {_text(is_now)}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"plateau.drops": 3}`: keys as a job file's errors name them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: object) -> str:
    """As in a job file; S that is fixed is kept as a range."""
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return str(value[0])
    return value if isinstance(value, str) else json.dumps(value)
