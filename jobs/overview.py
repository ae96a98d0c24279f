"""A run as a whole, before it begins and after it has ended; pure."""

from collections.abc import Iterator, Mapping

from cluster.flops import forward_flops, training_flops
from jobs.chain import Chain
from jobs.check import Checked


def costs(checked: Checked, parts: Mapping[str, object]) -> dict[str, float]:
    """FLOPs of each of the parts, for what is the most urgent: of a stage all its epochs, of a test about one."""
    return {name: _training(checked, name) if name in checked.job.stages else 0.0 for name in parts}


def _training(checked: Checked, name: str) -> float:
    s = checked.job.stages[name]
    net = (s.net, len(checked.training.manifest.classes), s.input_size, s.width)
    return s.epochs * (checked.training.rows * training_flops(*net) + checked.validation.rows * forward_flops(*net))


def failures(chain: Chain) -> Iterator[str]:
    """A line for each part that failed, with those that could not be done for it."""
    for name, why in chain.failed.items():
        yield f"{name} failed: {why}"
        if lost := [other for other, cause in chain.given_up.items() if cause == name]:
            yield f"not done, since {'it waits' if len(lost) == 1 else 'they wait'} for {name}: {', '.join(lost)}"
