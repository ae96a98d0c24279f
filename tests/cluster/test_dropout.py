"""Dropout keyed by (seed, step, row): its rate, and that nothing about a mask tells of another."""

import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import dropout, init
from cluster.vgg import VGG

N, UNITS = 256, 1024


def mask(seed: int = 1, step: int = 2, first: int = 0, layer: int = 1, share: float = 0.5) -> torch.Tensor:
    return dropout.kept(dropout.row_keys(seed, step, torch.arange(first, first + N)), layer, UNITS, share)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """In units of its sampling error, 1 / sqrt(n)."""
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]) * math.sqrt(a.numel())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_share_that_is_dropped_is_the_one_asked_for_in_every_row_and_unit(share: float) -> None:
    kept = mask(share=share).double()
    spread = math.sqrt(share * (1 - share))
    assert abs(float(kept.mean()) - (1 - share)) < 4 * spread / math.sqrt(N * UNITS)
    for dim, n in ((0, N), (1, UNITS)):
        deviations = (kept.mean(dim) - (1 - share)) * math.sqrt(n) / spread
        assert float(deviations.abs().max()) < 5
        assert abs(float(deviations.std()) - 1) < 0.2, "as of independent draws"


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2}, {"seed": 1 | 1 << 32}, {"seed": 1 | 1 << 63}, {"step": 3}, {"step": 2 + (1 << 20)},
        {"first": N}, {"first": 1 << 33}, {"layer": 2},
    ],
)  # fmt: skip
def test_masks_of_other_seeds_steps_rows_and_layers_are_independent(other: dict[str, int]) -> None:
    assert abs(correlation(mask(), mask(**other))) < 4.5


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 8, 64, 256, 512])
def test_neighbours_are_independent(distance: int) -> None:
    kept = mask()
    assert abs(correlation(kept[:, :-distance], kept[:, distance:])) < 4.5
    if distance < N:
        assert abs(correlation(kept[:-distance], kept[distance:])) < 4.5


def test_no_two_rows_are_alike_more_than_chance_has_it() -> None:
    signs = mask().double() * 2 - 1
    products = (signs @ signs.T / math.sqrt(UNITS))[~torch.eye(N, dtype=torch.bool)]
    assert float(products.abs().max()) < 5.5
    assert abs(float(products.std()) - 1) < 0.03


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**48 - 1), min_size=1), st.data())
def test_an_images_mask_is_the_same_in_whatever_batch_it_comes(
    seed: int, step: int, rows: list[int], data: st.DataObject
) -> None:
    i = data.draw(st.integers(0, len(rows) - 1))
    whole = dropout.kept(dropout.row_keys(seed, step, torch.tensor(rows)), 1, 37, 0.3)
    alone = dropout.kept(dropout.row_keys(seed, step, torch.tensor(rows[i : i + 1])), 1, 37, 0.3)
    assert torch.equal(whole[i : i + 1], alone)


def test_the_hash_is_the_one_written_in_plain_integers() -> None:
    def mixed(x: int, other: int) -> int:
        x = (x ^ x >> 15) * 0x2C1B3C6D % 2**32 ^ other
        x = (x ^ x >> 12) * 0x297A2D39 % 2**32
        return x ^ x >> 15

    keys = dropout.row_keys(3, 4, torch.arange(5))
    for key, row in zip(keys.tolist(), dropout.kept(keys, 2, 50, 0.25).tolist(), strict=True):
        low, high = key % 2**32, (key >> 32) % 2**32
        assert row == [mixed(low ^ mixed(2 << 24 | unit, 0), high) >= 2**30 for unit in range(50)]


def test_what_is_kept_is_scaled_and_gradients_go_through_it() -> None:
    keys = dropout.row_keys(0, 0, torch.arange(8))
    x = torch.randn(8, 100, requires_grad=True)
    y = dropout.drop(x, keys, 1, 0.2)
    kept = dropout.kept(keys, 1, 100, 0.2)
    torch.testing.assert_close(y, torch.where(kept, x / 0.8, 0.0))
    y.sum().backward()
    torch.testing.assert_close(x.grad, kept / 0.8)
    assert dropout.drop(x.bfloat16(), keys, 1, 0.2).dtype == torch.bfloat16


def test_a_net_drops_by_key_in_training_at_random_without_keys_and_not_at_all_in_tests() -> None:
    net = VGG("A", 5, 32, 0.1, dropout=0.5)
    init.randomise(net, "kaiming", 0.01, seed=1)
    images, keys = torch.randn(4, 3, 32, 32), dropout.row_keys(0, 7, torch.tensor([3, 1, 4, 5]))
    scores = net(images, keys)
    assert torch.equal(scores, net(images, keys))
    torch.testing.assert_close(scores[1:3], net(images[1:3], keys[1:3]))
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images, keys), net(images))
    assert torch.equal(net(images), VGG.forward(net, images))


def test_it_takes_no_longer_than_torchs_own() -> None:
    keys, x = dropout.row_keys(0, 0, torch.arange(64)), torch.randn(64, 4096)

    def seconds(own: bool) -> float:
        started = time.thread_time()
        dropout.drop(x, keys, 1, 0.5) if own else F.dropout(x, 0.5)
        return time.thread_time() - started

    torch.set_num_threads(1)
    own, torchs = (min(seconds(which) for _ in range(20)) for which in (True, False))
    assert own < 2 * torchs
