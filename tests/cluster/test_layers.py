import pytest

from cluster import layers
from cluster.table import CONFIGURATIONS
from cluster.vgg import VGG


@pytest.mark.parametrize("net", CONFIGURATIONS)
def test_layers_are_those_of_the_net_and_groups_are_made_of_them(net: str) -> None:
    model = VGG(net, 2, 32, 0.02)
    assert set(layers.of(net)) == {layers.layer_of(name) for name, _ in model.named_parameters()}
    groups = layers.named(net)
    blocks = [name for n in range(1, 6) for name in groups[f"block{n}"]]
    assert (*blocks, *groups["classifier"]) == (*groups["features"], *groups["classifier"]) == layers.of(net)
    assert all(layers.chosen(net, [name]) == {name} for name in layers.of(net))


def test_the_narrowest_name_gives_a_layer_its_factor() -> None:
    found = layers.factors("A", {"conv3_2": 5.0, "block3": 3.0, "features": 2.0, "fc1": 10.0})
    assert found["conv1_1"] == found["conv5_2"] == 2.0
    assert (found["conv3_1"], found["conv3_2"], found["fc1"], found["fc2"]) == (3.0, 5.0, 10.0, 1.0)


def test_a_normalisation_belongs_to_its_convolution() -> None:
    names = ["norm4_2.weight", "bn1_1.running_mean", "conv4_2.bias", "fc2.weight"]
    assert [layers.layer_of(name) for name in names] == ["conv4_2", "conv1_1", "conv4_2", "fc2"]


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    assert layers.unknown("A", ["fc1", "block5"]) is None
    assert layers.unknown("A", ["fc1", "conv1-1"]) == "'conv1-1' is no layer of net A; did you mean conv1_1?"
    assert str(layers.unknown("A", ["conv1_2"])).startswith("'conv1_2' is no layer of net A; did you mean conv")
    assert layers.unknown("B", ["conv1_2"]) is None
    assert str(layers.unknown("A", ["xyz"])).startswith("'xyz' is no layer of net A; there are features, classifier, ")
