"""What a node is busy with while it trains: CPUs, memory, GPUs, disks and the network.

Names are those of MLflow's own system metrics where it has such (`mlflow.system_metrics.metrics`), so that its UI shows
them; megabytes are 10**6 bytes, as there.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pynvml

INTERVAL_SECONDS = 10.0

_SHARED_MEMORY = "/dev/shm"  # where Ray keeps its objects, and DALI and torch what processes share
_MEGABYTE = 1e6

_log = logging.getLogger(__name__)


class Reading:
    """Of this machine. Rates and CPU utilisation are those since the last time that it was read."""

    def __init__(self) -> None:
        self._gpus = _gpus()
        self._counted = _counted()
        self._at = time.monotonic()
        psutil.cpu_percent()  # of this thread; the first call returns nothing of use

    def __call__(self) -> dict[str, float]:
        counted, now = _counted(), time.monotonic()
        seconds = max(now - self._at, 1e-3)
        rates = {
            f"{name}_megabytes_per_second": max(0, counted[name] - self._counted[name]) / _MEGABYTE / seconds
            for name in counted.keys() & self._counted.keys()
        }
        self._counted, self._at = counted, now
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            **_shared_memory(),
            **rates,
            **{key: value for i, gpu in self._gpus.items() for key, value in _gpu(f"gpu_{i}", gpu).items()},
        }


@contextmanager
def sampled(put: Callable[[dict[str, float]], object], every_seconds: float = INTERVAL_SECONDS) -> Iterator[None]:
    """Reads this machine again and again while the block lasts, first after an interval, in a thread of its own."""
    ended = threading.Event()

    def sample() -> None:
        try:
            reading = Reading()
            while not ended.wait(every_seconds):
                put(reading())
        except Exception as error:  # whatever a machine does not tell of itself, training goes on
            _log.warning("there are no more system metrics of this node: %s: %s", type(error).__name__, error)

    threading.Thread(target=sample, name="system", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _counted() -> dict[str, int]:
    """Bytes since the machine's start; of what it has."""
    disks, network = psutil.disk_io_counters(), psutil.net_io_counters()
    found: dict[str, int] = {}
    if disks is not None:
        found |= {"disk_read": disks.read_bytes, "disk_write": disks.write_bytes}
    if network is not None:
        found |= {"network_receive": network.bytes_recv, "network_transmit": network.bytes_sent}
    return found


def _shared_memory() -> dict[str, float]:
    try:
        used = psutil.disk_usage(_SHARED_MEMORY)
    except OSError:  # not on every system
        return {}
    return {"shared_memory_usage_megabytes": used.used / _MEGABYTE, "shared_memory_usage_percentage": used.percent}


def _gpus() -> dict[int, Any]:
    """NVML's handles by its numbers, whatever CUDA_VISIBLE_DEVICES says: of all GPUs of the node, but for those that
    are lost or forbidden; none where there is no driver."""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return {}
    found: dict[int, Any] = {}
    for number in range(count):
        try:
            found[number] = pynvml.nvmlDeviceGetHandleByIndex(number)
        except pynvml.NVMLError:
            continue
    return found


def _gpu(name: str, gpu: Any) -> dict[str, float]:
    """As far as this GPU tells it: some do not measure their power, and parts of one (MIG) have no utilisation."""
    found: dict[str, float] = {}
    for read in (_gpu_memory, _gpu_utilisation, _gpu_power):
        try:
            found |= {f"{name}_{key}": value for key, value in read(gpu).items()}
        except pynvml.NVMLError:
            continue
    return found


def _gpu_memory(gpu: Any) -> dict[str, float]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    share = 100 * memory.used / memory.total
    return {"memory_usage_megabytes": memory.used / _MEGABYTE, "memory_usage_percentage": share}


def _gpu_utilisation(gpu: Any) -> dict[str, float]:
    return {"utilization_percentage": pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu}


def _gpu_power(gpu: Any) -> dict[str, float]:
    watts = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000
    share = 100 * 1000 * watts / pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
    return {"power_usage_watts": watts, "power_usage_percentage": share}
