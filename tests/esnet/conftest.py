"""Shared fixtures: networks with random weights, and their state dicts in each layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from esnet.families import FAMILIES
from esnet.model import ESNet
from tests.conftest import random_network


@pytest.fixture(scope="session")
def make_network() -> Callable[..., ESNet]:
    """Make networks with random weights and non-trivial BN statistics."""
    return random_network


@pytest.fixture
def make_state_dict() -> Callable[..., dict[str, torch.Tensor]]:
    """Make state dicts with the keys of a family's own code."""

    def make(family: str = "authors", **settings: int) -> dict[str, torch.Tensor]:
        network = random_network(family, **settings)
        state = network.state_dict()
        return {theirs: state[ours] for ours, theirs in FAMILIES[family].keys(network).items()}

    return make
