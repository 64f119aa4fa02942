"""The equivalent filter of networks whose weights are known, and of ours."""

import numpy as np
import pytest
import torch
from small import TINY, network
from torch.nn import functional as F

from tdenoise.evaluation.equivalent_filter import equivalent_filter
from tdenoise.network.split_blind import stack_window
from tdenoise.noise.neighbour_frames import window_indices


def test_filter_of_a_convolution_is_its_kernel():
    kernel = torch.tensor([[0.0, 0.1, 0.0], [0.2, 0.0, 0.3], [0.0, 0.4, 0.0]])

    def predict(frames):
        blurred = F.conv2d(frames[1][None, None], kernel[None, None], padding=1)[0, 0]
        return blurred + 0.5 * torch.roll(frames[2], (1, -2), (0, 1))

    found = equivalent_filter(predict, np.ones((3, 9, 11)), (1, 4, 5))
    np.testing.assert_allclose(found.weights[1, 3:6, 4:7], kernel)
    np.testing.assert_allclose(found.per_frame, [0, 1, 0.5], atol=1e-6)
    assert found.total == pytest.approx(1.5) and found.own() == 0 and found.own(1) == pytest.approx(0.4)
    assert found.n_averaged == pytest.approx(1.5**2 / (0.01 + 0.04 + 0.09 + 0.16 + 0.25))
    np.testing.assert_allclose(found.shifts[1], [0.4 - 0.1, 0.3 - 0.2], atol=1e-6)
    np.testing.assert_allclose(found.shifts[2], [-1, 2], atol=1e-6)
    assert np.isnan(found.shifts[0]).all()


def test_mean_of_pixels_averages_as_many():
    found = equivalent_filter(lambda x: x.mean(dim=0), np.ones((5, 4, 4)), (2, 1, 1))
    assert found.total == pytest.approx(1) and found.n_averaged == pytest.approx(5)
    nothing = equivalent_filter(lambda x: 0 * x[0], np.ones((5, 4, 4)), (2, 1, 1))
    assert nothing.n_averaged == 0


def test_blind_network_has_no_weight_on_its_own_pixel():
    made = network()
    frames = np.random.default_rng(0).normal(size=(9, 24, 24))

    def predict(x):
        window = stack_window(x, window_indices(4, 9, TINY.window), TINY.bins)
        return made(window[None], x[4][None, None])[0, 0]

    found = equivalent_filter(predict, frames, (4, 11, 12))
    assert found.own() == 0 < found.own(1)
    assert np.count_nonzero(found.per_frame) == 7  # three frames on either side, and the own
