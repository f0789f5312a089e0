"""repro.data.decode: what becomes of an image file, honest or not."""

import io
import os
import random
import zipfile

import numpy as np
import pytest
from pictures import encoded, jpeg, picture, png_bomb
from PIL import Image

from repro.data.decode import (
    BATCH,
    DecodeRules,
    ImageFile,
    ImageRequest,
    decode,
    decode_images,
    decoder_versions,
    tree_files,
)
from repro.errors import SetupError

RULES = DecodeRules(64)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_eight_bit_pixels_becomes_rgb(mode):
    image = picture(mode=mode)
    content = encoded(image, "JPEG" if mode == "CMYK" else "PNG")
    with Image.open(io.BytesIO(content)) as opened:
        expected = np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode(content, RULES), expected)


@pytest.mark.parametrize(("crop", "square"), [(1.0, (20, 0, 100, 80)), (0.5, (40, 20, 80, 60))])
def test_the_central_square_is_resized_as_pillow_does(crop, square):
    image = picture(120, 80)
    expected = image.crop(square).resize((64, 64), Image.Resampling.BILINEAR)
    found = decode(encoded(image, "PNG"), DecodeRules(64, crop=crop))
    assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


def test_a_box_is_cut_out_before_it_is_resized_and_may_reach_out_of_the_image():
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[10:30, 0:20] = (200, 40, 90)
    content = encoded(Image.fromarray(pixels), "PNG")
    assert np.array_equal(
        np.unique(decode(content, RULES, (-5, 10, 20, 30)).reshape(3, -1), axis=1), [[200], [40], [90]]
    )


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ((30, 30, 30, 35), "its box has no area"),
        ((35, 35, 60, 60), "its box 35,35,60,60 lies outside of 40 × 40"),
        ((3.1, 3.1, 3.2, 3.2), "its box has no area"),
    ],
)  # fmt: skip
def test_a_box_that_shows_nothing_is_a_problem(box, says):
    with pytest.raises(ValueError, match=says):
        decode(encoded(picture(40, 40), "PNG"), RULES, box)


@pytest.mark.parametrize(
    ("content", "rules", "says"),
    [
        (b"", RULES, "empty"),
        (b"<html>404</html>", RULES, "not an image of the kind JPEG or PNG"),
        (encoded(picture(), "GIF"), RULES, "not an image of the kind JPEG or PNG"),
        (encoded(picture(), "PNG"), DecodeRules(64, formats=("JPEG",)), "not an image of the kind JPEG"),
        (jpeg(size=200)[:3000], RULES, "damaged .*truncated"),
        (png_bomb(), RULES, "pixels"),
        (png_bomb(9000, 9000), RULES, "9000 × 9000, more than 50,000,000 pixels"),
        (encoded(Image.new("I;16", (8, 8)), "PNG"), RULES, "pixels of the kind I(;16)?, expected 8 bits a channel"),
        (jpeg(size=80), DecodeRules(64, exact=True), "80 × 80, expected 64 × 64"),
        (jpeg(), DecodeRules(64, max_bytes=100), "longer than 100 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_such_image_is_told_what_it_is(content, rules, says):
    with pytest.raises(ValueError, match=says):
        decode(content, rules)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_any_damage_is_a_problem_or_an_image_and_never_another_error(format):
    whole, generator = encoded(picture(), format), random.Random(0)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 20)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        try:
            assert decode(bytes(content), RULES).shape == (3, 64, 64)
        except ValueError as error:
            assert str(error)  # noqa: PT017 either outcome is right


def test_any_number_of_threads_gives_the_same_images_in_order_and_names_each_problem(tmp_path, recwarn):
    contents = {
        f"{index:04}.jpg": jpeg(index, size=16) if index % 50 else b"torn" for index in range(3 * BATCH + 5)
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    rules = DecodeRules(16)
    requests = [ImageRequest(file) for file in tree_files(tmp_path)[0]]
    one, several = (list(decode_images(requests, rules, threads)) for threads in (1, 3))
    for pieces in (one, several):
        pixels = np.concatenate([piece.pixels for piece in pieces])
        problems = [each for piece in pieces for each in piece.problems]
        assert np.array_equal(pixels[1], decode(contents["0001.jpg"], rules))
        assert not pixels[50].any()
        assert [index for index, problem in enumerate(problems) if problem] == list(
            range(0, len(contents), 50)
        )
    assert [piece.sha256 for piece in one] == [piece.sha256 for piece in several]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(one, several, strict=True))
    assert list(decode_images([], rules)) == []
    assert not recwarn


def problem_of(file: ImageFile, rules: DecodeRules = RULES, **request) -> str | None:
    (piece,) = decode_images([ImageRequest(file, **request)], rules)
    return piece.problems[0]


def test_a_file_is_read_no_further_than_it_may_be_long_and_a_pipe_not_at_all(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as stream:
        stream.truncate(1 << 40)
    assert (
        problem_of(ImageFile(str(tmp_path), "a.jpg", 1 << 40), DecodeRules(64, max_bytes=1000))
        == "longer than 1,000 bytes"
    )
    os.mkfifo(tmp_path / "pipe.jpg")
    assert problem_of(ImageFile(str(tmp_path), "pipe.jpg", 0)) == "not a plain file"
    (tmp_path / "b.jpg").write_bytes(jpeg())
    assert (
        problem_of(ImageFile(str(tmp_path), "b.jpg", 0), sha256="0" * 64)
        == "its bytes are not those that were published"
    )
    with pytest.raises(SetupError, match=r"cannot read .*gone\.jpg: No such file"):
        problem_of(ImageFile(str(tmp_path), "gone.jpg", 0))


@pytest.mark.parametrize("change", [{"CRC": 1}, {"file_size": 10}, {"flag_bits": 1}, {"header_offset": 3}])
def test_a_member_that_is_damaged_in_its_zip_is_a_problem(tmp_path, change):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", jpeg())
        for name, value in change.items():
            setattr(archive.infolist()[0], name, value)
    problem = problem_of(ImageFile(str(tmp_path / "a.zip"), "a.jpg", 0, "a.jpg"))
    assert problem.startswith("damaged")


def test_the_libraries_that_decide_the_pixels_are_named():
    assert set(decoder_versions()) in ({"pillow", "numpy", "libjpeg-turbo"}, {"pillow", "numpy", "libjpeg"})
