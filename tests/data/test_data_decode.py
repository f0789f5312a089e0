"""repro.data.decode: honest images become the pixels they hold, others a reason in words."""

import os

import numpy as np
import pytest
from pictures import encoded, jpeg, picture, png_bomb
from PIL import Image

from repro.data.decode import (
    DecodeRules,
    ImageFile,
    ImageRequest,
    decode,
    decode_batch,
    decoder_versions,
    folder_files,
)
from repro.errors import SetupError

RULES = DecodeRules(64)


def test_a_picture_of_the_sets_size_is_taken_as_it_is():
    image = picture(64, 64)
    assert np.array_equal(decode(encoded(image, "PNG"), RULES), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_of_any_colours_becomes_rgb(mode):
    content = jpeg(mode=mode)
    pixels = decode(content, RULES)
    assert (pixels.shape, pixels.dtype) == ((3, 64, 64), np.uint8)
    assert (
        np.abs(pixels.astype(int) - np.asarray(picture(mode=mode).convert("RGB")).transpose(2, 0, 1)).mean()
        < 8
    )
    if mode == "L":
        assert np.array_equal(pixels, np.stack([pixels[0]] * 3))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_png_of_any_palette_or_transparency_becomes_rgb(mode):
    image = picture(mode=mode)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode(encoded(image, "PNG"), RULES), expected)


def test_the_central_square_is_resized_with_every_pixel_counted():
    stripes = np.zeros((100, 200, 3), np.uint8)
    stripes[:, 1::2] = 200
    pixels = decode(encoded(Image.fromarray(stripes), "PNG"), DecodeRules(10))
    # A filter that skipped pixels would see whole stripes.
    assert pixels.mean() == pytest.approx(100, abs=2)
    assert pixels.std() < 12


def test_the_crop_is_the_centre():
    image = Image.new("RGB", (100, 100))
    image.paste((255, 255, 255), (25, 25, 75, 75))
    assert decode(encoded(image, "PNG"), DecodeRules(10, crop=0.5)).min() == 255
    assert decode(encoded(image, "PNG"), DecodeRules(10)).min() == 0


@pytest.mark.parametrize("box", [(20, 10, 60, 70), (-10, -10, 60, 90), (20.4, 10, 130, 99)])
def test_a_box_is_cut_out_and_what_lies_outside_is_cut_off(box):
    image = picture(100, 100)
    inside = (max(int(box[0]), 0), max(box[1], 0), min(box[2], 100), min(box[3], 100))
    expected = image.crop(inside).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(decode(encoded(image, "PNG"), RULES, box), np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((10, 10, 10, 50), "its box has no area"),
        ((50, 10, 10, 50), "its box has no area"),
        ((-5, -5, -1, -1), "its box -5,-5,-1,-1 lies outside of 100 × 100"),
        ((80, 80, 180, 180), "lies outside of 100 × 100"),
        ((float("nan"), 0, 10, 10), "its box has no area"),
    ],
)
def test_a_box_that_is_not_in_the_picture_is_a_reason(box, reason):
    with pytest.raises(ValueError, match=reason):
        decode(encoded(picture(100, 100), "PNG"), RULES, box)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (encoded(picture(), "GIF"), "a GIF, expected JPEG or PNG"),
        (encoded(picture(), "BMP"), "a BMP, expected JPEG or PNG"),
        (encoded(picture(), "TIFF"), "a TIFF, expected JPEG or PNG"),
        (encoded(picture(), "WEBP"), "a WebP, expected JPEG or PNG"),
        (b"\r\n<!DOCTYPE html><html>", "a web page, expected JPEG or PNG"),
        (b"not found", "not an image, expected JPEG or PNG"),
        (jpeg(size=200)[:2000], "damaged .*truncated"),
        (jpeg()[:10], "a JPEG, expected JPEG or PNG|damaged"),
        (encoded(picture(), "PNG")[:200], "damaged"),
        (png_bomb(), "30000 × 30000, more than 50,000,000 pixels|more than 50,000,000 pixels"),
        (png_bomb(8000, 8000), "8000 × 8000, more than 50,000,000 pixels"),
        (encoded(Image.new("I;16", (64, 64)), "PNG"), "pixels of the kind I.*, expected 8 bits a channel"),
    ],
)
def test_what_cannot_be_used_is_a_reason(content, reason):
    with pytest.raises(ValueError, match=f"^({reason})"):
        decode(content, RULES)


def test_a_flipped_bit_anywhere_gives_pixels_or_a_reason():
    for content in (jpeg(), encoded(picture(), "PNG")):
        for position in range(0, len(content), 7):
            damaged = bytearray(content)
            damaged[position] ^= 0x55
            try:
                assert decode(bytes(damaged), RULES).shape == (3, 64, 64)
            except ValueError as error:
                assert str(error)  # noqa: PT017 either outcome is right


def test_an_exact_set_takes_no_other_size_nor_format():
    exact = DecodeRules(64, formats=("JPEG",), exact=True)
    with pytest.raises(ValueError, match="80 × 80, expected 64 × 64"):
        decode(jpeg(size=80), exact)
    with pytest.raises(ValueError, match="a PNG, expected JPEG"):
        decode(encoded(picture(), "PNG"), exact)
    assert np.array_equal(decode(jpeg(), exact), decode(jpeg(), RULES))


def test_a_file_that_is_too_long_is_not_read_to_its_end(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as stream:
        stream.truncate(1 << 40)
    file = ImageFile(str(tmp_path), "a.jpg", 1 << 40)
    assert len(file.read(1000)) == 1001
    assert decode_batch([ImageRequest(file)], DecodeRules(64, max_bytes=1000)).problems == [
        "longer than 1,000 bytes"
    ]


def test_a_batch_keeps_its_order_and_leaves_the_pixels_of_a_problem_black(tmp_path):
    contents = {"a.jpg": jpeg(1), "b.jpg": b"", "c.jpg": jpeg(2)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    decoded = decode_batch([ImageRequest(file) for file in folder_files(tmp_path, "")], RULES)
    assert decoded.problems == [None, "empty", None]
    assert np.array_equal(decoded.pixels[2], decode(contents["c.jpg"], RULES))
    assert not decoded.pixels[1].any()
    assert decoded.sha256[1] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_pipe_that_poses_as_an_image_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    assert decode_batch([ImageRequest(ImageFile(str(tmp_path), "a.jpg", 0))], RULES).problems == [
        "not a plain file"
    ]


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(SetupError, match=r"cannot read .*gone\.jpg: No such file"):
        decode_batch([ImageRequest(ImageFile(str(tmp_path), "gone.jpg", 0))], RULES)


def test_what_file_managers_leave_behind_is_passed_over(tmp_path):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._a.jpg", "b.jpg", "a.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    assert [file.name for file in folder_files(tmp_path, "")] == ["a.jpg", "b.jpg"]


def test_the_versions_that_decide_the_bytes_are_named():
    assert set(decoder_versions()) in ({"pillow", "numpy", "libjpeg-turbo"}, {"pillow", "numpy", "libjpeg"})
