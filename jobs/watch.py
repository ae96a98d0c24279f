"""What a person sees of a run: a line a few times an epoch, and in a terminal a progress bar below the lines."""

import sys
from typing import Any

from tqdm import tqdm


class Watch:
    """`listen` takes the records of workers (see `cluster.records`)."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._what = ""
        self._unreadable: set[str] = set()

    def say(self, line: str = "") -> None:
        """A line of its own, above the bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def listen(self, record: dict[str, Any]) -> None:
        kind = record["kind"]
        if kind in ("tick", "point"):
            self._move(f"{record['stage']} epoch {record['epoch']}", record["step"], record["steps"])
        if kind == "point" and record["line"]:
            self.say(
                f"{_place(record)}  step {record['step']}/{record['steps']}  loss {record['loss']:.4f}  "
                f"accuracy {record['accuracy']:.3f}  {record['images_per_second']:.0f} images/s  "
                f"rate {record['learning_rate']:g}"
            )
        elif kind == "epoch":
            self.done()
            self.say(
                f"{_place(record)}  loss {record['loss']:.4f}  accuracy {record['accuracy']:.3f}  "
                f"validation {record['validation_accuracy']:.3f}  {record['images_per_second']:.0f} images/s  "
                f"rate {record['learning_rate']:g}  {record['seconds']:.1f} s"
            )
        elif kind == "unreadable" and record["name"] not in self._unreadable:
            self._unreadable.add(record["name"])
            self.say(f"{record['name']} cannot be decoded ({record['reason']}); a plain picture stands in for it")
        elif kind == "warning":
            self.say(f"warning: {record['text']}")
        elif kind == "workers" and record["attempt"] > 1:
            count = record["count"]
            self.say(f"{count} worker{'s' * (count != 1)} at work, attempt {record['attempt']}")
        elif kind == "quiet":
            self.say(
                f"no word from the workers for {record['seconds']} s; they wait for free CPUs or GPUs, or validate"
            )
        elif kind == "tested" and self._bar is not None:
            self._bar.update(record["images"])

    def begin(self, what: str, total: int) -> None:
        """A bar of `total` images."""
        self._begin(what, total, " images")

    def _begin(self, what: str, total: int, unit: str) -> None:
        self.done()
        self._what = what
        self._bar = tqdm(total=total, desc=what, unit=unit, disable=None, leave=False)

    def done(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _move(self, what: str, at: int, total: int) -> None:
        if self._bar is None or self._what != what:
            self._begin(what, total, " steps")
        if self._bar is not None and not self._bar.disable:
            self._bar.update(at - self._bar.n)


def _place(record: dict[str, Any]) -> str:
    return f"{record['stage']}  epoch {record['epoch']}/{record['epochs']}"
