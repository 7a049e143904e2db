"""The network is ESNet as published, in all three public families."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from esnet.checkpoint import load_checkpoint
from esnet.families import FAMILIES
from esnet.model import ESNet, NetworkConfig

each_family = pytest.mark.parametrize("family", FAMILIES)


def test_state_dict_keys_are_the_authors(parity_dir):
    theirs = torch.load(parity_dir / "authors.pt", weights_only=True)
    ours = ESNet(NetworkConfig(num_classes=11)).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


@pytest.mark.parametrize(
    ("family", "num_parameters"),
    [
        pytest.param("authors", 1_661_522, id="authors-with-encoder-head"),
        pytest.param("pytorchcv", 1_660_607, id="pytorchcv"),
        pytest.param("zh320", 1_657_458, id="zh320"),
    ],
)
def test_parameter_count_with_19_classes_is_the_published_one(family, num_parameters):
    network = ESNet(FAMILIES[family].config(19))
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters


def test_decoder_path_takes_24_05_gmac_at_512x1024():
    with torch.device("meta"):
        network = ESNet(NetworkConfig(num_classes=19)).eval()
        image_NCHW = torch.empty(1, 3, 512, 1024)
    counts = []

    def count(module, inputs, output):
        # A kernel is applied once at every output of a convolution, once at every input of a transposed one.
        applied_at = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        counts.append(applied_at.numel() * module.weight[0].numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    network(image_NCHW)
    assert sum(counts) == 24_054_202_368


@each_family
def test_logits_match_the_familys_own_code(family, parity_dir):
    frames_NHWC = np.load(parity_dir / "frames.npy")
    expected = np.load(parity_dir / f"{family}.npz")["logits"]
    network = load_checkpoint(parity_dir / f"{family}.pt").network
    images_NCHW = torch.from_numpy(frames_NHWC).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        logits = network(images_NCHW).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_logits_match_the_pytorchcv_package(make_state_dict, tmp_path):
    esnet_cv = pytest.importorskip("pytorchcv.models.esnet")
    peer = esnet_cv.esnet_cityscapes(in_size=(64, 128)).eval()
    peer.load_state_dict(make_state_dict("pytorchcv", num_classes=19))
    torch.save(peer.state_dict(), tmp_path / "peer.pt")
    network = load_checkpoint(tmp_path / "peer.pt").network
    images_NCHW = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network(images_NCHW), peer(images_NCHW), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "changes", "has_dropout"),
    [
        pytest.param("authors", {}, True, id="authors"),
        pytest.param("authors", {"fcu_dropout": 0.0}, True, id="in-PFCUs-alone"),
        pytest.param(
            "authors", {"fcu_dropout": 0.3, "pfcu_dropout": 0.0}, True, id="in-FCUs-alone"
        ),
        pytest.param("pytorchcv", {}, True, id="pytorchcv"),
        pytest.param("zh320", {}, False, id="zh320-has-none"),
    ],
)
def test_training_drops_channels_at_random_where_the_family_does(family, changes, has_dropout):
    network = ESNet(replace(FAMILIES[family].config(11), **changes)).train()
    image_NCHW = torch.rand(1, 3, 64, 128)
    with torch.no_grad():
        first, second = network(image_NCHW), network(image_NCHW)
    assert torch.equal(first, second) != has_dropout


def test_evaluation_drops_nothing(make_network):
    network = make_network("authors")
    image_NCHW = torch.rand(1, 3, 64, 128)
    with torch.no_grad():
        assert torch.equal(network(image_NCHW), network(image_NCHW))


def test_only_encoder_scores_the_features_at_an_eighth_of_the_size(make_network):
    network = make_network("authors", num_classes=5)
    image_NCHW = torch.rand(2, 3, 64, 128)
    with torch.no_grad():
        scores = network(image_NCHW, only_encoder=True)
        expected = network.encoder_output_conv(network.encoder(image_NCHW))
    assert scores.shape == (2, 5, 8, 16)
    assert torch.equal(scores, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"num_classes": 0}, "at least 1, got 0", id="no-classes"),
        pytest.param({"num_classes": 2, "pool_kernel": 4}, "must be 2 or 3", id="pool-kernel"),
        pytest.param({"num_classes": 2, "head_kernel": 1}, "must be 2 or 3", id="head-kernel"),
    ],
)
def test_config_refuses_what_no_esnet_has(settings, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**settings)
