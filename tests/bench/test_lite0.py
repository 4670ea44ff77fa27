"""The one real ImageNet network that tests can reach: it loads, and sees our pictures as it saw its own."""

import pytest
import timm
import torch

from bench import lite0
from dida.data.transforms import Normalise
from dida.models.pretrained import load_backbone
from dida.models.segmentor import Segmentor


def test_features_of_our_pictures_are_those_of_its_own(tmp_path):
    lite0.main(tmp_path / "lite0.safetensors")
    network = Segmentor(lite0.BACKBONE, embed_dim=16).eval()
    line = load_backbone(network.backbone, lite0.BACKBONE, str(tmp_path / "lite0.safetensors"))
    assert line.startswith("tf_efficientnet_lite0: ")
    original = timm.create_model(lite0.BACKBONE).eval()
    original.load_state_dict(dict(zip(original.state_dict(), lite0.published().values(), strict=True)))
    picture = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        expected = original.forward_intermediates(picture / 127.5 - 1, intermediates_only=True)[1:]
        found = network.encoder()(Normalise()(picture))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


def test_another_network_is_refused(monkeypatch):
    monkeypatch.setattr(lite0, "published", lambda: {"conv": torch.zeros(3)})
    with pytest.raises(ValueError, match="not those of timm's tf_efficientnet_lite0"):
        lite0.converted()
