"""`${env:NAME}` in a job file's values: what differs from one place of deployment to another, such as a bucket's name.

Pure, but for the mapping of variables that is passed in. `$${` stands for `${`; there is no other templating.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from jobs import document, shape
from jobs.document import Node, Problem

_USE = re.compile(r"(?P<escaped>\$\$\{)|\$\{env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<other>\$\{[^}]*\}?)")


def filled(node: Node, variables: Mapping[str, str], problems: list[Problem]) -> Node:
    """With the variables' values in the place of their names. Where a setting takes no text, what results is read as
    YAML reads a word: a number, true or false. Adds to `problems`."""
    if isinstance(node.value, dict):
        problems += [
            Problem(child.key, child.path, "${ has its place in values, not in keys")
            for key, child in node.value.items()
            if "${" in key
        ]
        return replace(node, value={key: filled(child, variables, problems) for key, child in node.value.items()})
    if isinstance(node.value, list):
        return replace(node, value=[filled(item, variables, problems) for item in node.value])
    if not isinstance(node.value, str) or "${" not in node.value:
        return node
    wrong = list(_wrong(node, variables))
    problems += wrong
    return node if wrong else replace(node, value=_value(node, variables))


def escaped(text: str) -> str:
    """What is read back as `text`."""
    return text.replace("${", "$${")


def _value(node: Node, variables: Mapping[str, str]) -> Any:
    text = _USE.sub(lambda use: "${" if use["escaped"] else variables[use["name"]], node.value)
    named = any(use["name"] for use in _USE.finditer(node.value))
    return document.scalar(text) if named and not shape.is_text(shape.at(node.path)) else text


def _wrong(node: Node, variables: Mapping[str, str]) -> Iterator[Problem]:
    for use in _USE.finditer(node.value):
        name = use["name"]
        if use["other"]:
            hint = "${env:NAME} stands for a variable of the environment, $${ for ${ itself"
            yield Problem(node.place, node.path, f"{use['other']} stands for nothing; {hint}")
        elif name and name not in variables:
            yield Problem(node.place, node.path, f"the environment has no variable {name}")
        elif name and (character := document.forbidden(variables[name])) is not None:
            yield Problem(node.place, node.path, f"the variable {name} has the character {character!a}")
