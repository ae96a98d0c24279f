"""Files of posteriors, and their averages."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster import posteriors
from cluster.posteriors import Posteriors, average
from pipelines.errors import DataError
from pipelines.location import Location


def drawn(n: int, classes: int, seed: int) -> Posteriors:
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.full(classes, 0.3), n).astype(np.float32)
    names = [f"class/{i}.jpg" for i in range(n)]
    labels = np.arange(n) % classes
    return Posteriors(names, labels, scores, tuple(f"c{i}" for i in range(classes)), "data", (n - 1,), {"seed": seed})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    place, p = Location.of(tmp_path / "folder" / "p.parquet"), drawn(31, 7, 0)
    posteriors.write(place, p)
    found = posteriors.read(place)
    assert (found.names, found.classes, found.data, found.unreadable, found.origin) == (
        p.names,
        p.classes,
        p.data,
        p.unreadable,
        p.origin,
    )
    assert np.array_equal(found.labels, p.labels)
    assert np.array_equal(found.scores, p.scores)
    assert posteriors.look(place) == (p.origin, p.totals)
    table = pq.read_table(tmp_path / "folder" / "p.parquet")  # as other programs see it
    assert table.column_names == ["name", "label", "scores"]
    assert table["scores"][3].as_py() == p.scores[3].tolist()


def test_totals_equal_counting_by_hand() -> None:
    p = drawn(50, 9, 1)
    order = np.argsort(-p.scores, axis=1)
    assert p.totals.top1 == sum(int(order[i, 0] == p.labels[i]) for i in range(50))
    assert p.totals.top5 == sum(int(p.labels[i] in order[i, :5]) for i in range(50))
    assert p.totals.loss == pytest.approx(np.mean([-np.log(p.scores[i, p.labels[i]]) for i in range(50)]), rel=1e-6)
    assert (p.totals.images, p.totals.unreadable) == (50, 1)


def test_fewer_classes_than_five_are_all_among_the_first_five() -> None:
    assert drawn(20, 3, 2).totals.top5 == 20


def test_a_tie_counts_against_the_net() -> None:
    p = replace(drawn(1, 6, 3), scores=np.full((1, 6), 1 / 6, np.float32))
    assert (p.totals.top1, p.totals.top5) == (0, 0)


def test_an_average_is_the_mean_in_any_order() -> None:
    parts = [drawn(12, 5, seed) for seed in range(4)]
    expected = np.mean([part.scores for part in parts], axis=0)
    found = average(parts)
    assert np.allclose(found.scores, expected, atol=1e-7)
    assert np.array_equal(average(parts[::-1]).scores, found.scores)


def test_posteriors_of_other_images_or_classes_are_refused() -> None:
    p = drawn(4, 3, 0)
    with pytest.raises(DataError, match="different data sets"):
        average([p, replace(p, data="other")])
    with pytest.raises(DataError, match="different classes"):
        average([p, replace(p, classes=("x", "y", "z"))])


@pytest.mark.parametrize("damage", ["absent", "cut", "text", "foreign"])
def test_a_file_that_is_no_such_file_is_a_line(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    posteriors.write(Location.of(file), drawn(4, 3, 0))
    if damage == "absent":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    elif damage == "text":
        file.write_text("no Parquet")
    else:
        pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    for read in (posteriors.read, posteriors.look):
        with pytest.raises(DataError) as caught:
            read(Location.of(file))
        assert str(file) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
