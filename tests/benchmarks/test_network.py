"""Workers in network namespaces over shaped links, where there is root and iproute2."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import exchanges, namespaces, network, network_figures
from benchmarks.exchanges import BUCKETS, CLASSES, WAYS, Answer, Exchange
from benchmarks.namespaces import INTERFACE, Links
from benchmarks.network_figures import FULL, SMALL, Measured, findings
from cluster import wire
from cluster.turns import ALONE, Turn
from pipelines.errors import BenchError

needs_links = pytest.mark.usefixtures("can_be_linked")

SENT = 4_000_000
# Worker 1 connects to worker 0. Each sends and takes as much at once, and prints seconds and what the kernel counts.
TRANSFER = f"""
import os, socket, sys, threading, time
from cluster import traffic
if os.environ["RANK"] == "0":
    with socket.create_server((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))) as server:
        link = server.accept()[0]
else:
    until = time.monotonic() + 60
    while True:
        try:
            link = socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
            break
        except ConnectionRefusedError:
            assert time.monotonic() < until
            time.sleep(0.05)
before, start = traffic.by_interface("{INTERFACE}"), time.monotonic()
sending = threading.Thread(target=link.sendall, args=(bytes({SENT}),))
sending.start()
left = {SENT}
while left:
    left -= len(link.recv(min(left, 1 << 20)))
sending.join()
link.sendall(b"!")
link.recv(1)  # now the other one has all
print(time.monotonic() - start, traffic.by_interface("{INTERFACE}") - before, traffic.by_connections())
"""


def namespaces_here() -> list[str]:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def can_be_linked() -> None:
    """Where it cannot be tried, the reason is that of the program itself."""
    if (reason := namespaces.refusal()) is not None:
        pytest.skip(reason)


@pytest.fixture
def made() -> Iterator[Links]:
    with namespaces.links(2) as found:
        yield found


@needs_links
def test_links_have_the_bandwidth_that_is_asked_for_and_their_bytes_are_counted(made: Links, tmp_path: Path) -> None:
    """The kernel's queue holds packets back, so that no load of the machine makes them faster."""
    seconds = {}
    for gbit in (0.05, 0.2):
        made.shape(gbit)
        network.run_workers(made, [sys.executable, "-c", TRANSFER], tmp_path)
        for rank in range(2):
            took, counted, by_connections = map(float, (tmp_path / f"{rank}.log").read_text().split())
            assert SENT < counted < 1.1 * SENT
            assert SENT <= by_connections < 1.1 * SENT, "and what is sent again"
            seconds[gbit, rank] = took
    unhindered = namespaces._BURST_BYTES
    for (gbit, _), took in seconds.items():
        assert took > (SENT - unhindered) * 8 / (gbit * 1e9)


@needs_links
def test_nothing_is_left_when_a_worker_fails(tmp_path: Path) -> None:
    program = "import os, time; time.sleep(600) if os.environ['RANK'] == '0' else None; raise ValueError('no')"

    def fail() -> None:
        with namespaces.links(2) as made:
            assert set(left_by(os.getpid())) == {made.namespace(0), made.namespace(1), made.bridge}
            network.run_workers(made, [sys.executable, "-c", program], tmp_path)

    with pytest.raises(BenchError, match=r"worker 1: ValueError: no"):
        fail()
    assert not left_by(os.getpid())


@needs_links
def test_nothing_is_left_when_it_is_stopped(tmp_path: Path) -> None:
    """By Ctrl-C, or by whatever limits its time; two at once, that do not disturb one another."""
    signals = (signal.SIGINT, signal.SIGTERM)
    running = [stoppable(tmp_path / each.name) for each in signals]
    try:
        for each, process in zip(signals, running, strict=True):
            folder = tmp_path / each.name
            until = time.monotonic() + 60
            while not list(folder.glob("verydeep-network-*/1.log")) and time.monotonic() < until:
                time.sleep(0.02)  # until both workers have been started
            assert len(left_by(process.pid)) == 3
            process.send_signal(each)
            assert process.wait(60) == 128 + each
            assert not left_by(process.pid)
            assert not list(folder.iterdir())
    finally:
        for process in running:
            process.terminate()
            process.wait(60)


def stoppable(folder: Path) -> "subprocess.Popen[bytes]":
    """As a job that a shell has put into the background, which is to ignore Ctrl-C unless it says otherwise."""
    folder.mkdir()
    shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    program = [sys.executable, "-m", "benchmarks.network", "--rehearse", "--gbit", "1", "--rounds", "1000"]
    return subprocess.Popen([*shell, *program], env={**os.environ, "TMPDIR": str(folder)}, stderr=subprocess.DEVNULL)


def left_by(pid: int) -> list[str]:
    return [name for name in namespaces_here() if name.startswith(f"verydeep-{pid}-")]


