from __future__ import annotations

import torch
from tiny import detector, network, tensor, weave


def test_the_mean_itself_has_no_residual():
    model = detector("toy", network("test_resnet", (8,)))
    level = model.describe(tensor(weave(1)))[0]
    model.mean = level[0, :, 0, 0]
    assert model.map_residuals([level])["distance"][0, 0, 0] == 0 < torch.norm(level)
