import pytest
import torch

from cluster import init, vgg
from cluster.table import CONFIGURATIONS
from cluster.vgg import VGG
from pipelines.errors import CheckpointError

# The table of the paper's configurations: parameters of the 1000-class nets at 224.
PARAMETERS = {
    "A": 132_863_336,
    "A-LRN": 132_863_336,
    "B": 133_047_848,
    "C": 133_638_952,
    "D": 138_357_544,
    "E": 143_667_240,
}


@pytest.mark.parametrize("net", PARAMETERS)
def test_parameter_counts_are_the_papers(net: str) -> None:
    assert vgg.parameters(net) == PARAMETERS[net]


@pytest.mark.parametrize("net", CONFIGURATIONS)
def test_dense_equals_plain_at_the_input_size(net: str) -> None:
    torch.manual_seed(0)
    model = VGG(net, classes=7, input_size=64, width=0.1).eval()
    init.randomise(model, "kaiming", 0.01, seed=1)
    images = torch.randn(3, 3, 64, 64)
    dense = model.dense()
    torch.testing.assert_close(dense(images)[:, :, 0, 0], model(images))
    assert dense(torch.randn(1, 3, 96, 128)).shape == (1, 7, 2, 3)


def test_at_full_size_256_is_the_first_input_with_a_map_of_2_by_2() -> None:
    with torch.device("meta"):
        dense = VGG("A").dense()
        assert dense(torch.empty(1, 3, 224, 224)).shape[2:] == (1, 1)
        assert dense(torch.empty(1, 3, 255, 255)).shape[2:] == (1, 1)
        assert dense(torch.empty(1, 3, 256, 256)).shape[2:] == (2, 2)


def test_local_response_normalisation_is_krizhevskys() -> None:
    x = torch.rand(1, 9, 2, 2) * 100
    expected = torch.empty_like(x)
    for c in range(9):
        squares = (x[:, max(0, c - 2) : c + 3] ** 2).sum(dim=1)
        expected[:, c] = x[:, c] / (2.0 + 1e-4 * squares) ** 0.75
    torch.testing.assert_close(VGG("A-LRN", 10, 32, 0.1).lrn(x), expected)


def test_a_deeper_net_takes_four_convolutions_and_the_fc_layers_of_a() -> None:
    a, e = VGG("A", 5, 32, 0.1), VGG("E", 5, 32, 0.1)
    before = {k: v.clone() for k, v in e.state_dict().items()}
    names = init.copy_from(e, "A", a.state_dict())
    assert names == ["conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc1", "fc2", "fc3"]
    for key, value in e.state_dict().items():
        copied = key.split(".")[0] in names
        assert torch.equal(value, a.state_dict()[key] if copied else before[key])


def test_within_one_configuration_everything_is_copied() -> None:
    one, other = VGG("C", 5, 32, 0.1), VGG("C", 5, 32, 0.1)
    init.copy_from(other, "C", one.state_dict())
    assert all(torch.equal(v, one.state_dict()[k]) for k, v in other.state_dict().items())


def test_batch_norms_come_with_their_convolutions_and_are_not_left_behind() -> None:
    a, e = (VGG(net, 5, 32, 0.1, batch_norm=True) for net in ("A", "E"))
    a.train()(torch.randn(4, 3, 32, 32))
    init.copy_from(e, "A", a.state_dict())
    assert torch.equal(e.get_buffer("bn3_2.running_mean"), a.get_buffer("bn3_2.running_mean"))
    assert float(e.get_buffer("bn3_3.running_mean").abs().sum()) == 0
    with pytest.raises(CheckpointError, match=r"lack bn1_1\.weight"):
        init.copy_from(e, "A", VGG("A", 5, 32, 0.1).state_dict())
    with pytest.raises(CheckpointError, match="has batch norm, this one has none"):
        init.copy_from(VGG("E", 5, 32, 0.1), "A", a.state_dict())


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"fc3\.weight has shape \(4, 410\)"):
        init.copy_from(VGG("E", 5, 32, 0.1), "A", VGG("A", 4, 32, 0.1).state_dict())


@pytest.mark.parametrize(
    ("how", "expected"), [("normal", 0.02), ("kaiming", (2 / 576) ** 0.5), ("glorot", (2 / 1728) ** 0.5)]
)
def test_random_weights_have_their_spread(how: str, expected: float) -> None:
    model = VGG("B", 10, 32, 1.0)
    init.randomise(model, how, 0.02, seed=0)
    spread = float(model.get_parameter("conv2_1.weight").detach().std())
    assert abs(spread / expected - 1) < 0.02
    assert float(model.get_parameter("conv1_1.bias").detach().abs().sum()) == 0.0
