"""Encoders and the classifier: shapes, sizes, first loss, gradients, and what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sslcourse import models


def parameters_of_resnet9(w):
    """Weights of eight 3×3 convolutions without bias, and two numbers a channel for each batch normalisation."""
    channels = [(3, w), (w, 2 * w), (2 * w, 2 * w), (2 * w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w), (8 * w, 8 * w), (8 * w, 8 * w)]
    return sum(9 * a * b + 2 * b for a, b in channels)


@pytest.mark.parametrize("width", [1, 4, 16, 64])
def test_number_of_parameters(width):
    encoder = models.resnet9(width)
    assert models.count_parameters(encoder) == parameters_of_resnet9(width)
    assert encoder.feature_dim == 8 * width


def test_the_sizes_that_the_docstring_states():
    assert round(models.count_parameters(models.resnet9(64)) / 1e6, 1) == 6.6
    assert round(models.count_parameters(models.resnet9(16)) / 1e6, 1) == 0.4


def test_frozen_parameters_are_not_counted():
    encoder = models.resnet9(4)
    encoder.blocks[0].requires_grad_(False)
    assert models.count_parameters(encoder) == parameters_of_resnet9(4) - (9 * 3 * 4 + 2 * 4)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 9), (15, 8), (32, 32), (33, 47), (96, 96)])
def test_any_size_from_8_pixels_on(height, width):
    encoder = models.resnet9(4).eval()
    features = encoder(torch.randn(2, 3, height, width))
    assert features.shape == (2, encoder.feature_dim) and features.isfinite().all()


def test_a_feature_is_the_largest_value_of_its_map():
    encoder, x = models.resnet9(4).eval(), torch.randn(3, 3, 24, 24)
    assert torch.equal(encoder(x), encoder.blocks(x).amax((2, 3)))


def test_a_residual_adds_its_input():
    block = models.Residual(4).eval()
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(x) - x, block.body(x), rtol=0, atol=1e-6)
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.zeros_(norm.weight)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_first_loss_is_that_of_guessing(classes):
    torch.manual_seed(0)
    model = models.Classifier(models.resnet9(8), classes)
    loss = F.cross_entropy(model(torch.randn(64, 3, 32, 32)), torch.randint(0, classes, (64,)))
    assert abs(loss.item() - math.log(classes)) < 0.03


def test_the_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    model = models.Classifier(models.resnet9(4), 5)
    F.cross_entropy(model(torch.randn(16, 3, 16, 16)), torch.randint(0, 5, (16,))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_dropout_is_on_in_training_only():
    model, x = models.Classifier(models.resnet9(4), 5, dropout=0.5), torch.randn(4, 3, 16, 16)
    model.encoder.eval()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_an_image_does_not_see_its_neighbours_in_evaluation():
    model, x = models.Classifier(models.resnet9(4), 5).eval(), torch.randn(6, 3, 16, 16)
    torch.testing.assert_close(model(x)[2:3], model(x[2:3]), rtol=1e-4, atol=1e-7)


def test_channels_last_changes_no_value():
    torch.manual_seed(0)
    model, x = models.Classifier(models.resnet9(8), 5).eval(), torch.randn(4, 3, 32, 32)
    before = model(x)
    assert models.to_channels_last(model) is model
    convolution = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 3)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), before, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (2, 3, 32, 7), (2, 3, 4, 32)])
def test_too_small_images_are_refused_with_a_sentence(shape):
    with pytest.raises(ValueError, match="8 pixels or more a side, not"):
        models.resnet9(4)(torch.randn(shape))


@pytest.mark.parametrize("batch", [torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(3, 16, 16), torch.zeros(2, 1, 16, 16)])
def test_other_batches_are_refused_with_a_sentence(batch):
    with pytest.raises(ValueError, match=r"normalised float images \(N, 3, H, W\)"):
        models.resnet9(4)(batch)


@pytest.mark.parametrize("width", [0, -1, 2.5])
def test_an_impossible_width_is_refused(width):
    with pytest.raises(ValueError, match=f"width.*not {width}"):
        models.resnet9(width)


def test_an_impossible_classifier_is_refused():
    with pytest.raises(ValueError, match="num_classes.*not 1"):
        models.Classifier(models.resnet9(4), 1)
    with pytest.raises(ValueError, match="feature_dim.*Flatten has none"):
        models.Classifier(nn.Flatten(), 10)
