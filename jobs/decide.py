"""What a run, or `verydeep plan`, will do with each stage of a job, by what is in the storage."""

from collections.abc import Mapping

from jobs import past, reasons, selection
from jobs.check import Checked
from jobs.plan import Decision, State, plan
from jobs.selection import Choice


def decisions(checked: Checked, choice: Choice) -> list[Decision]:
    """What will be done with each stage, each after those that it waits for; nothing is written.

    Raises SettingsError: the choice cannot be run; CheckpointError, ClusterError or DataError: the storage cannot be
    read.
    """
    stages = selection.wanted(checked.job, choice)
    states = checked.states()
    selection.check_starts(checked.job, stages, states)
    return plan(checked.order, states, stages, choice.fresh, _reasons(checked, stages, states))


def _reasons(checked: Checked, stages: set[str], states: Mapping[str, State]) -> dict[str, str]:
    new = [name for name in stages if not states[name].finished and not states[name].begun]
    if not new:
        return {}
    now, pasts = checked.now(), past.pasts(checked.store, checked.job.stages)
    return {name: reasons.reason(name, now, pasts) for name in new}
