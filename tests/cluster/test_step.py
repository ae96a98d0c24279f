"""A step's numbers over real process groups (gloo): the same whatever the workers and the pieces."""

import copy
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from cluster import dropout, exchange, init, memory, wire
from cluster.exchange import Pairwise
from cluster.settings import StageSettings
from cluster.step import Step, compute_threads, loss, uses_bf16
from cluster.vgg import VGG
from cluster.world import World
from pipelines.errors import SettingsError, TrainingError
from pipelines.order import Order
from pipelines.stream import Batch
from tests.cluster.groups import together
from tests.pipelines.test_order import orders

# Batches of 22 images, which 8 virtual shards do not divide; the last of an epoch has 3, fewer than there are shards.
ORDER = Order((15,) * 9, 22, seed=5)
IMAGES = torch.randn(ORDER.rows, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LABELS = torch.from_numpy(np.random.default_rng(2).integers(0, 4, ORDER.rows))


def settings(**changes: object) -> StageSettings:
    small = {"net": "A", "scale": 32, "input_size": 32, "width": 0.05, "batch": 22, "dropout": 0.5}
    return StageSettings.model_validate(small | changes)


def net(s: StageSettings) -> VGG:
    model = VGG(s.net, 4, s.input_size, s.width, s.dropout, s.batch_norm)
    init.randomise(model, "kaiming", 0.01, seed=2)
    return model


def share(step: int, world: World) -> Batch:
    rows = torch.from_numpy(ORDER.share(step, world.rank, world.size))
    return Batch(IMAGES[rows], LABELS[rows], rows, ORDER.batch_rows(step))


def run(world: World, steps: int, s: StageSettings, rate: float = 0.01, first: int = 0) -> dict[str, Any]:
    """Some steps of SGD. Returns the global batches' mean losses, the last gradients, and the weights."""
    model = net(s)
    step = Step(model, world, s, ORDER)
    optimiser = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    losses = []
    for t in range(first, first + steps):
        batch = share(t, world)
        scores, own = step.gradients(batch, t)
        assert scores.shape == (len(batch.labels), 4)
        losses.append(float(world.add_up(own.double().sum())) / batch.total)
        optimiser.step()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"losses": losses, "gradients": gradients, "weights": model.state_dict()}


def synchronisations(world: World, micro_batch: int) -> int:
    """How often gradients were sent in three steps: once for each of DDP's buckets, or more."""
    s = settings(micro_batch=micro_batch)
    step = Step(net(s), world, s, ORDER)
    sent = 0

    def hook(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        nonlocal sent
        sent += 1
        mean = bucket.buffer() / world.size
        return dist.all_reduce(mean, async_op=True).get_future().then(lambda future: future.value()[0])

    step._model.register_comm_hook(None, hook)
    for t in range(3):
        step.gradients(share(t, world), t)
    return sent


def refused(world: World, s: StageSettings, spoil: bool = False) -> str:
    model = net(s)
    if spoil and world.rank == 1:
        with torch.no_grad():
            model.fc2.weight[0, 0] += 1e-6
    with pytest.raises((SettingsError, TrainingError)) as caught:
        Step(model, world, s, ORDER)
    return str(caught.value)


def results(world: World) -> dict[str, Any]:
    """All that a number of workers is asked."""
    # At a rate of 3e-4 losses were seen to jump 1e-3 and more apart after 20 steps: presumably, rounding tips a ReLU or
    # a maximum, and gradients then differ by more than rounding.
    found: dict[str, Any] = {"fast": run(world, 50, settings(), 1e-5)}
    found["ddp"] = run(world, 50, settings(exchange="ddp"), 1e-5)
    found["pieces"] = run(world, 3, settings(micro_batch=3), first=5)
    if world.size == 3:
        return found | {"refusal": refused(world, settings(reproducible="exact"))}
    found["exact"] = run(world, 20, settings(reproducible="exact"))
    found["exact ddp"] = run(world, 8, settings(reproducible="exact", exchange="ddp"))
    found["exact norm"] = run(world, 8, settings(reproducible="exact", batch_norm=True))
    found["fast norm"] = run(world, 8, settings(batch_norm=True))
    if world.size == 2:
        found["sent"] = [synchronisations(world, pieces) for pieces in (22, 3, 1)]
        found["differ"] = refused(world, settings(), spoil=True)
    return found


@pytest.fixture(scope="module")
def worlds() -> dict[int, list[dict[str, Any]]]:
    """By the number of workers: what each worker found."""
    torch.set_num_threads(1)
    return {1: [results(World.single())], **{size: together(size, results) for size in (2, 3, 4)}}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].numpy().tobytes() == b[k].numpy().tobytes() for k in a)


