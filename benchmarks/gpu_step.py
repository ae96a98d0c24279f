"""Training steps on made-up images: how close they come to what the GPU's matrix units can do, and what is in the way.

One thing at a time is changed around net D in bf16, channels last, 256 images. "bare" is the net, the loss and the
update, "Step" the project's own step with all that a training loop does in it (`cluster.step`).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from benchmarks import contenders, host, kernels, made, matrix
from benchmarks.contenders import WAYS
from benchmarks.loops import Case, bare_step, own_step
from benchmarks.matrix import Precision
from benchmarks.setting import Piece, Setting, seconds
from cluster import flops
from cluster.peak import named_peak_flops
from pipelines.errors import TrainingError

_STEPS = "Steps (share: of the measured peak of the same precision; tf32's for float32 with it)"
_AIM = 0.6  # of the measured bf16 peak, for D and E
_INPUT_AIM = 1.5  # times what the step of D needs
_OVERHEAD_MOST = 1.03
_LOOKS = 32  # steps, in which the meter looks at what it holds twice
_BATCHES = (32, 512, 64, 128)
# cuDNN's choice for a shape is kept for the process, whatever is asked of it later: other choices take other shapes.
_OTHER_BATCHES = (264, 248)


def run(setting: Setting) -> None:
    bench = _Bench(setting)
    case = Case()
    bare, own = bench.bare_piece, bench.own_piece
    setting.each(
        (
            Piece("matrix peaks", 5, bench.find_peaks),
            bare(case),
            own(case),
            Piece("input beside the step", 1, bench.judge_input),
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
    """`peaks`: measured FLOP/s by precision. `taken`, `own_taken`: seconds of a bare step, and of Step's, by case."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.peaks: dict[Precision, float] = {}
        self.taken: dict[Case, float] = {}
        self.own_taken: dict[Case, float] = {}

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

    def judge_input(self) -> None:
        """If the part `input` has measured it before."""
        from benchmarks.gpu_input import best_rate  # a slow import

        rate, case = best_rate(self.setting.folder), Case()
        if rate is None or case not in self.own_taken:
            self.setting.report.note("input beside the step of D: one of them was not measured")
            return
        needed = self._sized(case).batch / self.own_taken[case]
        name = "images a second of the input alone, over those that the step of D takes"
        self.setting.report.check(name, rate / needed, least=_INPUT_AIM, goal=True)

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
        self.own_taken[case] = taken
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
