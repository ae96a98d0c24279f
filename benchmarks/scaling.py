"""`python -m benchmarks.scaling`: what data-parallel training of VGG nets reaches on 1 to 512 workers, on paper.

The model is `scaling_model`. Nothing is measured here, and no constant is fitted to the published points beside which
it is put: each has its source, or is called an assumption.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import arguments
from benchmarks import scaling_model as model
from benchmarks.scaling_model import Gpu, Link, System
from cluster import wire
from cluster.flops import training_flops
from cluster.peak import named_peak_flops
from cluster.settings import StageSettings

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
NETS = ("A", "D", "E")
BATCH = 256

# NCCL's own model of what its collectives cost: src/graph/tuning.cc, protocol Simple, rings.
_START = 8.4e-6
_NETWORK_HOP, _PCI_HOP, _NVLINK_HOP = 14.0e-6, 5.7e-6, 3.4e-6

# RoCE v2 in Ethernet frames of 1,500 bytes: 1,024 of 1,106 are payload (InfiniBand specification, annex A17).
_ETHERNET_SHARE = 1024 / 1106


def ethernet(gbit: float) -> Link:
    return Link(gbit * 1e9 / 8 * _ETHERNET_SHARE, _NETWORK_HOP)


def h100() -> Gpu:
    """60 % of the bf16 peak is an assumption, the aim of benchmarks/gpu.py; memory: data sheet of the SXM board."""
    peak = named_peak_flops("NVIDIA H100 80GB HBM3", "bfloat16")
    assert peak is not None
    return Gpu(0.6 * peak, 3.35e12, bf16=True)


def p100() -> Gpu:
    """154 images/s of VGG-16, batch 64, on one GPU of a DGX-1, float32: TensorFlow's benchmarks of May 2017
    (tensorflow/docs_src/performance/benchmarks.md). That is more than the peak of 10.6 TFLOP/s, since Winograd's
    convolutions multiply less than is counted. Memory: data sheet."""
    return Gpu(154 * training_flops("D"), 732e9, bf16=False)


def titan_black() -> Gpu:
    """40 % of 5.1 TFLOP/s (data sheet) is an assumption, by which training takes the weeks that the paper says
    (docs/planning.md)."""
    return Gpu(0.4 * 5.1e12, 336e9, bf16=False)


# One H100 for each link. NVLink: what NCCL reckons with on Hopper (src/sym_kernels.cc: 360 GB/s), of 450 each way.
# Beyond the GPUs that one switch joins, 8 of H100, it is an ideal.
NETWORKS = {
    "25 GbE": ethernet(25),
    "100 GbE": ethernet(100),
    "400 GbE": ethernet(400),
    "NVLink": Link(360e9, _NVLINK_HOP),
}
SYSTEMS = {name: System(h100(), link, start_seconds=_START) for name, link in NETWORKS.items()}

# Four Pascal GPUs, taken for P100, in each of up to 128 servers at 25 Gbit/s RoCE (Horovod's docs/benchmarks.rst);
# rings, as NCCL had no trees before 2.4; buckets of 64 MiB (Horovod's tensor fusion, arXiv 1802.05799, section 7).
# 10 GB/s between the GPUs of a server is an assumption, of PCIe 3.0's 15.75.
HOROVOD = System(
    p100(), ethernet(25), Link(10e9, _PCI_HOP), node=4, logarithmic=False, start_seconds=_START,
    bucket_bytes=(64 * 2**20, 64 * 2**20),
)  # fmt: skip

# Gradients are averaged when all are computed (arXiv 1409.1556, section 3.3). A ring at 10 GB/s is an assumption.
PAPER = System(
    titan_black(), Link(10e9, _PCI_HOP), Link(10e9, _PCI_HOP), node=4, logarithmic=False, start_seconds=_START,
    overlaps=False,
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """`batch`: of each worker if `weak`, else of all. `efficiency`: speed-up over workers. `net` of the paper's figure
    is not said there."""

    name: str
    workers: int
    efficiency: float
    system: System
    batch: int
    weak: bool

    def modelled(self) -> float:
        """By plain DDP."""
        return model.efficiency(self.system, settings("D", WAYS["plain DDP"], self.batch), self.workers, self.weak)


WAYS: dict[str, Mapping[str, str]] = {
    "plain DDP": {"exchange": "ddp"},
    "DDP in bf16": {"exchange": "ddp", "exchange_precision": "bf16"},
    "auto": {},
    "auto, sums in bf16": {"exchange_precision": "bf16"},
}

# Horovod's batch of 64 for each GPU is that of the commands in its docs/benchmarks.rst. The 79 % were in its README of
# 2017 and 2018, the 68 % are in docs/benchmarks.rst still.
PUBLISHED = (
    Published("Simonyan and Zisserman, 4 Titan Blacks", 4, 3.75 / 4, PAPER, BATCH, weak=False),
    Published("Horovod, 128 GPUs", 128, 0.79, HOROVOD, 64, weak=True),
    Published("Horovod, 512 GPUs", 512, 0.68, HOROVOD, 64, weak=True),
)


@dataclass(frozen=True)
class Point:
    """`factors`: the layers whose gradients are exchanged so; bytes are sent by each worker in a step."""

    net: str
    network: str
    scaling: str
    way: str
    workers: int
    efficiency: float
    images_per_second: float
    sent_bytes: float
    factors: tuple[str, ...]


def settings(net: str, way: Mapping[str, str], batch: int) -> StageSettings:
    return StageSettings.model_validate({"net": net, "scale": 256, "batch": batch, **way})


def points() -> list[Point]:
    found = []
    for net in NETS:
        for network, system in SYSTEMS.items():
            alone = BATCH / model.step(system, settings(net, {}, BATCH), 1).seconds
            cases = [(weak, way, workers) for weak in (False, True) for way in WAYS for workers in WORKERS]
            found += [_point(net, network, alone, *case) for case in cases]
    return found


def _point(net: str, network: str, alone: float, weak: bool, way: str, workers: int) -> Point:
    """`alone`: the images a second of one worker."""
    system, s = SYSTEMS[network], settings(net, WAYS[way], BATCH * workers if weak else BATCH)
    together = s.batch / model.step(system, s, workers).seconds
    sent = wire.sent(s, 1000, workers, system.gpu.bf16)
    return Point(
        net,
        network,
        "weak" if weak else "strong",
        way,
        workers,
        together / (alone * workers),
        together,
        sum(each.bytes for each in sent),
        tuple(each.layer for each in sent if each.way == "factors"),
    )


def text(found: list[Point]) -> str:
    """Of VGG-D, in per cent; and the published points."""
    lines = ["efficiency of VGG-D in %, by workers", f"{'':36}" + "".join(f"{n:>6}" for n in WORKERS)]
    rows: dict[str, list[float]] = {}
    for point in found:
        if point.net == "D":
            rows.setdefault(f"{point.network:8} {point.scaling:7} {point.way}", []).append(point.efficiency)
    lines += [f"{name:36}" + "".join(f"{100 * each:6.1f}" for each in row) for name, row in rows.items()]
    lines += ["", f"{'published':40}{'there':>7}{'here':>7}"]
    return "\n".join(lines + [f"{p.name:40}{100 * p.efficiency:7.1f}{100 * p.modelled():7.1f}" for p in PUBLISHED])


def record(found: list[Point]) -> dict[str, Any]:
    return {
        "systems": {name: asdict(system) for name, system in {**SYSTEMS, "Horovod": HOROVOD, "paper": PAPER}.items()},
        "published": [
            {"name": p.name, "workers": p.workers, "published": p.efficiency, "modelled": p.modelled()}
            for p in PUBLISHED
        ],
        "points": [asdict(point) for point in found],
    }


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--png", type=arguments.new_file, metavar="FILE", help="draw it")
    parser.add_argument("--json", type=arguments.new_file, metavar="FILE", help="write all points and constants")
    options = parser.parse_args(given)
    found = points()
    print(text(found))
    if options.json is not None:
        options.json.write_text(json.dumps(record(found), indent=1) + "\n")
    if options.png is not None:
        from benchmarks import scaling_picture  # a slow import

        scaling_picture.draw(found, options.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
