"""Why workers failed, in a line: of Ray's real errors, as `test_failures` meets them, and of those that follow."""

import ray.exceptions
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from cluster.failure import DIED, failure

LOST = RuntimeError("[pair.cc:537] Connection closed by peer [127.0.0.1]:28151")


def test_a_worker_that_died_explains_what_the_others_met_with() -> None:
    died = WorkerHealthCheckFailedError("A worker health check failed.", ray.exceptions.ActorDiedError())
    found = failure({0: LOST, 1: died, 2: LOST})
    assert (found.text, found.cause) == ("worker 1 died", DIED)
    assert failure({1: died, 2: died}).text == "workers 1, 2 died"


def test_an_error_of_a_worker_explains_the_connections_that_others_lost() -> None:
    found = failure({0: LOST, 1: ZeroDivisionError("division by zero\nat a place")})
    assert found.text == "worker 1 failed: ZeroDivisionError: division by zero"
    assert failure({0: LOST}).text == "worker 0 lost its connection to another one"


def test_causes_are_the_same_whatever_the_numbers() -> None:
    a, b = (failure({r: RuntimeError(f"CUDA error at 0x{r}f of process {r}")}) for r in (3, 44))
    assert a.cause == b.cause
    assert a.text != b.text


def test_a_worker_that_does_not_answer_is_told_from_one_that_died() -> None:
    assert failure({1: WorkerHealthCheckTimeoutError("hung")}).text == "worker 1 failed: it does not answer"
