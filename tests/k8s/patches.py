"""The two kinds of patches that `kubectl apply` sends, as the API server carries them out."""

from copy import deepcopy
from typing import Any

from tests.k8s.objects import Object, resolved


def merged(current: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386): mappings are merged, null removes, everything else is replaced, lists too."""
    if not isinstance(patch, dict):
        return deepcopy(patch)
    result = dict(current) if isinstance(current, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def strategically_merged(current: Any, patch: Any, schema: Object) -> Any:
    """A strategic merge patch: as above, but lists are merged by the key that their schema names; with directives."""
    _, schema = resolved(schema)
    if not isinstance(patch, dict):
        return deepcopy(patch)
    if patch.get("$patch") == "replace":
        return {key: deepcopy(value) for key, value in patch.items() if key != "$patch"}
    result = dict(current) if isinstance(current, dict) else {}
    if "$retainKeys" in patch:
        result = {key: value for key, value in result.items() if key in patch["$retainKeys"]}
    for key, value in patch.items():
        if key == "$retainKeys" or key.startswith("$setElementOrder/"):
            continue
        if key.startswith("$deleteFromPrimitiveList/"):
            list_name = key.partition("/")[2]
            result[list_name] = [item for item in result.get(list_name, []) if item not in value]
            continue
        assert not key.startswith("$"), f"the directive {key} is not known here"
        part = schema.get("properties", {}).get(key) or schema.get("additionalProperties") or {}
        if value is None:
            result.pop(key, None)
        elif isinstance(value, list) and "merge" in part.get("x-kubernetes-patch-strategy", "").split(","):
            result[key] = _list(result.get(key, []), value, part)
        else:
            result[key] = strategically_merged(result.get(key), value, part)
    return result


def _list(current: list[Any], patch: list[Any], schema: Object) -> list[Any]:
    name = schema.get("x-kubernetes-patch-merge-key")
    if name is None:
        return [*current, *(item for item in patch if item not in current)]
    result = list(current)
    for item in patch:
        place = next((index for index, old in enumerate(result) if old[name] == item[name]), None)
        if item.get("$patch") == "delete":
            if place is not None:
                del result[place]
        elif place is None:
            result.append(deepcopy(item))
        else:
            result[place] = strategically_merged(result[place], item, schema["items"])
    return result
