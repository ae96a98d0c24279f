"""Operations of nets against the paper's table and torch's own counter, peaks of devices, memory."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from cluster import layers
from cluster.flops import dense_flops, forward_flops, training_flops
from cluster.peak import named_peak_flops, peak_flops, peak_memory_bytes
from cluster.table import CONFIGURATIONS
from cluster.vgg import VGG

CPU = torch.device("cpu")
# GFLOP of one image of 224 x 224 pixels and 1000 classes: forward, and forward and backward.
TABLE = {
    "A": (15.22, 45.48), "B": (22.62, 67.68), "C": (23.54, 70.45), "D": (30.94, 92.65), "E": (39.26, 117.62)
}  # fmt: skip


def test_the_six_nets_take_the_operations_of_the_table() -> None:
    for net, (forward, training) in TABLE.items():
        assert round(forward_flops(net) / 1e9, 2) == forward
        assert round(training_flops(net) / 1e9, 2) == training
    assert training_flops("A-LRN") == training_flops("A")


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(sorted(CONFIGURATIONS)), st.integers(1, 12), st.sampled_from([32, 64]), st.floats(0.01, 0.1)
)  # fmt: skip
def test_any_net_takes_as_many_operations_as_torch_counts(net: str, classes: int, size: int, width: float) -> None:
    model = VGG(net, classes, size, width)
    images, labels = torch.zeros(2, 3, size, size), torch.zeros(2, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        loss = F.cross_entropy(model(images), labels)
        forward = counter.get_total_flops()
        loss.backward()  # type: ignore[no-untyped-call]
    assert 2 * forward_flops(net, classes, size, width) == forward
    assert 2 * training_flops(net, classes, size, width) == counter.get_total_flops()


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(CONFIGURATIONS)), st.data())
def test_frozen_layers_save_the_operations_that_torch_saves(net: str, data: st.DataObject) -> None:
    names = layers.of(net)
    frozen = data.draw(st.sets(st.sampled_from(names), max_size=len(names) - 1))
    model = VGG(net, 5, 32, 0.05)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layers.layer_of(name) not in frozen)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(torch.zeros(2, 3, 32, 32)), torch.zeros(2, dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]
    assert 2 * training_flops(net, 5, 32, 0.05, frozen) == counter.get_total_flops()


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(sorted(CONFIGURATIONS)), st.integers(1, 12), st.sampled_from([32, 64]), st.integers(0, 90),
    st.integers(0, 90),
)  # fmt: skip
def test_a_dense_pass_takes_as_many_operations_as_torch_counts(
    net: str, classes: int, size: int, taller: int, wider: int
) -> None:
    shape = (size + taller, size + wider)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        VGG(net, classes, size, 0.05).eval().dense()(torch.zeros(2, 3, *shape))
    assert 2 * dense_flops(net, classes, size, 0.05, shape) == counter.get_total_flops()


def test_peaks_are_those_of_the_whole_device_that_is_named_and_of_no_other() -> None:
    known = {
        "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A100 80GB PCIe": 312, "NVIDIA H100 80GB HBM3": 989.5,
        "NVIDIA H100 PCIe": 756.5, "NVIDIA H200": 989.5, "NVIDIA L4": 121, "NVIDIA L40": 181, "NVIDIA L40S": 362,
        "NVIDIA A10": 125, "NVIDIA GeForce RTX 4090": 165.2,
    }  # fmt: skip
    for name, tera in known.items():
        assert named_peak_flops(name, "bfloat16") == tera * 1e12
    assert named_peak_flops("Tesla T4", "float16") == 65e12
    assert named_peak_flops("Tesla V100-SXM2-32GB", "float32") == 15.7e12
    for name in (
        "Tesla T4", "Tesla V100-PCIE-16GB", "NVIDIA A10G", "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA GB10",
    ):  # fmt: skip
        assert named_peak_flops(name, "bfloat16") is None, name


def test_a_processor_s_peak_is_measured_once_and_that_of_other_devices_is_not_known() -> None:
    peak = peak_flops(CPU, "float32", 1)
    assert peak is not None
    assert peak > 1e8
    assert peak_flops(CPU, "float32", 1) == peak  # measured once
    assert peak_flops(torch.device("meta"), "float32", 1) is None


def test_peak_memory_holds_what_was_allocated_and_given_back() -> None:
    before = peak_memory_bytes(CPU)
    block = torch.ones(before // 4 + (64 << 20))  # four bytes each
    del block
    assert peak_memory_bytes(CPU) >= before + (64 << 20)
