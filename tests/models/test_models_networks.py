"""Each network: parameter counts, shapes, wiring against torchvision's, gradients, initialisation."""

import math

import pytest
import torch
import torchvision
from torch import nn

from repro.errors import UsageError
from repro.models import NETWORKS, STEM_POOLS, build
from repro.models.network import Network
from repro.network_facts import NETWORK_FACTS, has_stem_pool

NARROW = 0.125
each_network = pytest.mark.parametrize("name", list(NETWORKS))


def seeded(name, image_size=32, width=NARROW, seed=0, **values):
    torch.manual_seed(seed)
    return build(name, image_size, width, **values)


def on_paper(name, image_size=32, width=1.0, **values):
    """The network without its numbers: shapes cost nothing."""
    with torch.device("meta"):
        return build(name, image_size, width, **values)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize(
    ("name", "count", "feature_dim"),
    [("vgg16", 14_718_912, 512), ("resnet18", 11_168_832, 512), ("resnet50", 23_500_352, 2048)],
)
def test_the_number_of_parameters_without_a_head_is_exact(name, count, feature_dim, image_size):
    network = on_paper(name, image_size)
    assert (parameters(network), network.feature_dim) == (count, feature_dim)


def test_the_other_networks_have_the_parameters_that_their_layers_add_up_to():
    def convolutions(*channels):
        """3×3 without bias, and the two of a BN."""
        return sum(9 * a * b + 2 * b for a, b in zip((3, *channels), channels, strict=False))

    thirteen = convolutions(64, 64, 128, 128, 256, 256, 512, 512, 512, 512)
    assert parameters(on_paper("vgg13")) == thirteen
    head = (512 * 4096 + 4096) + (4096 * 4096 + 4096)
    assert parameters(on_paper("vgg16-4096")) == 14_718_912 + head
    liu = convolutions(*[96] * 5, *[192] * 4, *[384] * 4) + 13  # one PReLU slope a convolution
    assert parameters(on_paper("vgg-lsoftmax", 32)) == liu + 4 * 4 * 384 * 512
    assert parameters(on_paper("vgg-lsoftmax", 64)) == liu + 8 * 8 * 384 * 512


@each_network
def test_the_facts_that_planning_uses_are_those_of_the_network(name):
    assert NETWORK_FACTS[name].parameters == pytest.approx(parameters(on_paper(name, 64)), rel=0.02)
    for image_size in (32, 64, 96):
        for pool in STEM_POOLS:
            stem = getattr(on_paper(name, image_size, stem_pool=pool), "stem", nn.Identity())
            pooled = any(isinstance(module, nn.MaxPool2d) for module in stem.modules())
            assert has_stem_pool(name, image_size, pool) is pooled


@each_network
def test_a_pooled_feature_has_no_negative_entry_and_that_of_lsoftmax_has(name):
    features = seeded(name).eval()(torch.randn(4, 3, 32, 32))
    signed = bool((features < 0).any())
    assert signed is (name == "vgg-lsoftmax")
    assert bool((features > 0).any())


@pytest.mark.parametrize(
    ("image_size", "stem_pool", "map_size"),
    [(56, "auto", 56), (64, "auto", 32), (64, "never", 64), (32, "always", 16)],
)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_stem_pools_from_64_pixels_on_unless_told_never_or_always(name, image_size, stem_pool, map_size):
    stem = seeded(name, image_size, stem_pool=stem_pool).stem
    assert stem(torch.zeros(1, 3, image_size, image_size)).shape[2:] == (map_size, map_size)
    assert (stem.conv.kernel_size, stem.conv.stride) == ((3, 3), (1, 1))


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_computes_what_torchvisions_does_with_the_same_weights(name, image_size):
    """Torchvision's (v1.5 too) with this 3×3 stem; weights and buffers stand in the same order in both."""
    network = seeded(name, image_size, width=1.0).eval()
    other = getattr(torchvision.models, name)().eval()
    other.conv1, other.fc = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    if image_size < 64:
        other.maxpool = nn.Identity()
    values = network.state_dict().values()
    other.load_state_dict(dict(zip(other.state_dict(), values, strict=True)))
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        torch.testing.assert_close(network(images), other(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vgg13", "vgg16"])
def test_a_vgg_computes_what_torchvisions_convolutions_do_with_the_same_weights(name):
    network = seeded(name, 64, width=1.0).eval()
    other = getattr(torchvision.models, f"{name}_bn")().features.eval()
    for module in other:
        if isinstance(module, nn.Conv2d):
            module.bias = None  # torchvision's keep one before the BN
    values = network.state_dict().values()
    other.load_state_dict(dict(zip(other.state_dict(), values, strict=True)))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = other(images).mean(dim=(2, 3))
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)


def test_vgg_lsoftmax_is_thirteen_convolutions_in_three_stages():
    kinds = {
        nn.Conv2d: "c",
        nn.BatchNorm2d: "n",
        nn.PReLU: "p",
        nn.MaxPool2d: " ",
        nn.Linear: "l",
        nn.BatchNorm1d: "n",
    }
    network = on_paper("vgg-lsoftmax")
    layers = [module for module in network.modules() if type(module) in kinds]
    assert "".join(kinds[type(layer)] for layer in layers) == f"{'cnp' * 5} {'cnp' * 4} {'cnp' * 4} ln"
    widths = [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)]
    assert widths == [96] * 5 + [192] * 4 + [384] * 4
    assert (network.linear.bias, network.norm.affine) == (None, False)


