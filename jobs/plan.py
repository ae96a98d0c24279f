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
    """What the storage has of a stage: finished, or so many epochs of it, and steps of the one after them.

    `steps`: of an epoch, if that is known. `job`: whose folder it is in, if another's.
    """

    finished: bool
    epochs: int
    step: int = 0
    steps: int | None = None
    job: str | None = None

    @property
    def begun(self) -> bool:
        return self.epochs > 0 or self.step > 0


@dataclass(frozen=True)
class Decision:
    stage: str
    action: Action
    reason: str


def plan(
    order: list[str], states: Mapping[str, State], wanted: set[str], fresh: bool, reasons: Mapping[str, str]
) -> list[Decision]:
    """A decision for each stage of `order`. `wanted`: the stages to run; `fresh`: run them though they are done;
    `reasons`: why each of those that the storage has nothing of has to run (see `reasons`)."""
    return [_decision(stage, states[stage], stage in wanted, fresh, reasons.get(stage, "")) for stage in order]


def _decision(stage: str, state: State, wanted: bool, fresh: bool, reason: str) -> Decision:
    if not wanted:
        return Decision(stage, Action.SKIP, "not asked for")
    if fresh:
        return Decision(stage, Action.AGAIN, "--fresh")
    if state.finished:
        finished = f"finished after {count(state.epochs, 'epoch')}"
        return Decision(stage, Action.REUSE, f"in job {state.job} ({finished})" if state.job else finished)
    where = place(state.epochs, state.step, state.steps)
    return Decision(stage, Action.RESUME, where) if where else Decision(stage, Action.TRAIN, reason)


def place(epochs: int, step: int, steps: int | None = None) -> str:
    """Where a stage stands: `after epoch 3, step 40 of 90`; nothing if it stands at its beginning."""
    of = f" of {steps}" if steps else ""
    parts = [f"epoch {epochs}"] * bool(epochs) + [f"step {step}{of}"] * bool(step)
    return f"after {', '.join(parts)}" if parts else ""


def count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"
