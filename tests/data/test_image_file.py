"""K2: a file is what it holds, not what it is called."""

import io
import os
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from dida.data.classes import CITYSCAPES_TO_TRAIN, SYNTHIA_TO_TRAIN, id_map
from dida.data.image_file import Encoding, ImageFileError, image_size, read_ids, read_image, read_label
from dida.data.statistics import count_label

IDS = Encoding(CITYSCAPES_TO_TRAIN)
SYNTHIA = Encoding(SYNTHIA_TO_TRAIN, red_of_16_bit=True)
# EXIF orientation -> how an upright picture [H, W, 3] is stored
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


def upright() -> np.ndarray:
    """Four corners of different colours, 24 x 16."""
    picture = np.zeros((16, 24, 3), dtype=np.uint8)
    picture[:8, :8], picture[:8, 16:], picture[8:, :8] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    return picture


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_turned_upright(tmp_path, suffix, orientation):
    """FAULTS 5: and the size that a header says is that of the picture as it is read."""
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright())))
    exif = stored.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    stored.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {}))
    found = read_image(path)
    assert found.shape == (16, 24, 3)
    assert image_size(path) == (24, 16)
    assert np.abs(found.astype(int) - upright()).mean() < (12 if suffix in ("jpg", "webp") else 1)


@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00nonsense", b""]
)
def test_damaged_exif_does_no_harm_to_the_pixels(tmp_path, exif):
    Image.fromarray(upright()).save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (16, 24, 3)
    assert image_size(tmp_path / "x.jpg") == (24, 16)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(upright()).save(tmp_path / "x.jpg", exif=exif)
    assert image_size(tmp_path / "x.jpg") == (24, 16)


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.png", {"format": "JPEG", "quality": 75}),
        ("a.png", {"format": "JPEG", "quality": 100}),
        ("a.jpg", {}),
        ("a.tif", {"compression": "jpeg"}),
        ("a.png", {"format": "MPO"}),
        ("a.png", {"format": "WEBP", "quality": 80}),
        ("a.tif", {"format": "JPEG2000"}),
    ],
)
def test_data_that_loses_something_is_no_label(tmp_path, name, options):
    """FAULTS 7: its ids are near what they were, and some of them are other classes."""
    path = tmp_path / name
    Image.fromarray(np.repeat(np.array([[7, 8, 11, 21, 23, 26]], dtype=np.uint8), 16, 0)).save(path, **options)
    with pytest.raises(ImageFileError, match=rf"{name}: (JPEG|WEBP|JPEG2000) data.*not reliable"):
        read_label(path, IDS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_that_was_saved_as_colours_is_read(tmp_path, mode):
    """As painting programs do: one number, three times."""
    ids = np.array([[7, 8, 11], [26, 0, 255]], dtype=np.uint8)
    Image.fromarray(ids).convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(read_ids(tmp_path / "a.png", IDS), ids)
    assert count_label(tmp_path / "a.png", IDS, classes=19).ids == {7: 1, 8: 1, 11: 1, 26: 1, 0: 1, 255: 1}


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_several_channels_of_16_bits_are_no_label(tmp_path, name, channels):
    """K2: Pillow reads the upper 8 of them, which makes one class of all ids below 256."""
    assert cv2.imwrite(str(tmp_path / name), np.full((2, 3, channels), 26, dtype=np.uint16))
    with pytest.raises(ImageFileError, match=rf"{name}: .* of 16 bits a channel, .* one channel"):
        read_ids(tmp_path / name, IDS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_holds_the_numbers_that_it_stores(tmp_path, bits):
    """K2: masks of fewer classes than 16 may be packed like this."""
    ids = np.array([[0, 1, 2**bits - 1, 1, 0, 0, 0, 2**bits - 1]], dtype=np.uint8)
    packed = int("".join(f"{i:0{bits}b}" for i in ids[0]), 2).to_bytes(bits)
    header = np.array([ids.shape[1], 1], dtype=">u4").tobytes() + bytes([bits, 0, 0, 0, 0])
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + packed)), (b"IEND", b""))
    content = b"".join(len(d).to_bytes(4) + n + d + zlib.crc32(n + d).to_bytes(4) for n, d in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert np.array_equal(read_ids(tmp_path / "a.png", IDS), ids)


def test_numbers_with_fractions_are_no_ids(tmp_path):
    Image.fromarray(np.ones((2, 3), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageFileError, match="numbers with fractions"):
        read_ids(tmp_path / "a.tif", IDS)


@pytest.mark.parametrize("orientation", STORED)
def test_a_label_that_is_stored_like_its_picture_is_turned_like_it(tmp_path, orientation):
    ids = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("picture", "label"):
        pixels = np.stack([ids] * 3, -1) if name == "picture" else ids
        Image.fromarray(pixels).save(tmp_path / f"{name}.png", exif=exif)
    assert np.array_equal(read_ids(tmp_path / "label.png", IDS), read_image(tmp_path / "picture.png")[:, :, 0])


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_masks_of_one_bit_are_read(tmp_path, suffix):
    """FAULTS 8."""
    mask = np.array([[True, False, True, True]] * 3)
    Image.fromarray(mask).convert("1").save(tmp_path / f"a.{suffix}")
    two = Encoding(id_map("two", {0: 0, 1: 1}))
    if suffix == "gif":  # which has no such mode: a palette of two, whose indices are what Pillow chose
        assert set(np.unique(read_ids(tmp_path / "a.gif", two))) <= {0, 1, 255}
        return
    assert np.array_equal(read_label(tmp_path / f"a.{suffix}", two), mask.astype(np.uint8))


@pytest.mark.parametrize(
    "reader", [read_image, image_size, lambda p: read_label(p, IDS), lambda p: read_label(p, SYNTHIA)]
)
@pytest.mark.parametrize("what", ["pipe", "folder", "missing", "empty"])
def test_what_is_no_file_is_named_and_nobody_waits(tmp_path, reader, what):
    """K17: a pipe that nobody writes to would be waited for."""
    path = tmp_path / "zz.png"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "empty":
        path.touch()
    with pytest.raises(ImageFileError, match=r"zz\.png"):
        reader(path)


def with_header(path, width: int, height: int):
    """A PNG whose first chunk claims another size; its checksum is right."""
    import struct
    import zlib

    assert cv2.imwrite(str(path), np.zeros((4, 4, 3), dtype=np.uint16))
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("size", [(40000, 40000), (1 << 20, 1 << 12), (30000, 30000), (0, 4), (1 << 30, 1)])
@pytest.mark.parametrize("encoding", [IDS, SYNTHIA], ids=["8 bits", "16 bits"])
def test_a_header_that_claims_too_much_is_refused_by_name(tmp_path, size, encoding):
    """FAULTS 44, K22."""
    path = with_header(tmp_path / "big.png", *size)
    with pytest.raises(ImageFileError, match=r"big\.png"):
        read_label(path, encoding)


# ---- PNGs that do not go through Pillow ----------------------------------------------------------------------------


def scene(*channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 14, *channels), dtype=np.uint8)


def png(picture: Image.Image | np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, format="PNG", **options)
    return file.getvalue()


def palette(transparency: int | None = None) -> bytes:
    picture = Image.fromarray(scene())
    picture.putpalette(list(range(256)) * 3)
    return png(picture, **({} if transparency is None else {"transparency": transparency}))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def filtered_grey() -> bytes:
    encoded = cv2.imencode(".png", scene(), [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP])[1]
    return encoded.tobytes()


COLOURS = {
    "rgb": png(scene(3)),
    "with a profile": png(scene(3), icc_profile=b"x" * 100),
    "a colour that is transparent": png(scene(3), transparency=(1, 2, 3)),
    "rgba": png(scene(4)),
    "turned": png(scene(3), exif=turned()),
    "grey": png(scene()),
    "palette": palette(),
}
INDICES = {
    "grey": png(scene()),
    "filtered grey": filtered_grey(),
    "palette": palette(),
    "palette with transparency": palette(transparency=3),
    "one bit": png(Image.fromarray(scene() > 100)),
    "two bits": png(Image.fromarray(scene(3)).quantize(4)),
    "16 bits": png(scene().astype(np.uint16) * 100),
}


@pytest.mark.parametrize("name", COLOURS)
def test_pictures_have_the_pixels_that_pillow_gives_them(tmp_path, name):
    (tmp_path / "x.png").write_bytes(COLOURS[name])
    expected = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    expected = np.rot90(expected, -1) if name == "turned" else expected
    assert np.array_equal(read_image(tmp_path / "x.png"), expected)


@pytest.mark.parametrize("name", INDICES)
def test_labels_have_the_indices_that_pillow_gives_them(tmp_path, name):
    (tmp_path / "x.png").write_bytes(INDICES[name])
    found = read_ids(tmp_path / "x.png", IDS)
    assert np.array_equal(found, np.asarray(Image.open(tmp_path / "x.png")))
    assert found.dtype == (np.uint16 if name == "16 bits" else np.uint8)


def test_what_data_sets_are_made_of_does_not_go_through_pillow(tmp_path, monkeypatch):
    for name, encoded in {"image": COLOURS["rgb"], "label": INDICES["palette"]}.items():
        (tmp_path / f"{name}.png").write_bytes(encoded)
    monkeypatch.setattr(Image, "open", None)
    read_image(tmp_path / "image.png")
    read_ids(tmp_path / "label.png", IDS)


@pytest.mark.parametrize("encoded", [COLOURS["rgb"], INDICES["grey"], INDICES["palette"]])
def test_a_damaged_byte_or_a_cut_is_judged_as_pillow_does(tmp_path, encoded):
    path, rng = tmp_path / "x.png", np.random.default_rng(0)
    read = read_image if encoded is COLOURS["rgb"] else (lambda p: read_ids(p, IDS))
    judged = []
    for _ in range(150):
        damaged, at = bytearray(encoded), int(rng.integers(8, len(encoded)))
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged if rng.random() < 0.7 else encoded[:at])
        try:
            expected = np.asarray(Image.open(path))
        except (OSError, SyntaxError, ValueError):
            expected = None
        try:
            found = read(path)
        except ImageFileError:
            found = None
        assert (found is None) == (expected is None)
        assert found is None or np.array_equal(found, expected)
        judged.append(found is None)
    assert set(judged) == {True, False}
