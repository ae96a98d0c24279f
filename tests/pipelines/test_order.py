import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.order import Order

SHARES = 2000  # computed in an example, at a hundredth of a millisecond and more
orders = st.builds(
    Order,
    group_rows=st.one_of(
        st.lists(st.integers(1, 40), min_size=1, max_size=80).map(tuple),
        st.integers(81, 700).flatmap(lambda n: st.lists(st.integers(1, 4), min_size=n, max_size=n).map(tuple)),
    ),
    batch=st.integers(1, 300),
    seed=st.integers(0, 2**64 - 1),
    held=st.integers(1, 64),
)


def workers(order: Order) -> st.SearchStrategy[int]:
    """Numbers of workers, with bounds on what they have to do in an epoch together."""
    return st.integers(1, min(64, max(2, SHARES // order.steps_per_epoch)))


@settings(max_examples=60, deadline=None)
@given(orders, st.data(), st.integers(0, 2))
def test_an_epoch_has_every_row_once_for_any_world(order: Order, data: st.DataObject, epoch: int) -> None:
    world = data.draw(workers(order))
    first = epoch * order.steps_per_epoch
    rows = np.concatenate(
        [order.share(first + t, rank, world) for t in range(order.steps_per_epoch) for rank in range(world)]
    )
    assert sorted(rows.tolist()) == list(range(order.rows))


@settings(max_examples=60, deadline=None)
@given(orders, st.integers(1, 64), st.integers(0, 100))
def test_the_global_batch_is_the_same_for_any_world_and_shares_are_even(order: Order, world: int, step: int) -> None:
    shares = [order.share(step, rank, world) for rank in range(world)]
    sizes = [len(share) for share in shares]
    assert np.concatenate(shares).tolist() == order.share(step, 0, 1).tolist()
    assert sum(sizes) == order.batch_rows(step)
    assert sizes == [order.share_rows(step, rank, world) for rank in range(world)]
    assert max(sizes) - min(sizes) <= (1 if world.bit_count() == 1 else 4)


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


@settings(max_examples=60, deadline=None)
@given(orders, st.data())
def test_a_run_whose_world_changes_in_mid_epoch_sees_every_row_once(order: Order, data: st.DataObject) -> None:
    steps = order.steps_per_epoch
    changes = sorted(data.draw(st.lists(st.integers(0, steps), min_size=2, max_size=2)))
    worlds = data.draw(st.lists(workers(order), min_size=3, max_size=3))
    ledger = np.zeros(order.rows, dtype=int)
    for step in range(steps):
        world = worlds[sum(step >= change for change in changes)]
        for rank in range(world):
            np.add.at(ledger, order.share(step, rank, world), 1)
    assert (ledger == 1).all()


@settings(max_examples=60, deadline=None)
@given(orders, st.integers(0, 50))
def test_windows_hold_no_more_row_groups_than_they_may(order: Order, step: int) -> None:
    # A batch may end a stream's window, begin the next, and go through whole ones between them.
    width = order.held // order.streams
    rows = -(-order.batch // order.streams)
    smallest = min(order.group_rows) * width
    assert len(order.groups(step, 0, 1)) <= order.streams * width * (2 + rows // smallest)


@pytest.mark.parametrize("groups", [1, 8, 20, 64])
def test_a_small_set_sorted_by_class_is_mixed_from_the_first_batch_on(groups: int) -> None:
    order = Order((80,) * groups, 10 * groups, 7)
    classes = order.share(0, 0, 1) * 8 // order.rows  # eight, one behind the other
    assert len(set(classes.tolist())) >= 4


def test_streams_are_shuffled_and_mixed() -> None:
    order = Order((76,) * 640, 256, 3)
    assert order.streams == 64
    rows = order.share(11, 0, 1)
    assert len(set((rows // 76).tolist())) >= 64, "a batch comes from as many row groups as there are streams"
    within = np.concatenate([order.share(step, 0, 64) for step in range(19)]) % 76
    assert np.abs(np.corrcoef(np.arange(len(within)), within)[0, 1]) < 0.5, "a stream's rows are not in file order"


@pytest.mark.parametrize("batch", [250, 256])
def test_eight_workers_on_a_hundred_row_groups_read_a_tenth_too_much_at_most(batch: int) -> None:
    order = Order(tuple(np.random.default_rng(batch).integers(70, 82, 100).tolist()), batch, 1)
    epochs = 8
    for rank in range(8):
        held: set[int] = set()
        read = used = 0
        for step in range(epochs * order.steps_per_epoch):
            groups = set(order.groups(step, rank, 8))  # forgotten as soon as no window needs them
            read += sum(order.group_rows[group] for group in groups - held)
            held = groups
            used += order.share_rows(step, rank, 8)
        assert used == pytest.approx(epochs * order.rows / 8, rel=0.01)
        assert read / used <= 1.1
