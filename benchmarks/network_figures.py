"""What `benchmarks.network` found, as tables and checks: medians over rounds, and ratios within rounds."""

from dataclasses import dataclass
from statistics import median

from benchmarks import report
from benchmarks.exchanges import BUCKETS, CLASSES, WAYS, Answer
from benchmarks.report import Check, Findings
from cluster import wire
from cluster.settings import StageSettings
from cluster.turns import ALONE

_DDP, _FACTORS = "ddp", "factors"


NOTES = [
    "exchange s: from the beginning of a backward pass, which hands out gradients that were made beforehand, until all "
    "is summed or gathered, of the slowest worker; in ddp's is the copy of every gradient into its bucket, as in "
    "training, in factors' that of the layers' inputs and outputs' gradients; alone: the pass without any exchange",
    "product s: of the gathered factors, on this machine's CPU; of N workers, one Nth is of own images, which ddp's "
    "backward pass has to make as well, and is spared here",
    "faster: ddp's time over this one's, medians within rounds; with products: of both times together",
    "MB: sent by each worker, counted by its interface, and what `verydeep plan` reckons with",
]


@dataclass(frozen=True)
class Sizes:
    """Of the nets of `exchanges.Task`. `headers`: by how much what interfaces count may be more than what is sent."""

    shapes: StageSettings
    narrow: StageSettings
    convolutions: StageSettings
    headers: float


def _settings(net: str, width: float, input_size: int, batch: int) -> StageSettings:
    named = {"net": net, "scale": input_size, "width": width, "input_size": input_size, "batch": batch}
    return StageSettings.model_validate({**named, "precision": "float32"})


FULL = Sizes(_settings("D", 1.0, 224, 256), _settings("D", 0.25, 128, 32), _settings("D", 1.0, 32, 32), 0.1)
SMALL = Sizes(_settings("A", 0.25, 32, 16), _settings("A", 0.1, 32, 8), _settings("A", 0.1, 32, 8), 0.3)


@dataclass(frozen=True)
class Measured:
    workers: int
    gbit: float
    answer: Answer


def findings(measured: list[Measured], sizes: Sizes) -> Findings:
    found = Findings()
    for each in measured:
        title = f"{each.workers} workers, {each.gbit:g} Gbit/s: "
        s, narrow, alone = sizes.shapes, sizes.narrow, sizes.convolutions
        found.tables[title + _named("one exchange", s)] = _exchange_rows(each, s)
        found.tables[title + _named("whole steps", narrow)] = _step_rows(each, narrow)
        found.tables[title + _named("passes of convolutions alone", alone)] = _bucket_rows(each)
        found.checks += _checks(each, sizes)
    return found


def _named(part: str, s: StageSettings) -> str:
    return f"{part} of {s.net}, width {s.width:g}, {s.input_size} pixels, batch {s.batch}"


def _exchange_rows(m: Measured, s: StageSettings) -> list[dict[str, report.Cell]]:
    rows: list[dict[str, report.Cell]] = []
    first = m.answer.exchange[_DDP]
    for name in (*WAYS, ALONE):
        own = m.answer.exchange[name]
        seconds, sent = median(x.seconds for x in own), median(x.sent_bytes for x in own)
        ratios = [a.seconds / b.seconds for a, b in zip(first, own, strict=True)]
        with_products = [
            (a.seconds + a.product_seconds) / (b.seconds + b.product_seconds) for a, b in zip(first, own, strict=True)
        ]
        rows.append(
            {
                "": name,
                "exchange s": seconds,
                "faster": median(ratios),
                "range": _range(ratios),
                "product s": median(x.product_seconds for x in own),
                "faster with products": median(with_products),
                "MB": sent / 1e6,
                "MB reckoned": 0.0 if name == ALONE else _reckoned(name, s, m.workers) / 1e6,
                "Gbit/s": sent * 8 / seconds / 1e9,
            }
        )
    return rows


def _step_rows(m: Measured, s: StageSettings) -> list[dict[str, report.Cell]]:
    rows: list[dict[str, report.Cell]] = []
    first = m.answer.steps[_DDP]
    for name in (*WAYS, ALONE):
        own = m.answer.steps[name]
        ratios = [a.seconds / b.seconds for a, b in zip(first, own, strict=True)]
        rows.append(
            {
                "": name,
                "step s": median(x.seconds for x in own),
                "faster": median(ratios),
                "range": _range(ratios),
                "MB": median(x.sent_bytes for x in own) / 1e6,
                "MB reckoned": 0.0 if name == ALONE else _reckoned(name, s, m.workers) / 1e6,
            }
        )
    return rows


def _bucket_rows(m: Measured) -> list[dict[str, report.Cell]]:
    rows: list[dict[str, report.Cell]] = []
    default, *_ = BUCKETS
    first = m.answer.buckets[default]
    for name in (*BUCKETS, ALONE):
        own = m.answer.buckets[name]
        ratios = [a.seconds / b.seconds for a, b in zip(first, own, strict=True)]
        seconds = median(x.seconds for x in own)
        rows.append({"bucket MiB": name, "pass s": seconds, "faster": median(ratios), "range": _range(ratios)})
    return rows


def _checks(m: Measured, sizes: Sizes) -> list[Check]:
    title, own = f"{m.workers} workers, {m.gbit:g} Gbit/s: ", m.answer.exchange
    off = max(
        abs(median(x.sent_bytes for x in own[name]) / _reckoned(name, sizes.shapes, m.workers) - 1) for name in WAYS
    )
    found = [Check(title + "bytes counted beside reckoned, off by", off, most=sizes.headers)]
    if sizes is FULL:
        bytes_ratio = median(x.sent_bytes for x in own[_DDP]) / median(x.sent_bytes for x in own[_FACTORS])
        found.append(Check(title + "ddp's bytes over factors'", bytes_ratio, least=5))
    if sizes is FULL and m.gbit == 1:
        ratios = [a.seconds / b.seconds for a, b in zip(own[_DDP], own[_FACTORS], strict=True)]
        found.append(Check(title + "ddp's exchange over factors'", median(ratios), least=4, goal=True))
    return found


def _reckoned(name: str, s: StageSettings, workers: int) -> float:
    """Bytes that a worker sends."""
    way = s.model_copy(update=WAYS[name])
    return sum(layer.bytes for layer in wire.sent(way, CLASSES, workers, bf16=way.precision == "bf16"))


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"
