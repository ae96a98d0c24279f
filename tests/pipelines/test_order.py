import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.order import Order

orders = st.builds(
    Order,
    group_rows=st.lists(st.integers(1, 40), min_size=1, max_size=80).map(tuple),
    batch=st.integers(1, 90),
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=60, deadline=None)
@given(orders, st.integers(1, 64), st.integers(0, 2))
def test_an_epoch_has_every_row_once_for_any_world(order: Order, world: int, epoch: int) -> None:
    first = epoch * order.steps_per_epoch
    rows = np.concatenate(
        [order.share(first + t, rank, world) for t in range(order.steps_per_epoch) for rank in range(world)]
    )
    assert sorted(rows.tolist()) == list(range(order.rows))


@settings(max_examples=60, deadline=None)
@given(orders, st.integers(1, 64), st.integers(0, 100))
def test_the_global_batch_is_the_same_for_any_world_and_shares_are_even(order: Order, world: int, step: int) -> None:
    shares = [order.share(step, rank, world) for rank in range(world)]
    assert np.concatenate(shares).tolist() == order.share(step, 0, 1).tolist()
    assert sum(len(s) for s in shares) == order.batch_rows(step)
    assert max(len(s) for s in shares) - min(len(s) for s in shares) <= 1


@settings(max_examples=60, deadline=None)
@given(orders, st.integers(1, 8), st.integers(0, 50))
def test_the_groups_of_a_share_hold_its_rows(order: Order, world: int, step: int) -> None:
    ends = np.cumsum(order.group_rows)
    for rank in range(world):
        rows = order.share(step, rank, world)
        assert set(np.searchsorted(ends, rows, side="right").tolist()) <= set(order.groups(step, rank, world))


def test_epochs_and_seeds_differ() -> None:
    order = Order((50, 50), 100, 1)
    other = Order((50, 50), 100, 2)
    lists = [order.share(0, 0, 1).tolist(), order.share(1, 0, 1).tolist(), other.share(0, 0, 1).tolist()]
    assert lists[0] != lists[1]
    assert lists[0] != lists[2]
    assert lists[1] != lists[2]
