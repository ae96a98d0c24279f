"""What a run came to, in words; pure."""

from collections.abc import Iterator

from jobs.chain import Chain


def failures(chain: Chain) -> Iterator[str]:
    """A line for each part that failed, with those that could not be done for it."""
    for name, why in chain.failed.items():
        yield f"{name} failed: {why}"
        if lost := [other for other, cause in chain.given_up.items() if cause == name]:
            yield f"not done, since {'it waits' if len(lost) == 1 else 'they wait'} for {name}: {', '.join(lost)}"
