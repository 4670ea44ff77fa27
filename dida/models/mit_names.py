"""Names of a MiT's weights: those of SegFormer's own files, as `mit.py` has them, from those of other libraries."""

import re

import torch

from dida.models.weight_file import State

# Where the encoder is in the file of a whole classifier: of OpenMMLab's libraries, and of transformers.
_ENCODER_PREFIXES = ("backbone.", "segformer.")
_CLASSIFIER_PREFIXES = ("head.", "classifier.")

# Both count stages from 0. Name of a part of a stage -> ours, which counts from 1.
_PARTS = (
    (re.compile(r"^(?:encoder\.)?patch_embeddings\.(\d+)\."), "patch_embed{}."),
    (re.compile(r"^(?:encoder\.)?block\.(\d+)\."), "block{}."),
    (re.compile(r"^(?:encoder\.)?layer_norm\.(\d+)\."), "norm{}."),
    (re.compile(r"^layers\.(\d+)\.0\."), "patch_embed{}."),
    (re.compile(r"^layers\.(\d+)\.1\."), "block{}."),
    (re.compile(r"^layers\.(\d+)\.2\."), "norm{}."),
)
_INNER_NAMES = (
    (".layer_norm.", ".norm."),  # of transformers
    (".layer_norm_1.", ".norm1."),
    (".layer_norm_2.", ".norm2."),
    (".attention.self.query.", ".attn.q."),
    (".attention.self.", ".attn."),
    (".attention.output.dense.", ".attn.proj."),
    (".mlp.dense1.", ".mlp.fc1."),
    (".mlp.dense2.", ".mlp.fc2."),
    (".projection.", ".proj."),  # of OpenMMLab
    (".attn.attn.out_proj.", ".attn.proj."),
    (".ffn.layers.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.dwconv.dwconv."),
    (".ffn.layers.4.", ".mlp.fc2."),
)
_IN_PROJ = ".attn.attn.in_proj_"  # of OpenMMLab: query, key and value in one


def mit_layout(state: State) -> State:
    """The weights of an encoder, or of a classifier without its last layer, under the names of `mit.py`.

    Names that are not known stay as they are.
    """
    for prefix in _ENCODER_PREFIXES:
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
            break
    state = {_name(name): v for name, v in state.items() if not name.startswith(_CLASSIFIER_PREFIXES)}
    for key in [name for name in state if ".attn.key." in name]:
        value = key.replace(".key.", ".value.")
        if value in state:
            state[key.replace(".key.", ".kv.")] = torch.cat([state.pop(key), state.pop(value)])  # 2 x [C, C] -> [2C, C]
    for name in [name for name in state if _IN_PROJ in name and len(state[name]) % 3 == 0]:
        in_proj = state.pop(name)  # [3C, C]
        channels = len(in_proj) // 3
        state[name.replace(_IN_PROJ, ".attn.q.")] = in_proj[:channels]
        state[name.replace(_IN_PROJ, ".attn.kv.")] = in_proj[channels:]
    # OpenMMLab's linear layers of an MLP are convolutions of one pixel.
    return {name: v.flatten(1) if _is_linear(name) and v.shape[2:] == (1, 1) else v for name, v in state.items()}


def _name(name: str) -> str:
    for part, ours in _PARTS:
        if found := part.match(name):
            name = ours.format(int(found[1]) + 1) + name[found.end() :]
            for theirs, inner in _INNER_NAMES:
                name = name.replace(theirs, inner)
            return name
    return name


def _is_linear(name: str) -> bool:
    return name.endswith((".mlp.fc1.weight", ".mlp.fc2.weight"))
