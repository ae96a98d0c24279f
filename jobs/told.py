"""Records and lines of a board as text for logs, each with its node's name first: nodes run side by side. Pure."""

from collections.abc import Mapping
from typing import Any

from jobs.line import Line, Phase
from jobs.screen import briefly


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
    parts = []
    if line.epoch:
        at = "validates" if line.validating else f"step {line.step}/{line.steps}"
        parts += [f"epoch {line.epoch}/{line.epochs}", at]
    if line.of_images:
        parts.append(f"{line.images}/{line.of_images} images")
    if line.loss is not None and line.accuracy is not None:
        parts += [f"loss {line.loss:.4f}", f"accuracy {line.accuracy:.3f}"]
    if line.validation_accuracy is not None:
        parts.append(f"validation {line.validation_accuracy:.3f} (epoch {line.best_epoch})")
    if line.images_per_second is not None:
        parts.append(f"{line.images_per_second:.0f} images/s")
    if line.left is not None:
        parts.append(f"{'' if line.of_images else 'at most '}{briefly(line.left)} left")
    return "  ".join([line.name, *parts])


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
