"""IoU by class as the paper prints it (Tables I and II, real data); means and ablations stand with their rows."""

from dida.data.classes import CITYSCAPES_CLASSES


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
