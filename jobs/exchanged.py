"""What the exchange of gradients sends in a step, layer by layer, in stages that are left to be done; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cluster import wire
from cluster.settings import StageSettings
from cluster.wire import Sent
from jobs import estimate


@dataclass(frozen=True)
class Exchange:
    """The same one in all of `stages`, of these `nets`; bytes are those that each worker sends in a step.

    `bf16`: that factors are sent in it; `assumed`: since it depends on the GPUs. `statistics_bytes`: of batch norms.
    `plain_bytes`: that DistributedDataParallel as it comes would send: sums of all layers, in float32.
    """

    stages: tuple[str, ...]
    nets: tuple[str, ...]
    bf16: bool
    assumed: bool
    layers: tuple[Sent, ...]
    statistics_bytes: float
    plain_bytes: float

    @property
    def bytes(self) -> float:
        return sum(layer.bytes for layer in self.layers) + self.statistics_bytes


def computes_in_bf16(s: StageSettings, gpus: int | None) -> bool:
    """`gpus`: of a worker, None if it is not known; then float32 is taken, with which no fewer bytes are sent."""
    return s.precision == "bf16" if s.precision != "auto" else bool(gpus)


def exchanges(stages: Mapping[str, StageSettings], classes: int, workers: int, gpus: int | None) -> list[Exchange]:
    """The distinct ones; of one worker none."""
    found: dict[Exchange, list[str]] = {}
    for name, s in stages.items() if workers > 1 else ():
        found.setdefault(_of(s, classes, workers, gpus), []).append(name)
    return [_in(each, names, stages) for each, names in found.items()]


def _of(s: StageSettings, classes: int, workers: int, gpus: int | None) -> Exchange:
    bf16 = computes_in_bf16(s, gpus)
    assumed = (
        s.precision == "auto" and gpus != 0 and any(_by_factors(s, classes, workers, way) for way in (True, False))
    )
    plain = s.model_copy(update={"exchange": "ddp", "exchange_precision": "float32", "reproducible": "fast"})
    plain_bytes = sum(layer.bytes for layer in wire.sent(plain, classes, workers, bf16))
    statistics, layers = estimate.statistics_bytes(s, classes, workers), wire.sent(s, classes, workers, bf16)
    return Exchange((), (), bf16, assumed, tuple(layers), statistics, plain_bytes)


def _by_factors(s: StageSettings, classes: int, workers: int, bf16: bool) -> bool:
    return "factors" in wire.ways(s, classes, workers, bf16).values()


def _in(each: Exchange, names: Sequence[str], stages: Mapping[str, StageSettings]) -> Exchange:
    nets = dict.fromkeys(stages[name].net for name in names)
    return replace(each, stages=tuple(names), nets=tuple(nets))