@pytest.mark.parametrize("how", ["fast", "ddp"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_fifty_losses_are_those_of_one_worker_with_dropout_and_uneven_shares(
    worlds: dict[int, list[dict[str, Any]]], size: int, how: str
) -> None:
    assert len({ORDER.share_rows(t, rank, size) for t in range(7) for rank in range(size)}) > 1
    alone = worlds[1][0]["fast"]["losses"]
    assert len(alone) == 50
    assert alone[-1] < 0.9 * alone[0], "of a net that is learning"
    for found in worlds[size]:
        assert found[how]["losses"] == pytest.approx(alone, rel=1e-5)
        assert same_bits(found[how]["weights"], worlds[size][0][how]["weights"])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_factors_are_what_is_exchanged_by_default(worlds: dict[int, list[dict[str, Any]]], size: int) -> None:
    """Other sums than DDP's: were the bits the same, both would have gone one way."""
    fast, ddp = (worlds[size][0][how]["gradients"] for how in ("fast", "ddp"))
    assert set(wire.ways(settings(), 4, size, bf16=False).values()) == {"ddp", "factors"}
    assert not torch.equal(fast["fc1.weight"], ddp["fc1.weight"])


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("how", ["exact", "exact ddp", "exact norm"])
def test_exact_training_ends_with_the_same_bits(worlds: dict[int, list[dict[str, Any]]], size: int, how: str) -> None:
    for found in worlds[size]:
        assert same_bits(found[how]["weights"], worlds[1][0][how]["weights"])
        assert same_bits(found[how]["gradients"], worlds[1][0][how]["gradients"])


@pytest.mark.parametrize("size", [2, 4])
def test_statistics_of_batch_norm_do_not_depend_on_the_workers(
    worlds: dict[int, list[dict[str, Any]]], size: int
) -> None:
    alone = worlds[1][0]["fast norm"]["weights"]
    assert int(alone["bn3_2.num_batches_tracked"]) == 8, "one a step"
    for found in worlds[size]:
        for key, value in found["fast norm"]["weights"].items():
            torch.testing.assert_close(value, alone[key], rtol=1e-3, atol=1e-5)
        assert same_bits(found["fast norm"]["weights"], worlds[size][0]["fast norm"]["weights"])


def test_running_statistics_are_averages_over_shards() -> None:
    s = settings(batch_norm=True, dropout=0.0)
    model, reference = net(s), net(s)
    Step(model, World.single(), s, ORDER).gradients(share(0, World.single()), 0)
    batch, sizes = share(0, World.single()), [ORDER.share_rows(0, shard, 8) for shard in range(8)]
    outputs = [reference.conv1_1(images).detach() for images in batch.images.split(sizes)]
    mean = sum(n * y.mean((0, 2, 3)) for n, y in zip(sizes, outputs, strict=True)) / 22
    variance = sum(n * y.var((0, 2, 3)) for n, y in zip(sizes, outputs, strict=True)) / 22
    torch.testing.assert_close(model.get_buffer("bn1_1.running_mean"), 0.1 * mean)
    torch.testing.assert_close(model.get_buffer("bn1_1.running_var"), 0.9 + 0.1 * variance)


def reference_gradients(steps: int, first: int = 0) -> dict[str, Tensor]:
    """In float64, the whole batch at a time, of plain PyTorch."""
    s = settings()
    model = net(s).double()
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for t in range(first, first + steps):
        if t > first:
            optimiser.step()
        batch = share(t, World.single())
        scores = model(batch.images.double(), dropout.row_keys(s.seed, t, batch.rows))
        optimiser.zero_grad()
        F.cross_entropy(scores, batch.labels).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(gradients: dict[str, Tensor], reference: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert gradients.keys() == reference.keys()
    for name, expected in reference.items():
        assert float((gradients[name] - expected).norm() / expected.norm()) < tolerance, name


@pytest.mark.parametrize("pieces", [{"micro_batch": 1}, {"micro_batch": 3}, {}, {"reproducible": "exact"}])
def test_gradients_are_those_of_the_mean_loss_however_the_batch_is_cut(pieces: dict[str, object]) -> None:
    assert_close(run(World.single(), 1, settings(**pieces))["gradients"], reference_gradients(1))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_gradients_of_pieces_on_many_workers_are_those_of_the_mean_loss(
    worlds: dict[int, list[dict[str, Any]]], size: int
) -> None:
    for found in worlds[size]:
        assert_close(found["pieces"]["gradients"], reference_gradients(3, first=5), 1e-4)


def test_pieces_are_added_up_before_they_are_sent(worlds: dict[int, list[dict[str, Any]]]) -> None:
    whole, threes, ones = worlds[2][0]["sent"]
    assert whole == threes == ones
    assert whole % 3 == 0
    assert whole > 0


def test_workers_with_other_weights_and_worlds_that_do_not_fit_are_refused(
    worlds: dict[int, list[dict[str, Any]]],
) -> None:
    for found in worlds[2]:
        assert found["differ"].startswith("the workers begin with different weights (fc2.weight): do all")
    for found in worlds[3]:
        expected = "exact training takes a power of two of workers, at most virtual_shards (8); 3 cannot share"
        assert found["refusal"].startswith(expected)
    assert settings(batch_norm=True, virtual_shards=4).refusal(8) is not None
    assert settings(reproducible="exact").refusal(8) is None
    assert settings().refusal(3) is None


@examples(max_examples=60, deadline=None)
@given(orders, st.integers(0, 6), st.integers(0, 6), st.integers(0, 100))
def test_shares_of_powers_of_two_nest(order: Order, shards_log: int, workers_log: int, step: int) -> None:
    shards, workers = 2 ** max(shards_log, workers_log), 2 ** min(shards_log, workers_log)
    each = shards // workers
    for rank in range(workers):
        inside = [order.share(step, shard, shards) for shard in range(rank * each, (rank + 1) * each)]
        assert np.concatenate(inside).tolist() == order.share(step, rank, workers).tolist()
        assert sum(order.share_rows(step, rank * each + i, shards) for i in range(each)) == order.share_rows(
            step, rank, workers
        )


@pytest.mark.parametrize("leaves", [1, 2, 8, 64])
def test_leaves_are_added_as_a_tree_that_holds_little(leaves: int) -> None:
    values = torch.randn(leaves, 1000, generator=torch.Generator().manual_seed(leaves)) ** 5

    def tree(part: Tensor) -> Tensor:
        return part[0] if len(part) == 1 else tree(part[: len(part) // 2]) + tree(part[len(part) // 2 :])

    sums, most = Pairwise(), 0
    for value in values.clone():
        sums.add([value])
        most = max(most, len(sums._partial))
    assert torch.equal(sums.total()[0], tree(values))
    assert most <= math.log2(leaves) + 1


class Fussy(VGG):
    """Runs out of memory above ten images."""

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        if len(images) > 10:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().forward(images, keys)


@pytest.mark.parametrize(("share_rows", "fitting"), [(50, 7), (10, 10), (11, 6), (3, 3)])
def test_a_trial_halves_until_it_fits(share_rows: int, fitting: int) -> None:
    fussy = Fussy("A", 4, 32, 0.05)
    assert memory.by_trial(fussy, fussy, share_rows, share_rows) == fitting
    assert all(p.grad is None for p in fussy.parameters())


def test_a_trial_in_which_not_one_image_fits_finds_none() -> None:
    def never(images: Tensor, keys: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    assert memory.by_trial(VGG("A", 4, 32, 0.05), never, 9, 9) == 0


def test_beside_a_trial_there_is_room_for_what_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, for VGG-D: 9 times its 138,357,544 weights, and 8 batches of 256 images of 224 pixels."""
    with torch.device("meta"):
        whole = VGG("D", 1000, 224)
    expected = 4 * (9 * 138_357_544 + 8 * 256 * 3 * 224 * 224)
    assert memory.reserved_bytes(whole, 256) == expected
    made: list[int] = []
    empty = torch.empty

    def counted(size: int, **options: Any) -> Tensor:
        made.append(size)
        return empty(size, **options)

    fussy = Fussy("A", 4, 32, 0.05)
    monkeypatch.setattr(memory.torch, "empty", counted)
    assert memory.by_trial(fussy, fussy, 3, 12) == 3
    assert made[0] == memory.reserved_bytes(fussy, 12)


@pytest.mark.parametrize("side", [32, 64])
def test_what_a_pass_keeps_is_what_the_layers_have_to_keep(side: int) -> None:
    """By hand: images, every convolution's and pool's output, indices of maxima (8 bytes), outputs of FC-1 and FC-2."""
    width, hidden = 0.25, 1024
    expected, maps = 4 * 3 * side**2, side
    for channels, convolutions in zip((16, 32, 64, 128, 128), (1, 1, 2, 2, 2), strict=True):
        expected += 4 * convolutions * channels * maps**2
        maps //= 2
        expected += (4 + 8) * channels * maps**2
    expected += 4 * 2 * hidden
    assert memory.activation_bytes(VGG("A", 10, side, width, dropout=0.0)) == expected


def test_on_the_cpu_the_share_is_halved_until_the_estimate_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, world = net(settings()), World(0, 1, torch.device("cpu"), 10**6)
    assert memory.by_estimate(model, 22, world) == 22
    monkeypatch.setattr(memory, "machine_bytes", partial(int, 2 * 6 * memory.activation_bytes(model)))
    assert memory.by_estimate(model, 22, world) == 6
    monkeypatch.setattr(memory, "machine_bytes", partial(int, 1))
    assert memory.by_estimate(model, 22, world) == 1
    with pytest.raises(TrainingError, match=r"a virtual shard of 3 images does not fit .*: raise virtual_shards"):
        Step(model, World.single(), settings(reproducible="exact"), ORDER)


def test_bf16_is_close_to_float32_and_scores_come_as_float32() -> None:
    batch = share(0, World.single())
    found = {}
    for precision in ("float32", "bf16"):
        s = settings(precision=precision)
        step = Step(net(s), World.single(), s, ORDER)
        scores, losses = step.gradients(batch, 0)
        found[precision] = (losses, step.evaluate(batch.images))
        assert {t.dtype for t in (scores, losses, *found[precision])} == {torch.float32}
        assert not found[precision][1].requires_grad
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05 * float(a.abs().max()))
        assert not torch.equal(a, b)
    assert not uses_bf16(settings(), torch.device("cpu"))


class Miscompiled(VGG):
    """As PyTorch 2.13 compiles VGG-A for the CPU: scores are right, the convolutions' gradients are 0."""

    def compile(self, *args: object, **kwargs: object) -> None:
        features = self.features
        self.features = lambda images: features(images) * 0 + features(images).detach()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_compiled_net_with_other_gradients_is_refused(precision: str) -> None:
    s = settings(compile=True, precision=precision)
    with pytest.raises(TrainingError, match=r"gets the gradient of conv1_1\.weight wrong on cpu: leave compile off$"):
        Step(Miscompiled("A", 4, 32, 0.05), World.single(), s, ORDER)


def test_evaluation_is_the_plain_net_without_dropout() -> None:
    s = settings()
    model = net(s)
    plain = copy.deepcopy(model).eval()
    step = Step(model, World.single(), s, ORDER)
    step.gradients(share(0, World.single()), 0)
    torch.testing.assert_close(step.evaluate(IMAGES[:5]), plain(IMAGES[:5]))
    assert step.first_seconds is not None


def test_a_smoothed_loss_spreads_its_share_over_all_classes() -> None:
    scores, labels = torch.randn(6, 5), torch.arange(6) % 5
    logs = scores.log_softmax(1)
    target = 0.9 * F.one_hot(labels, 5) + 0.1 / 5
    torch.testing.assert_close(loss(scores, labels, 0.1), -(target * logs).sum(1))


def test_threads_of_exact_training_do_not_follow_from_the_cluster() -> None:
    assert compute_threads(settings(), 4, given=False) == 4
    assert compute_threads(settings(reproducible="exact"), 4, given=False) == 1
    assert compute_threads(settings(reproducible="exact"), 4, given=True) == 4


def test_one_worker_has_nothing_to_agree_on() -> None:
    exchange.check_same(net(settings()), World.single())
    assert exchange.least(3, World.single()) == exchange.most(3, World.single()) == 3
