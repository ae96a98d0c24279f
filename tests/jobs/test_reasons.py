"""Why a stage runs, which stages are wanted, and what is said of them."""

import random
from dataclasses import replace
from typing import Any

import pytest

from cluster.settings import StageSettings
from jobs import fingerprint, reasons, schema, selection
from jobs.plan import Action, Decision, State, plan
from jobs.reasons import Past
from jobs.schema import Job
from jobs.selection import Choice
from pipelines.errors import SettingsError

CHANGES: dict[str, tuple[Any, str]] = {
    "learning_rate": (0.005, "learning_rate changed: 0.01 -> 0.005"),
    "scale": ([256, 512], "scale changed: 256 -> [256, 512]"),
    "net": ("D", "net changed: A -> D"),
    "dropout": (0.25, "dropout changed: 0.5 -> 0.25"),
    "flip": (False, "flip changed: true -> false"),
    "plateau": ({"drops": 2}, "plateau.drops changed: 3 -> 2"),
    "freeze": (["fc1"], 'freeze changed: [] -> ["fc1"]'),
    "clip_norm": (1.5, "clip_norm changed: null -> 1.5"),
}
UNIMPORTANT = {"after": ["x"], "micro_batch": 8, "max_unreadable": 0.5, "compile": True}


def past(
    source: str | None = None,
    start: str | None = None,
    begun: str = "2026",
    recipe: int = 4,
    data: str = "t",
    **settings: Any,
) -> Past:
    init = {"from": source} if source else {}
    made = StageSettings.model_validate({"net": "A", "scale": 256, "init": init, **settings})
    content = fingerprint.content(made.model_dump(by_alias=True, mode="json"), data, "v", start) | {"recipe": recipe}
    return Past(fingerprint.key(content), content, source, begun)


def told(now: Past, *before: Past) -> str:
    return reasons.reason("s", {"s": now}, {"s": list(before)})


def test_each_change_of_settings_is_told_and_no_other() -> None:
    rng = random.Random(0)
    for _ in range(50):
        chosen = rng.sample(sorted(CHANGES), rng.randint(1, len(CHANGES)))
        if "freeze" in chosen:
            chosen.remove("freeze")  # does not go without init
        values = {name: CHANGES[name][0] for name in chosen}
        line = told(past(**values), past(**(UNIMPORTANT if rng.random() < 0.5 else {})))
        lines = [] if line == reasons.NOTHING else line.split("; ")
        rest = len(chosen) - 3
        if len(chosen) > 4:
            assert lines.pop() == f"{rest} other changes"
        assert set(lines) <= {CHANGES[name][1] for name in chosen}
        assert len(lines) == (3 if len(chosen) > 4 else len(chosen))


def test_the_nearest_that_was_is_compared_with_then_the_newest() -> None:
    far = past(learning_rate=0.1, epochs=10, seed=3, begun="2029")
    near, newer = past(learning_rate=0.02, begun="2027"), past(epochs=10, begun="2028")
    assert told(past(), far, newer, near) == "epochs changed: 10 -> 74"
    assert told(past(), far, near) == "learning_rate changed: 0.02 -> 0.01"
    assert told(past()) == told(past(), past()) == "nothing with these settings and data in the storage"


def test_data_recipe_and_settings_that_come_and_go_are_told() -> None:
    assert told(past(data="u"), past()) == "the training set changed"
    assert told(past(recipe=4, seed=1), past(recipe=3)) == "recipe version 3 -> 4; seed changed: 0 -> 1"
    old = past()
    settings = {name: value for name, value in old.content["settings"].items() if name != "seed"} | {"gone": 1}
    known = replace(old, key="x", content={**old.content, "settings": settings})
    assert told(past(), known) == "seed is new: 0; gone is gone: 1"
    assert told(past(schedule="cosine", plateau=None), past()).startswith(
        "schedule changed: plateau -> cosine; plateau"
    )


