"""What scalars are called."""

import pytest

from dida.run.terms import meaning_of, word_of


@pytest.mark.parametrize(
    "name, word, meaning",
    [
        ("lr", "lr", "learning rate of the encoder"),
        ("loss/own", "own", "loss/own"),
        ("watch/toy-gta5-val_val/student", "mIoU of the student", "on toy-gta5-val, val"),
        ("watch/folder:/data/my_cam/a_val/teacher", "mIoU of the teacher", "on folder:/data/my_cam/a, val"),
        ("watch/share/student", "watch/share/student", "watch/share/student"),  # a class may be called so
    ],
)
def test_a_scalar_has_words(name, word, meaning):
    assert (word_of(name), meaning_of(name)) == (word, meaning)
