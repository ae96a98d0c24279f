"""Training steps on made-up images: how close they come to what the GPU's matrix units can do, and what is in the way.

One thing at a time is changed around net D in bf16, channels last, 256 images. "bare" is the net, the loss and the
update, "Step" the project's own step with all that a training loop does in it (`cluster.step`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import contenders, host, kernels, made, matrix
from benchmarks.contenders import WAYS, Contender
from benchmarks.matrix import Precision
from benchmarks.setting import Piece, Setting, seconds
from cluster import flops, optimise
from cluster.metrics import Meter
from cluster.peak import named_peak_flops
from cluster.step import Step
from pipelines import transfer
from pipelines.errors import TrainingError
from pipelines.stream import Batch

_STEPS = "Steps (share: of the measured peak of the same precision; tf32's for float32 with it)"
_AIM = 0.6  # of the measured bf16 peak, for D and E
_OVERHEAD_MOST = 1.03
_RATE = 1e-8  # nothing diverges, and takes other time with what is not finite
_LOOKS = 32  # steps, in which the meter looks at what it holds twice
_BATCHES = (32, 512, 64, 128)
# cuDNN's choice for a shape is kept for the process, whatever is asked of it later: other choices take other shapes.
_OTHER_BATCHES = (264, 248)


@dataclass(frozen=True)
class Case:
    """`how`: eager, compile or CUDA graphs, which are compiled, too. `ways`: of contenders. `engines`: how many of
    cuDNN's are tried (0: all); None: its own guess is taken."""

    net: str = "D"
    precision: Precision = "bf16"
    channels_last: bool = True
    batch: int = 256
    how: str = "eager"
    ways: str | None = None
    engines: int | None = 10  # PyTorch's default

    @property
    def text(self) -> str:
        layout = "channels last" if self.channels_last else "channels first"
        engines = {None: "cuDNN's guess", 0: "all engines"}.get(self.engines)
        return ", ".join(filter(None, (layout, self.how, self.ways, engines)))


def run(setting: Setting) -> None:
    bench = _Bench(setting)
    case = Case()
    bare, own = bench.bare_piece, bench.own_piece
    setting.each(
        (
            Piece("matrix peaks", 5, bench.find_peaks),
            bare(case),
            own(case),
            bare(replace(case, net="E")),
            own(replace(case, net="E")),
            Piece("profile", 6, bench.profile),
            Piece("synchronisations", 5, bench.count_waits),
            *(bench.contender_piece(name) for name in list(WAYS)[:4]),
            bare(replace(case, net="A")),
            *(bare(replace(case, batch=n)) for n in _BATCHES[:2]),
            bare(replace(case, precision="tf32")),
            bare(replace(case, how="compile"), 28),
            own(replace(case, how="CUDA graphs"), 30),
            bare(replace(case, channels_last=False)),
            bare(replace(case, precision="float32"), 7),
            bare(replace(case, engines=0, batch=_OTHER_BATCHES[0]), 7),
            bare(replace(case, engines=None, batch=_OTHER_BATCHES[1])),
            *(bench.contender_piece(name) for name in list(WAYS)[4:]),
            *(bare(replace(case, batch=n)) for n in _BATCHES[2:]),
            own(replace(case, net="A")),
            bare(replace(case, how="CUDA graphs", batch=32), 20),
        )
    )


