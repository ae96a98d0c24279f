"""What a person sees: in a log exactly which lines, in a terminal a view that stays whole."""

import os
import re
import subprocess
import threading
import warnings

import pytest

from jobs.board import Board
from jobs.line import Line, Phase
from jobs.watch import Watch
from tests.jobs.boards import Record, epoch, point
from tests.jobs.terminal import run_in_terminal, set_size

STAGES = (Line("a", "net A, S 34"), Line("e", "net E, S 34", ("a",)))


def test_a_log_has_these_lines_each_with_its_node(capsys: pytest.CaptureFixture[str]) -> None:
    records: list[tuple[str, Record]] = [
        ("a", {"kind": "workers", "count": 2, "attempt": 1}),
        ("a", {"kind": "tick", "epoch": 1, "epochs": 3, "step": 1, "steps": 50}),
        ("a", point(1, 3, 10)),
        ("a", point(1, 3, 12, line=True)),
        ("e", {"kind": "warning", "text": "worker 1 died; training goes on from its newest checkpoint"}),
        ("e", {"kind": "workers", "count": 1, "attempt": 2}),
        ("a", {"kind": "unreadable", "name": "x.jpg", "reason": "cut off"}),
        ("e", {"kind": "unreadable", "name": "x.jpg", "reason": "cut off"}),
        ("a", {"kind": "quiet", "seconds": 60}),
        ("a", epoch(1, 3, 0.5)),
        ("a", {"kind": "rows", "epoch": 1, "step": 1, "rank": 0, "rows": []}),
        ("test of a", {"kind": "tested", "images": 100}),
        ("test of a", {"kind": "timed", "mode": "dense", "scale": 34, "mirror": False, "images": 100}),
    ]
    with Watch(Board("job", STAGES)) as watch:
        watch.say("job: 1438 images")
        for i, (name, record) in enumerate(records):
            watch.hear(name, record, now=float(i))
        watch.set("a", Phase.DONE, "3 epochs")
        watch.set("e", Phase.FAILED, "the loss is nan")
        watch.set("test of e", Phase.LEFT_OUT, "e failed")
        watch.set("test of a", Phase.STOPPED)
    assert capsys.readouterr().out.splitlines() == LOG


LOG = [
    "job: 1438 images",
    "a  epoch 1/3  step 12/50  loss 1.2345  accuracy 0.512  2310 images/s  rate 0.01",
    "e: warning: worker 1 died; training goes on from its newest checkpoint",
    "e: 1 worker at work, attempt 2",
    "a: x.jpg cannot be decoded (cut off); a plain picture stands in for it",
    "a: no word from the workers for 60 s; they wait for free CPUs or GPUs, or validate",
    "a  epoch 1/3  loss 1.5000  accuracy 0.500  validation 0.500  640 images/s  rate 0.01  100.0 s",
    "a: done, 3 epochs, best validation accuracy 0.500",
    "e: failed: the loss is nan",
    "test of e: left out: e failed",
    "test of a: stopped",
]


def test_a_log_has_a_line_a_minute_of_each_long_epoch_and_test(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch(Board("job", STAGES))
    watch.set("a", Phase.RUNNING)
    watch.begin("test of a", 10_000)
    for second in range(1, 301):
        watch.hear("a", {"kind": "tick", "epoch": 1, "epochs": 3, "step": second, "steps": 900}, now=float(second))
        watch.hear("test of a", {"kind": "tested", "images": 10}, now=float(second))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("a ")] == [
        "a  epoch 1/3  step 61/900  at most 44 min left",
        "a  epoch 1/3  step 121/900  at most 43 min left",
        "a  epoch 1/3  step 181/900  at most 42 min left",
        "a  epoch 1/3  step 241/900  at most 41 min left",
    ]
    assert len([line for line in lines if line.startswith("test of a  ")]) == 4
    assert lines[1] == "test of a  610/10000 images  10 images/s  16 min left"


