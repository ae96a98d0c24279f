"""What is done about what happens to a stage's workers, one control step at a time."""

from typing import Any

from cluster.course import LOST_CONTROLLER, PREEMPTED, Course, Move
from cluster.failure import DIED
from cluster.interrupt import Stop
from cluster.place import Shape
from cluster.settings import ClusterSettings


def course(least: int = 1, most: int = 2, **settings: Any) -> Course:
    return Course(Shape(most, 1, 0, least), ClusterSettings(workers=(least, most), **settings), 0.0)


def workers(count: int) -> dict[str, Any]:
    return {"kind": "workers", "count": count}


def tick(epoch: int, step: int) -> dict[str, Any]:
    return {"kind": "tick", "epoch": epoch, "step": step}


def crash(cause: str) -> dict[str, Any]:
    return {"kind": "crash", "cause": cause, "reason": f"worker 1 {cause}"}


GO_ON, STOP, AT_ONCE = Stop(), Stop(), Stop()
STOP.ask()
AT_ONCE.ask(at_once=True)


def move(course: Course, now: float, room: int = 0, stop: Stop = GO_ON) -> Move:
    return course.decide(now, room, stop).move


def test_groups_of_workers_are_counted_and_a_crash_is_told_of_in_a_line() -> None:
    run = course()
    assert run.hear(workers(2), 1.0) == {"kind": "workers", "count": 2, "attempt": 1}
    told = run.hear(crash("died"), 2.0)
    assert told == {"kind": "warning", "text": "worker 1 died; training goes on from its newest checkpoint"}
    assert run.hear(workers(1), 3.0) == {"kind": "workers", "count": 1, "attempt": 2}
    assert move(run, 4.0) is Move.WAIT


def test_crashes_between_which_training_gets_on_are_let_be() -> None:
    run = course()
    for step in range(1, 50):
        run.hear(workers(2), step)
        run.hear(tick(1, step), step)
        run.hear(crash("died"), step)
        assert move(run, step) is Move.WAIT


def test_the_same_failure_at_the_same_step_three_times_is_enough() -> None:
    run = course()
    for attempt in range(3):
        assert move(run, attempt) is Move.WAIT
        run.hear(workers(2), attempt)
        run.hear(tick(2, 5), attempt)
        run.hear(tick(2, 7), attempt)
        run.hear(crash("failed: ZeroDivisionError"), attempt)
    decision = run.decide(3.0, 0, GO_ON)
    assert decision.move is Move.ABORT
    assert decision.why == "again and again in epoch 2 after step 7: worker 1 failed: ZeroDivisionError"


def test_failures_of_several_causes_or_at_several_steps_are_tried_on() -> None:
    run = course()
    for attempt, (cause, step) in enumerate((("a", 7), ("b", 7), ("a", 7), ("a", 7), ("a", 8), ("a", 7), ("a", 7))):
        run.hear(tick(1, step), attempt)
        run.hear(crash(cause), attempt)
        assert move(run, attempt) is Move.WAIT
    run.hear(tick(1, 7), 9.0)
    run.hear(crash("a"), 9.0)
    assert move(run, 9.0) is Move.ABORT


def test_processes_that_die_before_the_first_step_are_given_some_more_chances() -> None:
    run = course()
    for attempt in range(5):
        assert move(run, attempt) is Move.WAIT
        run.hear(crash(DIED), attempt)
    decision = run.decide(5.0, 0, GO_ON)
    assert (decision.move, decision.why) == (Move.ABORT, "again and again before the first step: worker 1 died")


def test_an_error_for_the_user_ends_the_run_after_the_other_workers_had_time_to_end_it() -> None:
    run = course()
    run.hear(workers(2), 0.0)
    assert run.hear({"kind": "failed", "error": "val/0.parquet: broken"}, 10.0) is None
    assert run.hear({"kind": "failed", "error": "a lost connection"}, 10.1) is None
    assert move(run, 10.2) is Move.WAIT
    decision = run.decide(14.0, 0, GO_ON)
    assert (decision.move, decision.why) == (Move.ABORT, "val/0.parquet: broken")


def test_a_stage_waits_for_room_only_so_long() -> None:
    run = course(2, 2, wait_minutes=1)
    assert move(run, 59.0) is Move.WAIT
    decision = run.decide(61.0, 0, GO_ON)
    assert (decision.move, decision.lacks_room) == (Move.ABORT, True)
    assert decision.why == "no room for 2 workers with 1 CPU each in 1 minutes"
    run.hear(workers(2), 61.0)
    assert move(run, 1000.0) is Move.WAIT
    run.hear(crash("died"), 1000.0)
    assert move(run, 1059.0) is Move.WAIT
    assert move(run, 1061.0) is Move.ABORT


def test_a_signal_stops_workers_and_aborts_where_there_are_none() -> None:
    run = course()
    assert move(run, 1.0, stop=STOP) is Move.ABORT
    run.hear(workers(2), 2.0)
    assert move(run, 3.0, stop=STOP) is Move.STOP
    decision = run.decide(4.0, 0, AT_ONCE)
    assert (decision.move, decision.why) == (Move.ABORT, "")


def test_workers_on_a_node_that_is_taken_away_stop_with_a_checkpoint() -> None:
    run = course()
    assert run.hear({"kind": "nodes", "nodes": ["a", "b"]}, 1.0) is None
    assert run.decide(1.5, 0, GO_ON, {"a"}).move is Move.WAIT, "they have not begun"
    run.hear(workers(2), 2.0)
    assert run.decide(3.0, 0, GO_ON, {"c"}).move is Move.WAIT
    decision = run.decide(3.0, 0, GO_ON, {"b", "c"})
    assert (decision.move, decision.why) == (Move.STOP, PREEMPTED)
    run.stopped(4.0)
    run.hear({"kind": "nodes", "nodes": ["a"]}, 5.0)
    run.hear(workers(1), 5.0)
    assert run.decide(6.0, 0, GO_ON, {"b", "c"}).move is Move.WAIT


def test_a_run_grows_when_there_has_been_room_for_a_while_and_not_again_at_once() -> None:
    run = course(1, 4)
    run.hear(workers(1), 0.0)
    assert move(run, 100.0, room=1) is Move.WAIT
    assert move(run, 105.0, room=0) is Move.WAIT  # it was there for a moment
    assert move(run, 106.0, room=2) is Move.WAIT
    decision = run.decide(117.0, 2, GO_ON)
    assert (decision.move, decision.why) == (Move.STOP, "there is room for 3 workers instead of 1")
    run.stopped(118.0)
    run.hear(workers(3), 125.0)
    for now in range(126, 185):
        assert move(run, now, room=1) is Move.WAIT
    assert move(run, 186.0, room=1) is Move.STOP


def test_a_full_run_does_not_grow() -> None:
    run = course(1, 2)
    run.hear(workers(2), 0.0)
    assert not run.short
    assert all(move(run, now, room=5) is Move.WAIT for now in range(0, 1000, 10))


def test_a_controller_that_dies_again_and_again_ends_the_run() -> None:
    run = course()
    for now in range(3):
        assert move(run, now) is Move.WAIT
        run.lost_controller(now)
        run.stopped(now)
    decision = run.decide(3.0, 0, GO_ON)
    assert (decision.move, decision.why) == (Move.ABORT, f"again and again before the first step: {LOST_CONTROLLER}")