@needs_links
def test_a_rehearsal_measures_every_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "network.json"
    assert network.main(["--rehearse", "--gbit", "1", "--rounds", "1", "--json", str(file)]) == 0
    assert "faster with products" in capsys.readouterr().out
    found = json.loads(file.read_text())
    (measured,) = found["measured"]
    assert measured["answer"]["exchange"].keys() == measured["answer"]["steps"].keys() == {*WAYS, ALONE}
    for part, settings in (("exchange", SMALL.shapes), ("steps", SMALL.narrow)):
        for name, way in WAYS.items():
            turn, *others = measured["answer"][part][name]
            assert len(others) == (part == "steps"), "twice as many"
            bf16 = way.get("precision") == "bf16"
            reckoned = sum(x.bytes for x in wire.sent(settings.model_copy(update=way), CLASSES, 2, bf16))
            assert turn["sent_bytes"] == pytest.approx(reckoned, rel=0.1), (part, name)
        assert measured["answer"][part][ALONE][0]["sent_bytes"] < 10_000
    exchange = measured["answer"]["exchange"]
    assert exchange["factors"][0]["product_seconds"] > exchange["ddp"][0]["product_seconds"]
    assert measured["answer"]["buckets"].keys() == {*BUCKETS, ALONE}


def answer(speed: float) -> Answer:
    """As reckoned, at a speed of so many bytes a second; products take a second."""
    sent = {name: network_figures._reckoned(name, FULL.shapes, 2) for name in WAYS} | {ALONE: 0.0}
    turns = {
        name: [Exchange(each / speed + 0.1, float("factors" in name), each)] * 2 for name, each in sent.items()
    }  # fmt: skip
    plain = {name: [Turn(1.0, each)] for name, each in sent.items()}
    return Answer(turns, plain, {name: [Turn(1.0, 0.0)] for name in (*BUCKETS, ALONE)})


def test_ratios_are_of_the_exchange_alone_and_with_products() -> None:
    found = findings([Measured(2, 1, answer(1.25e8))], FULL)
    assert found.passed
    names = [check.name.partition(": ")[2] for check in found.checks]
    assert names == [
        "bytes counted beside reckoned, off by",
        "ddp's bytes over factors'",
        "ddp's exchange over factors'",
    ]
    assert found.checks[1].value == pytest.approx(6.9, abs=0.1)
    (title, *_), (rows, *_) = found.tables, found.tables.values()
    assert title == "2 workers, 1 Gbit/s: one exchange of D, width 1, 224 pixels, batch 256"
    factors = next(row for row in rows if row[""] == "factors")
    ddp_s, factors_s = 553.43e6 / 1.25e8 + 0.1, 80.4e6 / 1.25e8 + 0.1
    assert factors["faster"] == pytest.approx(ddp_s / factors_s, rel=0.01)
    assert factors["faster with products"] == pytest.approx(ddp_s / (factors_s + 1), rel=0.01)


def test_other_bytes_than_reckoned_are_an_error_and_a_slow_exchange_a_goal_that_is_missed() -> None:
    slow = findings([Measured(2, 1, answer(1e12))], FULL)
    assert slow.passed
    assert not slow.checks[-1].passed
    right = answer(1.25e8)
    more = {name: [Exchange(1.0, 0.0, 1.2 * x.sent_bytes) for x in each] for name, each in right.exchange.items()}
    assert not findings([Measured(2, 1, Answer(more, right.steps, right.buckets))], FULL).passed


def test_gradients_are_made_up_last_layer_first_and_of_their_shapes() -> None:
    """In the order in which DistributedDataParallel sends those of a real net."""
    net = exchanges.VGG("A", 10, 32, 0.05)
    order: list[str] = []
    for name, parameter in net.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name.partition(".")[0]))
    exchanges.Shaped(net, exchanges.filled(net))({}).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape and bool((p.grad == 0.5).all()) for p in net.parameters())
    layers = [name.partition(".")[0] for name, _ in net.named_parameters()][::2]
    assert list(dict.fromkeys(order)) == layers[::-1]


def test_handing_gradients_out_makes_none() -> None:
    """What takes time in an exchange is not that they are made, or copied before they are sent."""
    net = exchanges.VGG("A", 10, 32, 0.05)
    gradients = exchanges.filled(net)
    shaped = exchanges.Shaped(net, gradients)
    for _ in range(2):
        shaped.zero_grad(set_to_none=True)
        shaped({}).backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert {name: grad.data_ptr() for name, grad in found.items()} == {n: g.data_ptr() for n, g in gradients.items()}


def test_without_root_or_programs_it_is_skipped_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert network.main([]) == 0
    assert capsys.readouterr().err == "skipped: network namespaces take root\n"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert network.main([]) == 0
    assert capsys.readouterr().err == "skipped: there is no ip (Debian's package iproute2)\n"
