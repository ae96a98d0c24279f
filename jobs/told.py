"""Records and lines of a board as text for logs, each with its node's name first: nodes run side by side. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from jobs.line import Line, Phase


def record(name: str, content: Mapping[str, Any]) -> str | None:
    """None of those that are not for people, or only sometimes (see `progress`)."""
    prefix = f"{name}: " if name else ""
    match content["kind"]:
        case "point" if content["line"]:
            return (
                f"{name}  epoch {content['epoch']}/{content['epochs']}  step {content['step']}/{content['steps']}  "
                f"loss {content['loss']:.4f}  accuracy {content['accuracy']:.3f}  "
                f"{content['images_per_second']:.0f} images/s  rate {content['learning_rate']:g}"
            )
        case "epoch":
            return (
                f"{name}  epoch {content['epoch']}/{content['epochs']}  loss {content['loss']:.4f}  "
                f"accuracy {content['accuracy']:.3f}  validation {content['validation_accuracy']:.3f}  "
                f"{content['images_per_second']:.0f} images/s  rate {content['learning_rate']:g}  "
                f"{content['seconds']:.1f} s"
            )
        case "unreadable":
            picture = f"{content['name']} cannot be decoded ({content['reason']})"
            return f"{prefix}{picture}; a plain picture stands in for it"
        case "warning":
            return f"{prefix}warning: {content['text']}"
        case "decoding":
            return f"{prefix}decoding: {content['text']}"
        case "failed":
            return f"{prefix}{content['error']}"
        case "workers" if content.get("attempt", 1) > 1:
            plural = "s" * (content["count"] != 1)
            return f"{prefix}{content['count']} worker{plural} at work, attempt {content['attempt']}"
        case "quiet":
            return (
                f"{prefix}no word from the workers for {content['seconds']} s; "
                "they wait for free CPUs or GPUs, or validate"
            )
    return None


def progress(line: Line) -> str:
    """Where a node is that has not been heard of for a while."""
    least = "" if line.of_images else "at most "
    left = [] if line.left is None else [f"{least}{briefly(line.left)} left"]
    return "  ".join([line.name, *parts(line), *left])


def parts(line: Line) -> Iterator[str]:
    """What a node is at, the first things first."""
    if line.epoch:
        yield f"epoch {line.epoch}/{line.epochs}"
    if line.steps:
        yield "validates" if line.validating else f"step {line.step}/{line.steps}"
    if line.of_images:
        yield f"{line.images}/{line.of_images} images"
    if line.loss is not None:
        yield f"loss {line.loss:.4f}"
    if line.accuracy is not None:
        yield f"accuracy {line.accuracy:.3f}"
    yield from best(line)
    if line.images_per_second is not None:
        yield f"{line.images_per_second:.0f} images/s"
    if line.workers:
        yield f"{line.workers} worker{'s' * (line.workers != 1)}" + f", attempt {line.attempt}" * (line.attempt > 1)
    if line.gpus_busy:
        yield f"GPUs {100 * sum(line.gpus_busy.values()) / len(line.gpus_busy):.0f} % busy"
    if line.learning_rate is not None:
        yield f"rate {line.learning_rate:g}"


def best(line: Line) -> list[str]:
    """Of the epochs so far, if there are any."""
    if line.validation_accuracy is None:
        return []
    return [f"validation {line.validation_accuracy:.3f} (epoch {line.best_epoch})"]


def changes(before: Line | None, after: Line) -> str | None:
    """What is worth a line, for who looks at a board from time to time."""
    if before is None or before.phase is not after.phase:
        return end(after) or f"{after.name}: {after.phase.value}"
    if before.warnings < after.warnings:
        return f"{after.name}: warning: {after.warning}"
    if before.attempt < after.attempt > 1:
        return record(after.name, {"kind": "workers", "count": after.workers, "attempt": after.attempt})
    moved = (before.epoch, before.validation_accuracy) != (after.epoch, after.validation_accuracy)
    return progress(after) if moved and after.phase is Phase.RUNNING else None


def end(line: Line) -> str | None:
    """How it ended; None if it has not."""
    if line.phase in (Phase.WAITING, Phase.RUNNING):
        return None
    mark = ": " if line.phase in (Phase.FAILED, Phase.LEFT_OUT) else ", "
    text = f"{line.name}: {line.phase.value}" + (f"{mark}{line.reason}" if line.reason else "")
    if line.phase is Phase.DONE and line.validation_accuracy is not None:
        text += f", best validation accuracy {line.validation_accuracy:.3f}"
    return text


def briefly(seconds: float) -> str:
    """`42 s`, `12 min`, `5.2 h`, `3.1 days`"""
    if seconds < 99.5:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
