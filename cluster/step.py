"""One step's numbers: forward and backward over a worker's share of the batch, and the gradients' exchange.

The result does not depend on the number of workers: each image has its own dropout mask, and the gradient is that of
the mean loss over the global batch. What a worker takes through the net at a time is a piece of its share:

    fast          micro-batches; gradients are averaged by DistributedDataParallel, equal but for rounding
    exact         virtual shards, the same ones for any number of workers; gradients are added in one fixed order, so
                  that not a bit depends on it
    batch norm    virtual shards, of which it sees one at a time; either exchange

Fully-connected layers' gradients come out of their factors where that sends less (see `wire`), with any kind of pieces.
"""

import time
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cluster import dropout, exchange, memory, wire
from cluster.exchange import Pairwise
from cluster.factors import Factors
from cluster.ghost import Statistics
from cluster.settings import StageSettings
from cluster.stopwatch import Stopwatch
from cluster.vgg import VGG
from cluster.world import World
from pipelines import transfer
from pipelines.errors import SettingsError, TrainingError
from pipelines.order import Order
from pipelines.stream import Batch

# Of a gradient's norm. Compiled operations round less often, and each rounding tips ReLUs and maxima, by which whole
# terms of a gradient come and go: 0.3 to 0.5 in bf16 (nets A and E, one rounding behind a convolution's bias instead of
# two), 0.02 in float32. What is wrong, such as a gradient of zeros, is 1 away or more.
_COMPILED_TOLERANCE, _COMPILED_TOLERANCE_BF16 = 0.1, 0.7