def test_a_log_has_nothing_but_lines_from_many_threads_and_warnings_on_the_other_stream(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Watch(Board("job", STAGES)) as watch:
        threads = [
            threading.Thread(target=lambda name=name: [watch.hear(name, epoch(i, 99, 0.5)) for i in range(1, 100)])
            for name in ("a", "e")
        ]
        for thread in threads:
            thread.start()
        warnings.warn("MLflow does not answer", stacklevel=1)
        for thread in threads:
            thread.join()
    printed = capsys.readouterr()
    assert printed.err == "warning: MLflow does not answer\n"
    assert printed.out.count("\n") == 2 * 99
    assert all(line.startswith(("a  epoch ", "e  epoch ")) for line in printed.out.splitlines())
    assert "\x1b" not in printed.out


PROGRAM = """
import signal, sys, threading, time, warnings
from jobs.board import Board
from jobs.line import Line, Phase
from jobs.watch import Watch

EPOCH = EPOCH_1
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
board = Board("job", [Line("a", "net A, S 34"), *(Line(f"e-{i}", "net E, S 34", ("a",)) for i in range(20))])
with Watch(board) as watch:
    watch.say("first of all")
    watch.set("a", Phase.RUNNING)
    for i in range(1, 7):
        numbers = {"loss": 2 - i / 10, "accuracy": i / 10, "validation_accuracy": i / 10}
        watch.hear("a", {**EPOCH, **numbers, "epoch": i, "epochs": 6})
        watch.hear("a", {"kind": "warning", "text": f"number {i}"})
        warnings.warn(f"of Python {i}")
        print(f"said by others {i}", file=sys.stderr if i % 2 else sys.stdout)
        time.sleep(0.1)
    END
""".replace("EPOCH_1", repr(epoch(1, 6, 0.1)))


def test_in_a_terminal_lines_scroll_by_above_a_view_that_stays_whole_and_is_left_there() -> None:
    screen, status = run_in_terminal(PROGRAM.replace("END", 'watch.set("a", Phase.DONE, "6 epochs")'), 80, 12)
    assert status == 0
    assert screen.cursor_shown
    said = [line.rstrip() for line in screen.lines if line.strip()]
    lines = ["first of all"]
    for i in range(1, 7):
        loss, accuracy = 2 - i / 10, i / 10
        lines += [
            f"a  epoch {i}/6  loss {loss:.4f}  accuracy {accuracy:.3f}  validation {accuracy:.3f}  640 images/s  rate "
            "0.01  100.0 s",
            f"a: warning: number {i}",
            f"warning: of Python {i}",
            f"said by others {i}",
        ]
    lines += ["a: done, 6 epochs, best validation accuracy 0.600"]
    assert "".join(said[:-22]).replace(" ", "") == "".join(lines).replace(" ", ""), "but for where lines break"
    assert said[-22].startswith("job  1 of 21 done")
    assert said[-21].startswith("✓ a       net A, S 34  validation 0.600 (epoch 6)  6 epochs")
    assert [line.split()[1] for line in said[-20:]] == [f"├─e-{i}" for i in range(19)] + ["└─e-19"]


def test_a_terminal_is_given_back_with_its_cursor_after_ctrl_c() -> None:
    def interrupt(written: str, process: subprocess.Popen[bytes], terminal: int) -> None:
        if "of Python 6" in written and not sent:
            sent.append(os.write(terminal, b"\x03"))

    sent: list[int] = []
    screen, status = run_in_terminal(PROGRAM.replace("END", "time.sleep(60)"), 80, 24, interrupt)
    assert status != 0
    assert screen.cursor_shown
    text = "\n".join(screen.lines)
    assert "● a" in text
    assert text.rstrip().endswith("KeyboardInterrupt")


def test_the_view_becomes_as_narrow_as_the_terminal() -> None:
    def resize(written: str, process: subprocess.Popen[bytes], terminal: int) -> None:
        if "of Python 2" in written:
            set_size(terminal, 40, 12)
        seen[:] = [written]

    seen: list[str] = []
    run_in_terminal(PROGRAM.replace("END", "time.sleep(0.6)"), 100, 24, resize)
    pictures = re.sub(r"\x1b\[[?\d;]*\w|\r", "", seen[0]).split("job  0 of")
    assert max(len(line) for line in pictures[1].splitlines()[1:]) > 40
    whole, last = pictures[-1].splitlines(), pictures[-2].splitlines()
    assert max(len(line.rstrip()) for line in [*whole, *last]) <= 40
    assert len(last) <= 11
    assert len(whole) >= 21


def test_a_bar_of_one_piece_of_work_goes_away_and_comes_again() -> None:
    program = """
from jobs.watch import Watch
import time
watch = Watch()
for net in "ab":
    watch.begin(f"test of {net}", 1000)
    for _ in range(10):
        watch.listen({"kind": "tested", "images": 100})
        time.sleep(0.06)
    watch.done()
    watch.say(f"{net}: 3 of 1000 right")
"""
    seen: list[str] = []
    screen, status = run_in_terminal(program, 80, 24, lambda written, *_: seen.append(written))
    assert status == 0
    assert re.search("[1-9]00/1000 images", seen[-1])
    assert "test of a" in seen[-1]
    assert "test of b" in seen[-1]
    assert screen.cursor_shown
    assert [line for line in screen.lines if line.strip()] == ["a: 3 of 1000 right", "b: 3 of 1000 right"]


@pytest.mark.parametrize(("name", "value", "drawn"), [("NO_COLOR", "1", True), ("TERM", "dumb", False)])
def test_terminals_without_colours_or_anything_are_respected_and_given_back_after_an_error(
    name: str, value: str, drawn: bool
) -> None:
    program = f"import os; os.environ[{name!r}] = {value!r}\n" + PROGRAM.replace("END", "raise RuntimeError('no')")
    written: list[str] = []
    screen, status = run_in_terminal(program, 80, 30, lambda text, *_: written.append(text))
    assert status != 0
    assert screen.cursor_shown
    assert ("\x1b[2K" in written[-1]) is drawn
    assert "\x1b[32m" not in written[-1]
    assert "\x1b[36m" not in written[-1]
    assert screen.lines[-2] == "RuntimeError: no"
