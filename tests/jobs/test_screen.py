"""The view of a board: a small one exactly, random ones by what always has to hold."""

import io
import random

import pytest
from rich.console import Console

from jobs.board import Board, Snapshot
from jobs.line import Line, Phase
from jobs.screen import Screen, Sheet, drawn
from jobs.told import briefly
from tests.jobs.boards import NOW, epoch, random_board, small


def rows(board: Snapshot, sheet: Sheet) -> list[str]:
    return [row.plain.rstrip() for row in drawn(board, sheet)]


def test_a_small_board_at_80_columns() -> None:
    assert "\n".join(rows(small(), Sheet(80))) == SMALL


SMALL = """\
vgg  1 of 6 done, 2 running, 1 failed  2.0 h  4 workers with 1 GPU each
✓ a              net A, S 256         validation 0.250 (epoch 1)  2 epochs
● ├─test of a    dense, Q 256         ━━━━━━━━╸────────────  40 %  60 s left
    400/1000 images  10 images/s
✗ ├─b            net B, S 256         failed after epoch 2  5 min
    the loss is nan in epoch 3 before step 7; it was 1.9 before
· │ └─test of b  dense, Q 256         left out: b failed
● └─e            net E, S 256         ━━━━━────────────────  25 %  ≤12 min left
    epoch 3/10  step 25/50  loss 1.2345  accuracy 0.512
    validation 0.250 (epoch 1)  2310 images/s  4 workers  rate 0.01
○   └─e-jitter   net E, S 256 to 512  waits for e"""


def test_a_small_board_in_eight_rows_without_colours_or_signs_beyond_ascii() -> None:
    assert "\n".join(rows(small(), Sheet(72, 8, ascii=True))) == ASCII


ASCII = """\
vgg  1 of 6 done, 2 running, 1 failed  2.0 h  4 workers with 1 GPU each
+ a              net A, S 256         validation 0.250 (epoch 1)  3 min
> |-test of a    dense, Q 256         =====--------  40 %  60 s left
x |-b            net B, S 256         failed after epoch 2  5 min
- | `-test of b  dense, Q 256         left out: b failed
> `-e            net E, S 256         ===----------  25 %  <12 min left
.   `-e-jitter   net E, S 256 to 512  waits for e"""


@pytest.mark.parametrize("seed", range(60))
def test_no_row_is_too_wide_and_there_are_never_too_many_and_all_that_runs_is_shown(seed: int) -> None:
    rng = random.Random(seed)
    board = random_board(rng)
    sheet = Sheet(rng.randint(20, 200), rng.choice([None, rng.randint(1, 60)]), rng.random() < 0.3)
    found = drawn(board, sheet)
    assert max(row.cell_len for row in found) <= sheet.width
    height = len(found) if sheet.height is None else sheet.height
    assert len(found) <= height
    text = "\n".join(row.plain for row in found)
    running = [line for line in board.lines if line.phase is Phase.RUNNING]
    marks = text.count(">" if sheet.ascii else "●")
    if len(running) + bool(board.job) <= height:
        assert marks == len(running)
    elif height > 2:
        assert f"and {len(running) - marks} more running" in text
    if sheet.height is None:
        assert len(found) >= len(board.lines) + bool(board.job)
    if sheet.ascii:
        assert set("●○✓✗■━─╸├└│≤…").isdisjoint(text)


@pytest.mark.parametrize("height", [8, 12, 20, 31, 40])
def test_of_thirty_stages_those_that_are_far_away_share_a_row(height: int) -> None:
    names = [f"stage-{i}" for i in range(30)]
    board = Board("job", [Line(name, "net E, S 256", (names[i - 1],) if i else ()) for i, name in enumerate(names)])
    for name in names[:12]:
        board.set(name, Phase.DONE, "3 epochs", NOW)
    board.set(names[12], Phase.RUNNING, now=NOW)
    board.hear(names[12], epoch(1, 4, 0.5), NOW)
    whole, found = (rows(board.snapshot(NOW), Sheet(100, most)) for most in (None, height))
    assert len(found) == min(height, len(whole))
    folded = [int(row.split()[1]) for row in found if " waiting: " in row or " done: " in row]
    assert sum("stage-" in row for row in found) - len(folded) + sum(folded) == 30
    assert any(row.startswith("●") and "stage-12" in row for row in found)


def test_rich_draws_it_as_high_as_the_terminal_is_then_and_all_of_it_at_the_end() -> None:
    board = random_board(random.Random(5))
    screen = Screen(lambda: board)
    for width, height in ((80, 24), (160, 50), (40, 6)):
        console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
        lines = console.render_lines(screen, pad=False)
        assert len(lines) <= height - 1
        assert max(sum(segment.cell_length for segment in line) for line in lines) <= width
    screen.whole = True
    assert len(console.render_lines(screen, pad=False)) >= len(board.lines) > 6


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(-1, "0 s"), (0, "0 s"), (59.4, "59 s"), (99.5, "2 min"), (5940, "99 min"), (5970, "1.7 h"), (4e5, "4.6 days")],
)
def test_times_in_few_letters(seconds: float, told: str) -> None:
    assert briefly(seconds) == told