def loss(scores: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """(n,) cross entropies of `scores` (n, classes) with `labels` (n,), of which a share `smoothing` is spread evenly
    over all classes (Szegedy et al. 2016, section 7)."""
    return F.cross_entropy(scores, labels, reduction="none", label_smoothing=smoothing)


class Step:
    """Gradients of a net, and its scores, in the precision and layout that settings and device ask for.

    Lays the net's weights out channels last, so that an optimiser is to be made after it, and takes over
    its batch norms. Every worker has to make one. Raises SettingsError if the stage cannot be trained on so many
    workers, TrainingError if their weights differ, a piece of the batch does not fit the memory, or the compiled net
    computes something else.

    micro_batch     images of a piece, at most
    first_seconds   what the first step's passes took; None before it
    compile_seconds what compiling took before, if the settings ask for it
    bf16            whether it computes in bf16: only if all workers can
    unlike          factors would send less, and are not taken, since the workers' devices are not alike
    """

    def __init__(
        self, net: VGG, world: World, settings: StageSettings, order: Order, watch: Stopwatch | None = None
    ) -> None:
        if refusal := settings.refusal(world.size):
            raise SettingsError(refusal)
        exchange.check_same(net, world)
        self._net, self._world, self._settings, self._order = net, world, settings, order
        self._watch = watch or Stopwatch(world.device)
        self._exact = settings.reproducible == "exact"
        self._on_cuda = world.device.type == "cuda"
        # What all can: factors of two precisions, and layers that go two ways, do not come together.
        self.bf16 = bool(exchange.least(int(uses_bf16(settings, world.device)), world))
        self._graphs = settings.compile and self._on_cuda  # CUDA graphs use the memory of their outputs again
        _choose_kernels(self._exact, self.bf16)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._statistics = Statistics(net, world)
        wanted, ways = (
            wire.ways(settings, net.classes, world.size, self.bf16, alike) for alike in (True, exchange.alike(world))
        )
        self.unlike = ways != wanted
        apart = [name for name, way in ways.items() if way == "factors"]
        self._factors = Factors(net, apart, world, settings.compile) if apart else None
        self.micro_batch = self._fitting()
        self.first_seconds: float | None = None
        started = time.monotonic()
        if settings.compile:
            self._compile()
        self.compile_seconds = time.monotonic() - started
        by_tree = [p for name, p in net.named_parameters() if p.requires_grad and name.rpartition(".")[0] not in apart]
        self._by_tree = by_tree if self._exact else []
        bf16_sums = settings.exchange_precision == "bf16"
        self._model = net if self._exact else exchange.parallel(net, world, apart, bf16_sums)
        self._settle_buckets()

    def gradients(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Leaves in every parameter's `grad` that of the mean loss over the global batch, the same on all workers.

        `batch`: this worker's share of step `step`, counted over all epochs. Returns its scores (n, classes) float32
        and losses (n,), without gradients.
        """
        started = time.monotonic()
        self._net.train()
        self._statistics.begin()
        self._clear()
        if self._factors:
            self._factors.begin(self._order.shares(step, self._world.size))
        keys = None
        if self._settings.dropout:
            keys = transfer.onto(dropout.row_keys(self._settings.seed, step, batch.rows), self._world.device)
        through = self._through_tree if self._exact else self._through_ddp
        outputs = through(batch, keys, self._pieces(batch, step))
        if self._factors:
            with self._watch("exchange"):
                self._factors.settle(1 if self._exact else self._world.size)
        self._statistics.settle()
        if self.first_seconds is None:
            self.first_seconds = time.monotonic() - started
        scores, losses = zip(*outputs, strict=True)
        return torch.cat(scores), torch.cat(losses)

    def evaluate(self, images: Tensor) -> Tensor:
        """Scores (n, classes) float32, without dropout or gradients."""
        self._net.eval()
        with torch.inference_mode(), self._autocast():
            return self._net(self._laid_out(images)).float().clone()  # type: ignore[no-any-return]

    def _settle_buckets(self) -> None:
        """A first pass of nothing. After it DDP puts gradients into other buckets, in which those of three workers and
        more are added in another order: a run that goes on would add up its first step as no other run does."""
        if isinstance(self._model, DistributedDataParallel):
            side = self._net.input_size
            images = torch.zeros(2, 3, side, side, device=self._world.device)
            self._net.train()
            self._statistics.begin()
            with self._autocast():
                scores = self._model(self._laid_out(images))
            scores.sum().backward()
            self._statistics.restore()
            self._clear()

    def _pieces(self, batch: Batch, step: int) -> list[slice]:
        """Runs of the share's images, in order; at least one, which may be empty, as virtual shards may."""
        if not self._settings.sharded:
            n = len(batch.labels)
            return [slice(a, min(a + self.micro_batch, n)) for a in range(0, max(n, 1), self.micro_batch)]
        shards = self._settings.virtual_shards
        own = range(self._world.rank * shards // self._world.size, (self._world.rank + 1) * shards // self._world.size)
        pieces, first = [], 0
        for shard in own:
            last = first + self._order.share_rows(step, shard, shards)
            pieces.append(slice(first, last))
            first = last
        assert first == len(batch.labels), (first, len(batch.labels))
        return pieces

    def _through_ddp(self, batch: Batch, keys: Tensor | None, pieces: list[slice]) -> list[tuple[Tensor, Tensor]]:
        """Gradients stay with the worker until the last piece, and are averaged during its backward pass."""
        outputs = []
        for i, piece in enumerate(pieces):
            last = i == len(pieces) - 1
            if last or piece.start < piece.stop:
                with self._kept_back(not last):
                    outputs.append(self._pass(batch, keys, piece, self._world, last))
            self._statistics.take((piece.stop - piece.start) / batch.total)
        return outputs

    def _kept_back(self, wanted: bool) -> AbstractContextManager[None]:
        return self._model.no_sync() if wanted and isinstance(self._model, DistributedDataParallel) else nullcontext()

    def _through_tree(self, batch: Batch, keys: Tensor | None, pieces: list[slice]) -> list[tuple[Tensor, Tensor]]:
        """Each shard's gradients are a leaf of one tree over all workers."""
        outputs, sums = [], Pairwise()
        alone = World(0, 1, self._world.device, self._world.threads)
        for i, piece in enumerate(pieces):
            outputs.append(self._pass(batch, keys, piece, alone, i == len(pieces) - 1))
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._by_tree]
            sums.add([g.clone() for g in gradients] if self._graphs else gradients)
            self._statistics.take((piece.stop - piece.start) / batch.total)
            self._clear()
        totals = sums.total()
        with self._watch("exchange"):
            exchange.add_up_in_order(totals, self._world)
        for parameter, total in zip(self._by_tree, totals, strict=True):
            parameter.grad = total
        return outputs

    def _pass(
        self, batch: Batch, keys: Tensor | None, piece: slice, averaged: World, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Forward and backward; `averaged`: the workers over which the gradients will be averaged; `last`: of this
        step's pieces."""
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        images = self._laid_out(batch.images[piece])
        with self._watch("forward"), self._autocast():
            scores = self._model(images, None if keys is None else keys[piece]).float()
            losses = loss(scores, batch.labels[piece], self._settings.label_smoothing)
        if last and self._factors:
            self._factors.last()
        with self._watch("backward"):
            exchange.mean_loss(losses, batch.total, averaged).backward()  # type: ignore[no-untyped-call]
        return scores.detach().clone(), losses.detach()

    def _laid_out(self, images: Tensor) -> Tensor:
        """As the net's convolutions take them, copied once instead of for the layout and for the precision each."""
        return images.to(torch.bfloat16 if self.bf16 else torch.float32, memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._world.device.type, torch.bfloat16, enabled=self.bf16)

    def _clear(self) -> None:
        for parameter in self._net.parameters():
            if self._graphs and parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.zero_()
            else:
                parameter.grad = None

    def _fitting(self) -> int:
        """The images of a piece: as set, or what fits the memory of all workers."""
        s, order, world = self._settings, self._order, self._world
        if s.micro_batch != "auto":
            return s.micro_batch
        if s.sharded:
            largest = -(-s.batch // s.virtual_shards)
        else:
            own = max(order.share_rows(step, world.rank, world.size) for step in range(order.steps_per_epoch))
            largest = max(1, exchange.most(own, world))
        fitting = exchange.least(self._found(largest), world)
        if fitting == 0 or (s.sharded and fitting < largest):
            raise TrainingError(_too_large(s, largest))
        return fitting

    def _compile(self) -> None:
        """Raises TrainingError if the compiled net has other gradients than the net itself."""
        self._statistics.begin()
        expected = self._example_gradients()
        self._net.compile(mode="reduce-overhead" if self._on_cuda else "default")
        tolerance = _COMPILED_TOLERANCE_BF16 if self.bf16 else _COMPILED_TOLERANCE
        for name, gradient in self._example_gradients().items():
            distance = torch.linalg.vector_norm(gradient - expected[name])
            if not distance <= tolerance * torch.linalg.vector_norm(expected[name]):
                raise TrainingError(
                    f"torch.compile of PyTorch {torch.__version__} gets the gradient of {name} wrong on "
                    f"{self._world.device.type}: leave compile off"
                )
        self._statistics.restore()

    def _example_gradients(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        side = self._net.input_size
        images = torch.randn(self.micro_batch, 3, side, side, generator=generator).to(self._world.device)
        keys = torch.arange(self.micro_batch, device=self._world.device)
        self._clear()
        self._trial(images, keys).mean().backward()  # type: ignore[no-untyped-call]
        found = {name: p.grad.clone() for name, p in self._net.named_parameters() if p.grad is not None}
        self._clear()
        return found

    def _found(self, largest: int) -> int:
        if not self._on_cuda:
            return memory.by_estimate(self._net, largest, self._world)
        self._statistics.begin()
        found = memory.by_trial(self._net, self._trial, largest)
        self._statistics.restore()
        return found

    def _trial(self, images: Tensor, keys: Tensor) -> Tensor:
        with self._autocast():
            scores = self._net(self._laid_out(images), keys).float()
        return loss(scores, torch.zeros_like(keys))


def uses_bf16(settings: StageSettings, device: torch.device) -> bool:
    if settings.precision != "auto":
        return settings.precision == "bf16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def compute_threads(settings: StageSettings, own: int, given: bool) -> int:
    """Threads for a worker's arithmetic. `own`: its CPUs; `given`: whether the job says how many, and they do not
    follow from the number of workers on a machine: sums of other numbers of threads differ in rounding."""
    return 1 if settings.reproducible == "exact" and not given else own


def _choose_kernels(exact: bool, bf16: bool) -> None:
    """cuDNN may try which of its kernels are fastest, unless they are to be the same ones each time; where float32 was
    chosen it is not to round to TF32."""
    torch.backends.cudnn.benchmark = not exact
    torch.backends.cudnn.deterministic = exact
    torch.backends.cudnn.allow_tf32 = bf16


def _too_large(settings: StageSettings, images: int) -> str:
    if not settings.sharded:
        return "not one image fits the memory of the device with the net, its momentum and its gradients"
    return f"a virtual shard of {images} images does not fit the memory of the device: raise virtual_shards"
