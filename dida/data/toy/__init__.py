"""toy-streets: procedural street scenes in two domains, laid out on disk exactly as GTA5 and Cityscapes are.

All 19 Cityscapes classes, a long tail, confusable pairs, and a frozen shift from `toy-gta5` to
`toy-cityscapes`: class-specific colours, textures, camera, a mild layout prior and the camera car's hood.
It shows in minutes, on a CPU, whether the engine adapts, and it shows regressions. It does not say what a
method gains on real streets: wherever numbers from it are shown they are called toy numbers.

    dida toy --data-root data

writes the folders below `data/toy`, always the same pixels; `generate` does the same from Python.
"""

from .benchmark import DIGEST, Counts, Outcome, generate

__all__ = ["DIGEST", "Counts", "Outcome", "generate"]