class _Bench:
    """`peaks`: measured FLOP/s by precision. `taken`: seconds of a bare step by case."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.peaks: dict[Precision, float] = {}
        self.taken: dict[Case, float] = {}

    def find_peaks(self) -> None:
        kinds: tuple[Precision, ...] = ("bf16", "tf32", "float32")
        for precision in kinds:
            self.peaks[precision] = matrix.peak(self.setting, precision)
            maker, measured = self._makers_peak(precision), self.peaks[precision]
            tera = None if maker is None else maker / 1e12
            self.setting.report.row("Large products", precision=precision, tflops=measured / 1e12, maker_tflops=tera)

    def bare_piece(self, case: Case, needs: float = 6) -> Piece:
        return Piece(f"bare {case.net}, {case.precision}, {case.batch}, {case.text}", needs, partial(self._bare, case))

    def own_piece(self, case: Case, needs: float = 7) -> Piece:
        return Piece(f"Step {case.net}, {case.batch}, {case.how}", needs, partial(self._own, case))

    def contender_piece(self, name: str) -> Piece:
        return Piece(name, 7, partial(self._contender, name))

    def profile(self) -> None:
        step = own_step(self.setting, self._sized(Case()))
        for _ in range(self.setting.pick(3, 1)):
            step()
        kernels.table(self.setting, step, "A step of D")

    def count_waits(self) -> None:
        """At a batch of 32 images, where the CPU is most in the way."""
        step = own_step(self.setting, self._sized(Case(batch=32)))
        steps = self.setting.pick(_LOOKS, 2)
        for _ in range(steps // 2):
            step()
        found = host.synchronisations(self.setting, step, steps)
        for place, count in found.items():
            self.setting.report.row("Where the CPU waits for the GPU", place=place, times=count, steps=steps)
        self.setting.report.check(f"Step: waits for the GPU in {steps} steps", found.total(), most=0)
        handed, whole = host.launching(self.setting, step)
        title = "The CPU's time for a step of D, 32 images"
        self.setting.report.row(title, launching_ms=1000 * handed, whole_ms=1000 * whole, share=handed / whole)

    def _contender(self, name: str) -> None:
        try:
            contenders.check(self.setting, name)
        except RuntimeError as error:  # such as a kernel that this cuDNN has not got
            self.setting.report.note(f"{name}: {error}")
            return
        self._bare(Case(ways=name))

    def _bare(self, case: Case) -> None:
        if case.how != "eager" and (lacking := made.lacking_to_compile(self.setting)):
            self.setting.report.note(f"{case.text}: left out, there is no {lacking} here")
            return
        taken = self._row("bare", case, lambda: bare_step(self.setting, self._sized(case)))
        if taken is not None:
            self.taken[case] = taken

    def _own(self, case: Case) -> None:
        if case.how != "eager" and (lacking := made.lacking_to_compile(self.setting)):
            self.setting.report.note(f"Step, {case.text}: left out, there is no {lacking} here")
            return
        try:
            taken = self._row("Step", case, lambda: own_step(self.setting, self._sized(case)))
        except TrainingError as error:
            self.setting.report.note(f"Step {case.net}, {case.text}: {error}")
            return
        if taken is None:
            return
        bare = self.taken.get(case)
        if bare is not None:
            name = f"{case.net}: a step of Step over a bare one, {case.how}"
            self.setting.report.check(name, taken / bare, most=_OVERHEAD_MOST, goal=True)
        if case.net == "A":
            return
        share = self._flops(case) / taken / self.peaks["bf16"]
        name = f"{case.net}: Step's share of the measured bf16 peak, {case.how}"
        self.setting.report.check(name, share, least=_AIM, goal=True)

    def _row(self, what: str, case: Case, make: Callable[[], Callable[[], None]]) -> float | None:
        """Seconds, or None if there was no memory for it."""
        if self.setting.cuda:
            torch.cuda.reset_peak_memory_stats()
        taken: float | None = None
        try:
            step = make()
            pick, in_a_row = self.setting.pick, max(3, 1024 // case.batch)
            taken = seconds(step, self.setting.device, pick(3, 1), pick(4, 0), pick(in_a_row, 1))
        except torch.cuda.OutOfMemoryError:
            pass
        if case.how != "eager":
            torch.compiler.reset()  # and lets go of the memory of CUDA graphs
        n, text = self._sized(case).batch, case.text if taken else f"{case.text}: out of memory"
        speed = None if taken is None else self._flops(case) / taken
        maker = self._makers_peak(case.precision)
        self.setting.report.row(
            _STEPS,
            what=what,
            net=case.net,
            precision=case.precision,
            batch=n,
            how=text,
            ms=None if taken is None else 1000 * taken,
            images_per_second=None if taken is None else n / taken,
            tflops=None if speed is None else speed / 1e12,
            share=None if speed is None else speed / self.peaks[case.precision],
            of_makers=None if speed is None or maker is None else speed / maker,
            gib=torch.cuda.max_memory_allocated() / 2**30 if self.setting.cuda else None,
        )
        return taken

    def _sized(self, case: Case) -> Case:
        """In a rehearsal, of few images."""
        return replace(case, batch=max(2, case.batch // 64)) if self.setting.small else case

    def _flops(self, case: Case) -> float:
        """Of a step."""
        own = self._sized(case)
        s = made.settings(self.setting, own.net, own.batch)
        return own.batch * flops.training_flops(s.net, made.classes(self.setting), s.input_size, s.width)

    def _makers_peak(self, precision: Precision) -> float | None:
        if not self.setting.cuda:
            return None
        name = torch.cuda.get_device_name(self.setting.device)
        return named_peak_flops(name, "bfloat16" if precision == "bf16" else precision)


def bare_step(setting: Setting, case: Case) -> Callable[[], None]:
    """Forward, backward and update, as one writes it by hand."""
    matrix.choose(case.precision)
    torch.backends.cudnn.benchmark = case.engines is not None
    if setting.cuda and case.engines is not None:
        torch.backends.cudnn.benchmark_limit = case.engines
    s = made.settings(setting, case.net, case.batch, learning_rate=_RATE)
    net = made.quick_net(setting, s)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    net.to(memory_format=layout)  # type: ignore[call-overload]
    optimiser = optimise.sgd(net, s)
    bf16 = case.precision == "bf16"
    images = _images(setting, s.input_size, case.batch).to(
        torch.bfloat16 if bf16 else torch.float32, memory_format=layout
    )
    labels = torch.arange(case.batch, device=setting.device) % made.classes(setting)
    model: nn.Module = net if case.ways is None else Contender(net, WAYS[case.ways])
    if case.how != "eager":
        model.compile(mode="default" if case.how == "compile" else "reduce-overhead")

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        if case.how == "CUDA graphs":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=bf16):
            scores = model(images)
        F.cross_entropy(scores.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def own_step(setting: Setting, case: Case) -> Callable[[], None]:
    """What the training loop does in a step, but for waiting for images: see `cluster.train`."""
    changes = {"learning_rate": _RATE, "compile": case.how != "eager", "precision": "bf16"}
    s = made.settings(setting, case.net, case.batch, **changes)
    net = made.quick_net(setting, s)
    step = Step(net, setting.world, s, made.order(s))
    optimiser, meter = optimise.sgd(net, s), Meter(setting.world)
    parameters = list(net.parameters())
    rows = torch.arange(case.batch)
    images, own_labels = _images(setting, s.input_size, case.batch), rows % made.classes(setting)
    number = 0

    def call() -> None:
        nonlocal number
        labels = transfer.onto(own_labels, setting.device)
        scores, losses = step.gradients(Batch(images, labels, rows, len(rows)), number)
        norm = optimise.clip(parameters, s.clip_norm)
        optimiser.step()
        meter.add(scores, labels, losses, 0, norm)
        number += 1

    return call


def _images(setting: Setting, side: int, n: int) -> Tensor:
    return torch.randn(n, 3, side, side, device=setting.device)