@pytest.mark.parametrize(
    ("name", "image_size"),
    # The others equal torchvision's at 64 pixels.
    [*((name, 32) for name in NETWORKS), ("vgg16-4096", 64), ("vgg-lsoftmax", 64)],
)
def test_the_output_is_one_feature_per_image_and_its_gradient_reaches_every_parameter(name, image_size):
    network = seeded(name, image_size, width=0.25)
    features = network(torch.randn(4, 3, image_size, image_size))
    assert (features.shape, features.dtype) == ((4, network.feature_dim), torch.float32)
    assert features.isfinite().all()
    features.backward(torch.randn(features.shape))
    for key, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@each_network
def test_channels_last_gives_the_same_features_and_so_does_one_compiled_graph(name):
    network, images = seeded(name).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
        compiled = torch.compile(network, fullgraph=True, backend="eager")(images)
        turned = network.to(memory_format=torch.channels_last)
        found = turned(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@each_network
def test_convolutions_start_as_he_normal_over_fan_out_and_batch_norm_as_the_identity(name):
    network = seeded(name, width=0.5)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.06)
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet50"])
def test_under_bf16_autocast_the_pooled_feature_is_float32(name):
    """The mean over space is taken in float32 and not rounded again."""
    network = seeded(name, 64).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network(torch.randn(2, 3, 64, 64))
    assert features.dtype == torch.float32
    assert not torch.equal(features, features.bfloat16().float())


@pytest.mark.parametrize(
    ("name", "width", "feature_dim"),
    [
        ("vgg16", 0.25, 128),
        ("vgg13", 0.3, 152),
        ("vgg16-4096", 0.125, 512),
        ("vgg-lsoftmax", 0.1, 52),
        ("resnet18", 1.5, 768),
        ("resnet18", 0.001, 4),
        ("resnet50", 0.001, 16),
    ],
)
def test_the_width_multiplies_every_number_of_channels_rounded_to_a_multiple_of_four(
    name, width, feature_dim
):
    network = on_paper(name, width=width)
    assert network.feature_dim == feature_dim
    channels = {module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)}
    assert all(count % 4 == 0 < count for count in channels)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("alexnet", 32), r"unknown network 'alexnet'; there are: vgg16, vgg13, .*resnet50"),
        *((("resnet18", 32, width), "width: expected a finite number above 0, got")
          for width in (0, -1.0, math.nan, math.inf, True, "1")),
        *((("vgg16", size), r"image_size: .* a multiple of 32 \(32, 64, 96, …\), got")
          for size in (0, -32, 48, 16, 32.0, True)),
        *(((name, 36), r"image_size: .* a multiple of 8 \(8, 16, 24, …\), got 36")
          for name in ("resnet18", "resnet50", "vgg-lsoftmax")),
        (("resnet18", 32, NARROW, "late"), "stem_pool: expected one of auto, never, always, got 'late'"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_with_what_was_expected(arguments, says):
    with pytest.raises(UsageError, match=says):
        build(*arguments)


@each_network
def test_no_network_has_a_check_of_images_of_its_own(name):
    """So what is tested on one alone holds for every network."""
    assert type(on_paper(name)).forward is Network.forward


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 1, 32, 32), (3, 32, 32), (2, 32, 32, 3)])
def test_images_of_another_shape_or_dtype_are_refused_with_both(shape):
    with pytest.raises(ValueError, match=r"of shape \(batch, 3, 32, 32\), got torch.float32 of shape"):
        seeded("resnet18")(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"expected floating point .* got torch\.uint8"):
        seeded("resnet18")(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
