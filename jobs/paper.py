"""The paper's own results (arXiv 1409.1556v6, tables 3 to 6): errors on the validation set of ILSVRC-2012."""

from dataclasses import dataclass

from cluster.views import TestMode
from jobs.results import Result, Subject, scale_text

_CLASSES, _INPUT_SIZE = 1000, 224

S256, S384, JITTER = (256, 256), (384, 384), (256, 512)
Errors = tuple[float, float]  # top-1 and top-5, in per cent

# Of a net trained at S: dense at one Q (table 3), and averaged over several (table 4).
_ONE_NET: dict[tuple[str, tuple[int, int]], tuple[Errors, Errors | None]] = {
    ("A", S256): ((29.6, 10.4), None),
    ("A-LRN", S256): ((29.7, 10.5), None),
    ("B", S256): ((28.7, 9.9), (28.2, 9.6)),
    ("C", S256): ((28.1, 9.4), (27.7, 9.2)),
    ("C", S384): ((28.1, 9.3), (27.8, 9.2)),
    ("C", JITTER): ((27.3, 8.8), (26.3, 8.2)),
    ("D", S256): ((27.0, 8.8), (26.6, 8.6)),
    ("D", S384): ((26.8, 8.7), (26.5, 8.6)),
    ("D", JITTER): ((25.6, 8.1), (24.8, 7.5)),
    ("E", S256): ((27.3, 9.0), (26.9, 8.7)),
    ("E", S384): ((26.9, 8.7), (26.7, 8.6)),
    ("E", JITTER): ((25.5, 8.0), (24.8, 7.5)),
}
_ONE_Q = {S256: (256,), S384: (384,), JITTER: (384,)}
_SEVERAL_Q = {S256: (224, 256, 288), S384: (352, 384, 416), JITTER: (256, 384, 512)}
# Of nets trained with jitter, at several Q: one net (table 5), and two of them fused (table 6).
_MODES: dict[int, dict[tuple[str, ...], dict[TestMode, Errors]]] = {
    5: {
        ("D",): {"dense": (24.8, 7.5), "multi-crop": (24.6, 7.5), "both": (24.4, 7.2)},
        ("E",): {"dense": (24.8, 7.5), "multi-crop": (24.6, 7.4), "both": (24.4, 7.1)},
    },
    6: {("D", "E"): {"dense": (24.0, 7.1), "multi-crop": (23.9, 7.2), "both": (23.7, 6.8)}},
}


@dataclass(frozen=True)
class Entry:
    """A row of the paper's. `where`: table and row."""

    errors: Errors
    where: str


def entry(table: int, result: Result) -> Entry | None:
    """The row of the paper's `table` with the same nets, S, Q and mode; none for nets or classes unlike the paper's."""
    if result.classes != _CLASSES or not all(map(_full, result.subjects)):
        return None
    subjects = sorted(result.subjects, key=lambda subject: subject.net)
    trained, scales = subjects[0].trained, subjects[0].scales
    if any((subject.trained, subject.scales) != (trained, scales) for subject in subjects):
        return None
    nets = tuple(subject.net for subject in subjects)
    errors = _errors(table, nets, trained, scales, result.mode)
    row = f"{' and '.join(nets)}, S {scale_text(trained)}"
    return errors and Entry(errors, f"table {table}: {row}{f', {result.mode}' * (table > 4)}")


def _errors(
    table: int, nets: tuple[str, ...], trained: tuple[int, int], scales: tuple[int, ...], mode: TestMode
) -> Errors | None:
    if table > 4:
        same = trained == JITTER and scales == _SEVERAL_Q[JITTER]
        return _MODES[table].get(nets, {}).get(mode) if same else None
    one, several = _ONE_NET.get((nets[0], trained), (None, None))
    wanted, errors = ((_ONE_Q, one), (_SEVERAL_Q, several))[table - 3]
    return errors if mode == "dense" and scales == wanted.get(trained) else None


def _full(subject: Subject) -> bool:
    return subject.input_size == _INPUT_SIZE and subject.width == 1.0 and not subject.batch_norm
