"""What papers print of networks on Cityscapes val, in percent, so that scores can stand beside it.

DIDA's Tables I and II have IoU by class of GTA5 -> Cityscapes and SYNTHIA -> Cityscapes; SegFormer's Table 1 (a) has
the mean of each of its networks, looked at in one scale through windows of 1024 x 1024.
"""

from typing import NamedTuple

from dida.data.classes import CITYSCAPES_CLASSES


class Printed(NamedTuple):
    """A row of a table of a paper."""

    title: str
    mean_iou: float  # as printed, which need not be the mean of the printed row
    classes: int  # that the mean is over
    iou: dict[str, float]  # by class; empty: the paper has none


def _by_class(classes: int, *iou: float) -> dict[str, float]:
    names = (CITYSCAPES_CLASSES.names[i] for i in CITYSCAPES_CLASSES.subsets[classes])
    return dict(zip(names, iou, strict=True))


CLASS_IOU = {  # by benchmark and row
    "gta5": {
        "dacs": _by_class(19, 89.9, 39.7, 87.9, 30.7, 39.5, 38.5, 46.4, 52.8, 88.0, 44.0, 88.8, 67.2, 35.8, 84.5, 45.7,
                          50.2, 0.0, 27.3, 34.0),
        "daformer": _by_class(19, 95.7, 70.2, 89.4, 53.5, 48.1, 49.6, 55.8, 59.4, 89.9, 47.9, 92.5, 72.2, 44.7, 92.3,
                              74.5, 78.2, 65.1, 55.9, 61.8),
        "dida": _by_class(19, 97.3, 78.0, 89.8, 55.9, 52.6, 53.3, 57.9, 66.1, 90.0, 50.0, 93.1, 73.2, 44.8, 93.4, 80.9,
                          84.7, 73.8, 58.6, 63.5),
    },
    "synthia": {
        "dacs": _by_class(16, 80.6, 25.1, 81.9, 21.5, 2.9, 37.2, 22.7, 24.0, 83.7, 90.8, 67.6, 38.3, 82.9, 38.9, 28.5,
                          47.6),
        "daformer": _by_class(16, 84.5, 40.7, 88.4, 41.5, 6.5, 50.0, 55.0, 54.6, 86.0, 89.8, 73.2, 48.2, 87.2, 53.2,
                              53.9, 61.7),
        "dida": _by_class(16, 90.6, 53.7, 88.5, 45.7, 8.5, 50.5, 56.8, 56.1, 87.8, 91.5, 74.6, 49.6, 88.1, 62.7, 56.2,
                          64.3),
    },
}  # fmt: skip

MEAN_IOU = {
    "gta5": {"dacs": 52.1, "daformer": 68.3, "dida": 71.0},
    "synthia": {"dacs": 48.3, "daformer": 60.9, "dida": 63.3},
}
SEGFORMER_MEAN_IOU = {
    "mit_b0": 76.2, "mit_b1": 78.5, "mit_b2": 81.0, "mit_b3": 81.7, "mit_b4": 82.3, "mit_b5": 82.4,
}  # fmt: skip
TITLES = {"dacs": "DACS", "daformer": "DAFormer", "dida": "DIDA"}


def printed_of_self_training(source: str | None) -> tuple[Printed, ...]:
    """What the paper prints of DAFormer and DIDA (MiT-B5), trained on `source`; None: on either."""
    rows = []
    for name in MEAN_IOU if source is None else (source,):
        for method in ("daformer", "dida"):
            iou = CLASS_IOU[name][method]
            rows.append(Printed(f"{TITLES[method]} {name}", MEAN_IOU[name][method], len(iou), iou))
    return tuple(rows)


def printed_of_segformer(backbone: str) -> tuple[Printed, ...]:
    """What SegFormer's paper prints of its network with this encoder."""
    return (Printed(f"SegFormer {backbone}", SEGFORMER_MEAN_IOU[backbone], len(CITYSCAPES_CLASSES), {}),)
