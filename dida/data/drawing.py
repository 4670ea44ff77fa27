"""Classes in a picture: over an image, and their colours beside their names."""

import cv2
import numpy as np

from dida.data.classes import ClassSet

INK, PAPER = (32, 32, 32), 255
_FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)  # face, size, thickness


def overlay(image: np.ndarray, train_ids: np.ndarray, class_set: ClassSet) -> np.ndarray:
    """[H, W, 3] RGB: the image and the colours of its classes, half and half; 255 leaves the image as it is."""
    blend = cv2.addWeighted(image, 0.5, class_set.colourise(train_ids), 0.5, 0)
    return np.where((train_ids < len(class_set))[:, :, None], blend, image)


def legend(class_set: ClassSet) -> np.ndarray:
    """The colour of every class beside its name, RGB."""
    longest = max(cv2.getTextSize(name, *_FONT)[0][0] for name in class_set.names)
    width, height = max(longest + 40, 144), 20
    columns = max(7 * 144 // width, 1)
    rows = -(-len(class_set) // columns)
    canvas = np.full((rows * height, columns * width, 3), PAPER, dtype=np.uint8)
    for i, (name, colour) in enumerate(zip(class_set.names, class_set.colours, strict=True)):
        left, top = i % columns * width, i // columns * height
        cv2.rectangle(canvas, (left + 4, top + 4), (left + 24, top + 16), colour, cv2.FILLED)
        put_text(canvas, name, left + 30, top + 14)
    return canvas


def put_text(canvas: np.ndarray, text: str, left: int, baseline: int) -> None:
    """Draw a line of text, in place."""
    font, size, thickness = _FONT
    cv2.putText(canvas, text, (left, baseline), font, size, INK, thickness, cv2.LINE_AA)
