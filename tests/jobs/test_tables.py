"""Tables of results: which one a result is in, its interval, and the paper's number beside it."""

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize

from cluster.metrics import Totals
from cluster.views import TestMode
from jobs import paper, tables
from jobs.results import Result, Subject

JITTER, Q3 = (256, 512), (256, 384, 512)


def result(net: str = "D", trained: tuple[int, int] = JITTER, scales: tuple[int, ...] = Q3, mode: str = "dense",
           test: str = "t", classes: int = 1000, wrong: int = 250, **kind: object) -> Result:  # fmt: skip
    subject = Subject(net.lower(), net, trained, scales, (f"{net}-{mode}.parquet",), **kind)  # type: ignore[arg-type]
    totals = Totals(1000, 700.0, 1000 - wrong, 1000 - wrong // 3)
    return Result(test, (subject,), mode, classes, totals)  # type: ignore[arg-type]


def fused(mode: TestMode, *parts: Result) -> Result:
    return replace(parts[0], subjects=tuple(part.subjects[0] for part in parts), mode=mode)


def where(results: list[Result]) -> dict[int, list[tuple[str, str]]]:
    """Of each table, net and mode of its rows."""
    return {
        table.number: [(row.result.subjects[0].net, row.result.mode) for row in table.rows]
        for table in tables.tables(results)
    }


@pytest.mark.parametrize("images", [1, 7, 359, 50_000])
def test_an_interval_ends_where_the_share_is_just_rejected_by_the_score_test(images: int) -> None:
    """Wilson's interval are the p for which |share - p| <= z sqrt(p (1 - p) / n); its ends found by bisection."""
    near = 1e-12  # the share itself is an end of the other side
    for count in {0, 1, images // 3, images - 1, images}:
        low, high = tables.interval(count, images)
        share = count / images

        def excess(p: float, share: float = share) -> float:
            return abs(share - p) - 1.959963984540054 * math.sqrt(p * (1 - p) / images)

        assert low == pytest.approx(optimize.bisect(excess, 0.0, share - near) if count else 0.0, abs=1e-9)
        assert high == pytest.approx(optimize.bisect(excess, share + near, 1.0) if count < images else 1.0, abs=1e-9)


def test_intervals_hold_the_true_share_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    for share in (0.05, 0.3, 0.9):
        counts = rng.binomial(400, share, 2000)
        held = np.mean([low <= share <= high for low, high in (tables.interval(int(c), 400) for c in counts)])
        assert 0.93 <= held <= 0.97


def test_a_result_is_in_the_table_of_its_shape() -> None:
    one, several = result(scales=(384,)), result()
    assert where([one, several]) == {3: [("D", "dense")], 4: [("D", "dense")]}
    crops, both = result(mode="multi-crop"), result(mode="both")
    modes = [("D", "dense"), ("D", "multi-crop"), ("D", "both")]
    assert where([both, several, crops]) == {4: [("D", "dense")], 5: modes}, "dense on the same Q is in both"
    assert where([one, crops]) == {3: [("D", "dense")], 5: [("D", "multi-crop")]}, "but not on other Q"
    together = [fused(mode, result(), result("E")) for mode in ("both", "dense")]  # type: ignore[arg-type]
    assert where(together) == {6: [("D", "dense"), ("D", "both")]}
    assert where([]) == {}


def test_mirror_images_are_named_where_tests_differ_in_them() -> None:
    plain, mirrored = result(test="plain", mirror=False), result(test="mirrored", mirror=True)
    (table,) = tables.tables([plain, mirrored])
    at = table.lines[0].index("mirrored")
    assert [line[at] for line in table.lines[1:]] == ["no", "yes"]
    for alike in (plain, mirrored):
        (table,) = tables.tables([alike])
        assert "mirrored" not in table.lines[0]
    assert [record["mirrored"] for record in tables.records(tables.tables([plain, mirrored]))] == ["no", "yes"]
    crops = result(mode="multi-crop", mirror=True)
    assert where([plain, crops]) == {4: [("D", "dense")], 5: [("D", "multi-crop")]}, "not the same views"


def test_the_precision_is_named_where_it_is_not_float32() -> None:
    exact, rounded = result(), result(precision="tf32")
    for found, named in (([exact], None), ([rounded], ["tf32"]), ([exact, rounded], ["float32", "tf32"])):
        (table,) = tables.tables(found)
        told = [line[table.lines[0].index("precision")] for line in table.lines[1:]] if named else None
        assert told == named
        assert ("precision" in table.lines[0]) == (named is not None)


def test_nets_stand_in_the_order_of_tests_and_their_modes_below_one_another() -> None:
    found = [result(net, mode=mode) for mode in ("multi-crop", "dense") for net in ("E", "D")]
    modes = ("dense", "multi-crop")
    assert where(found)[5] == [(net, mode) for net in ("E", "D") for mode in modes]


def test_what_two_tests_have_in_common_is_there_once() -> None:
    again = replace(result(), test="other")
    shown = tables.tables([result(), again])
    assert [row.result.test for table in shown for row in table.rows] == ["t"]


@pytest.mark.parametrize(
    ("found", "table", "errors"),
    [
        (result("A", (256, 256), (256,)), 3, (29.6, 10.4)),
        (result("A-LRN", (256, 256), (256,)), 3, (29.7, 10.5)),
        (result("C", JITTER, (384,)), 3, (27.3, 8.8)),
        (result("B", (256, 256), (224, 256, 288)), 4, (28.2, 9.6)),
        (result("D", (384, 384), (352, 384, 416)), 4, (26.5, 8.6)),
        (result("E"), 4, (24.8, 7.5)),
        (result("E", mode="multi-crop"), 5, (24.6, 7.4)),
        (result("D", mode="both"), 5, (24.4, 7.2)),
        (fused("both", result("D"), result("E")), 6, (23.7, 6.8)),
        (fused("multi-crop", result("E"), result("D")), 6, (23.9, 7.2)),
    ],
)
def test_the_papers_row_is_beside_ours_where_net_scales_and_mode_agree(
    found: Result, table: int, errors: tuple[float, float]
) -> None:
    entry = paper.entry(table, found)
    assert entry is not None
    assert entry.errors == errors
    assert entry.where.startswith(f"table {table}: ")


@pytest.mark.parametrize(
    "found",
    [
        result("A", (256, 256), (224, 256, 288)),  # A was not tested at several
        result("D", JITTER, (256,)),
        result("D", (256, 256), (384,)),
        result("D", (300, 300), (300,)),
        result("D", scales=Q3[:2]),
        result(classes=10),
        result(width=0.5),
        result(batch_norm=True),
        result(input_size=256),
        result("B", (256, 256), Q3, "both"),
        fused("dense", result("D"), result("D")),
        fused("dense", result("D"), result("E", (384, 384))),
    ],
)
def test_no_row_of_the_papers_is_beside_a_net_or_test_unlike_its(found: Result) -> None:
    shown = tables.tables([found])
    assert [row.paper for table in shown for row in table.rows] == [None]
    assert "paper top-1 %" not in shown[0].lines[0]


def test_errors_of_the_paper_fall_with_scales_crops_and_nets() -> None:
    """What sections 4.2 to 4.4 say, of every net."""
    for net, trained in [("B", (256, 256)), *((n, s) for n in "CDE" for s in (paper.S256, paper.S384, paper.JITTER))]:
        single = paper.entry(3, result(net, trained, ((trained[0] + trained[1]) // 2,)))
        middle = Q3 if trained == JITTER else (trained[0] - 32, trained[0], trained[0] + 32)
        several = paper.entry(4, result(net, trained, middle))
        assert single is not None
        assert several is not None
        assert several.errors < single.errors


def test_text_and_markdown_show_the_same_cells() -> None:
    shown = tables.tables([result(scales=(384,)), result("E", width=0.5, scales=(384,)), result(mode="both")])
    lines = [line for table in shown for line in table.lines]
    told = [line for line in tables.markdown(shown).splitlines() if line.startswith("| ") and "---" not in line]
    assert [tuple(cell.strip() for cell in line.strip("| ").split(" | ")) for line in told] == lines
    for line in tables.text(shown).splitlines():
        assert line == line.rstrip()
    for cells in lines:
        assert all(cell in tables.text(shown) for cell in cells)
    errors = ("25.00 (22.42 to 27.78)", "8.30 (6.75 to 10.17)")
    assert lines[1] == ("d", "D", "256 to 512", "384", *errors, "25.6", "8.1", "1000", "t")
    assert lines[2] == ("e", "E", "256 to 512", "384", *errors, "-", "-", "1000", "t")


def test_a_bar_in_a_name_does_not_break_a_markdown_table() -> None:
    text = tables.markdown(tables.tables([result(test="a|b")]))
    assert "| 1000 | a\\|b |" in text


@pytest.mark.parametrize(("classes", "there"), [(3, False), (5, False), (6, True)])
def test_with_five_classes_or_fewer_there_is_no_top_5(classes: int, there: bool) -> None:
    shown = tables.tables([result(classes=classes)])
    assert any(name.startswith("top-5") for name in shown[0].lines[0]) is there
    assert (tables.records(shown)[0]["top-5 error %"] is not None) is there


def test_a_csv_file_and_columns_hold_every_row_with_numbers_of_full_precision() -> None:
    found = [result(), result(mode="both", wrong=333, classes=4), fused("dense", result("D"), result("E"))]
    shown = tables.tables(found)
    lines = list(csv.DictReader(io.StringIO(tables.as_csv(shown))))
    columns = tables.columns(shown)
    assert [line["table"] for line in lines] == ["4", "5", "5", "6"] == [str(number) for number in columns["table"]]
    assert {len(column) for column in columns.values()} == {len(lines)}
    assert float(lines[2]["top-1 error %"]) == pytest.approx(33.3)
    low, high = tables.interval(333, 1000)
    assert float(lines[2]["top-1 low %"]) == pytest.approx(100 * low, abs=1e-4)
    assert float(lines[2]["top-1 high %"]) == pytest.approx(100 * high, abs=1e-4)
    assert lines[2]["top-5 error %"] == ""
    assert lines[3]["model"] == "d + e"
    assert lines[3]["net"] == "D + E"
    assert lines[3]["S"] == "256 to 512"
    assert lines[3]["paper top-1 %"] == "24.0"
    assert lines[3]["paper's row"] == "table 6: D and E, S 256 to 512, dense"
    assert tables.as_csv([]) == ""


def test_images_that_could_not_be_decoded_are_told_of() -> None:
    bad = replace(result(), totals=replace(result().totals, unreadable=3))
    head, line = tables.tables([bad])[0].lines
    assert dict(zip(head, line, strict=True))["unreadable"] == "3"
    assert "unreadable" not in tables.tables([result()])[0].lines[0]
