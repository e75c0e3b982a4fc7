"""Fixtures that several test files share."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """One thread for torch: the same bits on every machine, and no waiting for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
