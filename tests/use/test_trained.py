"""From a checkpoint on disk to networks that can be asked, or to a message that says why not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dida.config import Config, changed, to_dict
from dida.data.classes import ClassSet
from dida.state import FORMAT
from dida.use.evaluate import Inference
from dida.use.stored import NETWORKS
from dida.use.trained import load_trained
from tests.engine.checkpoints import DIM, tiny_config, write_checkpoint

CPU = torch.device("cpu")
FARM = ClassSet(("field", "barn", "cow"), ((0, 200, 0), (120, 60, 0), (250, 250, 250)), (2,), (10, 20, 30))


@pytest.fixture
def config(tmp_path) -> Config:
    return tiny_config(tmp_path)


def test_a_run_is_its_newest_checkpoint_and_a_file_is_itself(config, tmp_path):
    folder = tmp_path / "run"
    old = write_checkpoint(folder / "checkpoints" / "step_000200.pt", config, step=200)
    new = write_checkpoint(folder / "checkpoints" / "step_000400.pt", config, step=400)
    assert [(found.path, found.step) for found in (load_trained(folder, CPU), load_trained(old, CPU))] == [
        (new, 400), (old, 200)
    ]  # fmt: skip


def test_config_classes_and_both_networks_come_back(config, tmp_path):
    path = write_checkpoint(tmp_path / "x.pt", config, class_set=FARM)
    trained = load_trained(path, CPU)
    assert trained.config == config
    assert trained.class_set == FARM
    assert set(trained.networks) == set(NETWORKS)
    saved = torch.load(path)
    for name, network in trained.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, saved[name][key])
        assert network.decode_head.conv_seg.weight.shape == (3, DIM, 1, 1)


def test_a_stride_is_that_of_the_windows_that_there_are(config, tmp_path):
    plain = load_trained(write_checkpoint(tmp_path / "x.pt", config), CPU)
    published = replace(plain, inference=Inference(1024, 768))
    assert published.asked(None, 0, flip=True) == Inference(1024, 768, flip=True)
    assert published.asked(None, 512, flip=False) == Inference(1024, 512)
    assert plain.asked(40, 0, flip=False) == Inference(40, 20)
    for trained, window in ((plain, None), (plain, 0), (published, 0)):
        with pytest.raises(ValueError, match=r"stride 512: .* no window was asked for"):
            trained.asked(window, 512, flip=False)


@pytest.mark.parametrize("size", [(64, 32), (96, 96)])
def test_a_labeller_answers_at_the_size_of_the_picture(config, tmp_path, size):
    trained = load_trained(write_checkpoint(tmp_path / "x.pt", config, class_set=FARM), CPU)
    picture = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    answers = {}
    for name in NETWORKS:
        trained.networks[name].train()
        with trained.labeller(name, size, Inference(32, 16, flip=True)) as label:
            answers[name] = label(picture)
            assert np.array_equal(answers[name], label(picture))  # dropout is off
        assert trained.networks[name].training  # as it was
        assert answers[name].shape == (50, 90)
        assert answers[name].dtype == np.uint8
        assert answers[name].max() < 3
    assert not np.array_equal(*answers.values())


def test_how_it_looks_is_what_is_asked_for_or_what_was_stored(config, tmp_path):
    trained = load_trained(write_checkpoint(tmp_path / "x.pt", config, class_set=FARM), CPU)
    shared = replace(trained, inference=Inference(32, 24, flip=True))
    assert shared.asked(None, 0, flip=False) == Inference(32, 24, flip=True)
    assert shared.asked(40, 0, flip=False) == Inference(40, 20)
    assert shared.asked(0, 0, flip=False).window == 0
    assert trained.asked(None, 0, flip=True) == Inference(flip=True)


def test_runs_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run"):
        load_trained(tmp_path / "nowhere", CPU)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_trained(tmp_path, CPU)


def test_checkpoints_that_cannot_be_read_say_why(config, tmp_path):
    def refusal(of: Config = config, **replaced) -> str:
        path = write_checkpoint(tmp_path / "x.pt", of, **replaced)
        with pytest.raises(ValueError, match=rf"^{path}") as caught:
            load_trained(path, CPU)
        return str(caught.value)

    assert f"format {FORMAT}, found {FORMAT + 1}" in refusal(format=FORMAT + 1)
    other = refusal(changed(config, embed_dim=32))
    assert "student: not the weights of the network of its own config, mit_b0 with embed_dim 32" in other
    assert len(other.splitlines()) < 5  # of the hundreds of tensors, a few will do
    assert "unknown options ['magic']" in refusal(config=to_dict(config) | {"magic": 1})
    assert "--embed-dim: expected a whole number" in refusal(
        config=to_dict(config) | {"model": to_dict(config)["model"] | {"embed_dim": "16"}}
    )
    assert "no class set" in refusal(classes={"names": ["road"]})
    assert "student: not the weights" in refusal(classes=FARM.to_dict())