def test_a_stage_that_starts_from_another_net_says_why_that_is_another() -> None:
    a_old, a = past(), past(learning_rate=0.005)
    e_old, e = past("a", a_old.key), past("a", a.key)
    pasts = {"a": [a_old, a], "e": [e_old]}
    line = "it starts from another a (learning_rate changed: 0.01 -> 0.005)"
    assert reasons.reason("e", {"a": a, "e": e}, pasts) == line
    f_old, f = past("e", e_old.key, seed=1), past("e", e.key)
    pasts["f"] = [f_old]
    assert reasons.reason("f", {"a": a, "e": e, "f": f}, pasts) == (
        f"it starts from another e ({line}); seed changed: 1 -> 0"
    )
    assert reasons.reason("e", {"a": a, "e": e}, {"e": [e_old]}) == "it starts from another a", (
        "which nothing is known of"
    )
    assert told(past("b", "k"), past("a", "l")) == "it starts from b instead of a"
    assert told(past(), past("a", "l")) == "it starts from random weights instead of a"
    assert told(past("/x.pth", "k"), past("/x.pth", "l")) == "it starts from another /x.pth"


def test_a_plan_says_where_a_stage_stands_and_in_whose_folder() -> None:
    states = {
        "a": State(True, 74),
        "b": State(True, 1, job="vgg-d"),
        "c": State(False, 3, 40, 90),
        "d": State(False, 0, 40, 90),
        "e": State(False, 3, 0, 90),
        "f": State(False, 0, 0, 90),
    }
    assert plan(list(states), states, set(states), False, {"f": "why"}) == [
        Decision("a", Action.REUSE, "finished after 74 epochs"),
        Decision("b", Action.REUSE, "in job vgg-d (finished after 1 epoch)"),
        Decision("c", Action.RESUME, "after epoch 3, step 40 of 90"),
        Decision("d", Action.RESUME, "after step 40 of 90"),
        Decision("e", Action.RESUME, "after epoch 3"),
        Decision("f", Action.TRAIN, "why"),
    ]


@pytest.fixture(scope="module")
def job() -> Job:
    return schema.parse(
        "name: t\ndata: digits\nstages:\n  a: {net: A, scale: 256}\n  e: {net: E, scale: 256, init: {from: a}}\n"
        "  jitter: {net: E, scale: 256, init: {from: e}}\n  b: {net: B, scale: 256, after: [e]}\n"
        "evaluations:\n  one: {models: [a, e]}\n  two: {models: [e, jitter, ./x.pth]}\n  file: {models: [./x.pth]}\n",
        "t.yaml",
    )


@pytest.mark.parametrize(
    ("choice", "stages", "tests"),
    [
        (Choice(), {"a", "e", "jitter", "b"}, ["one", "two", "file"]),
        (Choice(only=("e",)), {"e"}, []),
        (Choice(only=("e", "b")), {"e", "b"}, []),
        (Choice(until=("e",)), {"a", "e"}, ["one", "file"]),
        (Choice(until=("b",)), {"a", "e", "b"}, ["one", "file"]),
        (Choice(until=("a", "jitter")), {"a", "e", "jitter"}, ["one", "two", "file"]),
    ],
)
def test_stages_and_tests_are_chosen(choice: Choice, stages: set[str], tests: list[str], job: Job) -> None:
    assert selection.wanted(job, choice) == stages
    assert selection.tests(job, choice) == tests


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (Choice(only=("jiter",)), "--only jiter: there is no such stage; did you mean jitter?"),
        (Choice(until=("zz",)), "--until zz: there is no such stage; there are a, e, jitter, b"),
        (Choice(("a",), ("e",)), "--only and --until: give one of them; --until runs what a stage needs, too"),
    ],
)
def test_a_choice_that_cannot_be_is_one_line(choice: Choice, line: str, job: Job) -> None:
    with pytest.raises(SettingsError) as raised:
        selection.wanted(job, choice)
    assert str(raised.value) == line


def test_what_a_chosen_stage_starts_from_has_to_be_done_or_chosen(job: Job) -> None:
    states = dict.fromkeys(job.stages, State(False, 3))
    with pytest.raises(SettingsError, match=r"^--only e: it starts from a, which is not done yet$"):
        selection.check_starts(job, {"e"}, states)
    selection.check_starts(job, {"a", "e"}, states)
    selection.check_starts(job, {"b"}, states)  # `after` is an order, no need
    selection.check_starts(job, {"e"}, {**states, "a": State(True, 3)})
