"""What will be done with each stage, and why; pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    REUSE = "done"
    RESUME = "goes on"
    TRAIN = "will run"
    AGAIN = "will run again"
    SKIP = "left out"


@dataclass(frozen=True)
class State:
    """What the storage has of a stage: finished, or so many epochs of it, and steps of the one after them."""

    finished: bool
    epochs: int
    step: int = 0


@dataclass(frozen=True)
class Decision:
    stage: str
    action: Action
    reason: str


def plan(order: list[str], states: Mapping[str, State], wanted: set[str], fresh: bool) -> list[Decision]:
    """A decision for each stage of `order`. `wanted`: the stages to run; `fresh`: run them though they are done."""
    decisions = []
    for stage in order:
        state = states[stage]
        if stage not in wanted:
            decision = Decision(stage, Action.SKIP, "not asked for")
        elif fresh:
            decision = Decision(stage, Action.AGAIN, "--fresh")
        elif state.finished:
            decision = Decision(stage, Action.REUSE, f"finished after {state.epochs} epochs")
        elif state.epochs or state.step:
            decision = Decision(stage, Action.RESUME, _place(state))
        else:
            decision = Decision(stage, Action.TRAIN, "nothing with these settings and data in the storage")
        decisions.append(decision)
    return decisions


def _place(state: State) -> str:
    if not state.step:
        return f"after epoch {state.epochs}"
    return f"after epoch {state.epochs}, step {state.step}" if state.epochs else f"after step {state.step}"
