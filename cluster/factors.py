"""Gradients of fully-connected layers, exchanged as their factors (see `wire`, and docs/exchange.md).

Where plain data parallelism multiplies on each worker and sums the products over all of them, here a layer's backward
pass hands in its inputs X (n, in) and its outputs' gradients G (n, out) of this worker's n images. Those of all workers
are gathered while the backward pass goes on, and every worker multiplies the same matrices: the weight's gradient is
G^T X over the global batch, the bias' the sum of G's rows. So all workers come to the same bits, if their devices and
their numbers of threads are alike; and in exact training those bits do not depend on the number of workers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.world import World

try:
    from torch.distributed import all_gather_single  # type: ignore[attr-defined, unused-ignore]
except ImportError:  # before PyTorch 2.13
    from torch.distributed import all_gather_into_tensor as all_gather_single

HandIn = Callable[[Tensor, Tensor], None]


class Factors:
    """Of some of a net's fully-connected layers. Outside of `begin` ... `settle` these are as others are.

    A step: `begin`; passes forward and backward, as many as a worker likes, each of some of its images; before the last
    one's backward pass `last`; after it `settle`, which leaves the gradients in the layers' `grad`.
    """

    def __init__(
        self, net: nn.Module, names: Sequence[str], world: World, compiled: bool = False, grouped: bool = False
    ) -> None:
        """Takes the place of the net's layers `names`, whose parameters stay the same ones. `compiled`: the net is to
        be, for which these layers are left out. `grouped`: there is a process group though the worker may be the only
        one, and rows go through it."""
        self._layers = [_Layer(net.get_submodule(name), self, compiled) for name in names]
        for name, layer in zip(names, self._layers, strict=True):
            net.set_submodule(name, layer)
        self._rank, self._grouped = world.rank, grouped or world.size > 1
        self._rows: Sequence[int] = ()
        self.active = self.sending = False

    def begin(self, rows: Sequence[int]) -> None:
        """`rows`: the images of each worker in this step."""
        self._rows, self.active, self.sending = rows, True, False

    def last(self) -> None:
        """The backward pass that comes now is this worker's last one in this step."""
        self.sending = True

    def wait(self) -> None:
        """Until the others' factors are here, which `settle` does as well: for those who time both apart."""
        for layer in self._layers:
            layer.wait()

    def settle(self, divisor: int) -> None:
        """Waits for the others' factors, and multiplies. `divisor`: of the gradients."""
        self.active = False
        for layer in self._layers:
            layer.settle(divisor)

    def gathered(self, own: Tensor) -> "_Gathered":
        """Begins to gather all workers' rows, of which `own` (n, m) are this one's."""
        assert len(own) == self._rows[self._rank], (len(own), self._rows)
        return _Gathered(own, self._rows, self._grouped)


class _Layer(nn.Linear):
    """A linear layer that hands its factors in."""

    def __init__(self, linear: nn.Module, factors: Factors, compiled: bool) -> None:
        assert isinstance(linear, nn.Linear)
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._factors = factors
        self._held: list[Tensor] = []
        self._gathered: _Gathered | None = None
        if compiled:
            self.forward = torch.compiler.disable(self.forward)  # type: ignore[method-assign, no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        if not self._factors.active:
            return super().forward(x)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.weight.dtype
        with torch.autocast(kind, enabled=False):
            return _HandingIn.apply(x.to(dtype), self.weight, self.bias, self._hand_in)  # type: ignore[no-any-return, no-untyped-call]

    def _hand_in(self, x: Tensor, gradient: Tensor) -> None:
        self._held.append(torch.cat([x, gradient], 1))
        if self._factors.sending:
            self._gathered, self._held = self._factors.gathered(_joined(self._held)), []

    def wait(self) -> None:
        assert self._gathered is not None
        self._gathered.wait()

    def settle(self, divisor: int) -> None:
        assert self._gathered is not None
        both = self._gathered.wait()
        self._gathered = None
        x, gradients = both[:, : self.in_features].contiguous(), both[:, self.in_features :].contiguous()
        _leave(self.weight, _product(gradients, x), divisor)
        _leave(self.bias, gradients.float().sum(0), divisor)


class _HandingIn(torch.autograd.Function):
    """x W^T + b, whose backward pass computes the gradient of x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, hand_in: HandIn) -> Tensor:
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        ctx.hand_in = hand_in
        return F.linear(x, weight, bias.to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.hand_in(x, gradient)
        return (gradient @ weight if ctx.needs_input_grad[0] else None), None, None, None


class _Gathered:
    """Rows that are under way between the workers, if these are a process group."""

    def __init__(self, own: Tensor, rows: Sequence[int], grouped: bool) -> None:
        self._rows, self._most = rows, max(rows)
        self._work: dist.Work | None = None
        self._all = own
        if grouped:
            # Workers send equally many rows, of which the last ones may be none: gloo gathers no others.
            self._own = F.pad(own, (0, 0, 0, self._most - len(own)))
            self._all = own.new_empty(len(rows) * self._most, own.shape[1])
            self._work = all_gather_single(self._all, self._own, async_op=True)

    def wait(self) -> Tensor:
        """(batch, m): those of all workers, in the order of their ranks."""
        if self._work is None:
            return self._all
        self._work.wait()
        if sum(self._rows) == len(self._all):
            return self._all
        each = self._all.view(len(self._rows), self._most, -1)
        return torch.cat([part[:n] for part, n in zip(each, self._rows, strict=True)])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _product(gradients: Tensor, x: Tensor) -> Tensor:
    """G^T X in float32, whatever the factors' precision."""
    if gradients.dtype == torch.float32:
        return gradients.t() @ x
    if gradients.is_cuda:
        return torch.mm(gradients.t(), x, out_dtype=torch.float32)
    return gradients.float().t() @ x.float()


def _leave(parameter: Tensor, total: Tensor, divisor: int) -> None:
    if divisor != 1:
        total /= divisor
    if parameter.grad is None:
        parameter.grad = total
    else:
        parameter.grad.copy_(total)
