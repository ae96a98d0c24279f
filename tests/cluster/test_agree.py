"""Agreement over real process groups (gloo)."""

import random

import pytest
import torch
import torch.distributed as dist

from cluster.agree import Agreement, Wish
from cluster.world import World
from tests.cluster.groups import together

STEPS = 200


def wishes(rank: int) -> list[Wish]:
    """Mostly none, as in a run."""
    rare = random.Random(rank)
    return [Wish(rare.choice((Wish.SAVE, Wish.STOP))) if rare.random() < 0.1 else Wish.NONE for _ in range(STEPS)]


def agreed(world: World) -> list[int]:
    """What a worker is granted at each step."""
    agreement = Agreement(world)
    gradients = torch.full((10_000,), 1.0 + world.rank)
    granted = []
    for wish in wishes(world.rank):
        granted.append(int(agreement.exchange(wish)))
        total = gradients.clone()
        dist.all_reduce(total)  # what a step exchanges beside it
        assert torch.equal(total, torch.full_like(total, world.size * (world.size + 1) / 2))
    return granted


@pytest.mark.parametrize("size", [1, 3])
def test_all_workers_are_granted_the_greatest_wish_one_step_later(size: int) -> None:
    greatest = [0, *(max(all_wishes) for all_wishes in zip(*map(wishes, range(size)), strict=True))]
    assert set(greatest) == {0, 1, 2}
    assert together(size, agreed) == [greatest[:STEPS]] * size
