"""Fixtures that several test files share."""

import pytest
import torch
from torch import nn

from sslcourse import datasets, models


@pytest.fixture
def one_thread():
    """One thread for torch: the same bits on every machine, and no waiting for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with toybox at 16 pixels."""
    folder = tmp_path_factory.mktemp("data")
    datasets.load("toybox", folder, size=16)
    return folder


@pytest.fixture(scope="module")
def model():
    """A classifier of five classes whose batch normalisation has seen a batch."""
    torch.manual_seed(0)
    model = models.Classifier(models.resnet9(4), 5, dropout=0.5)
    nn.init.normal_(model.head.weight)
    model(torch.randn(32, 3, 16, 16))  # statistics that are not the first ones
    return model


@pytest.fixture(scope="module")
def images():
    """Fifty images of noise."""
    return torch.randint(0, 256, (50, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
