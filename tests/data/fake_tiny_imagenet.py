"""A tiny TinyImageNet in the published layout: 3 classes, 4 training and 2 test images of each."""

import io
import zipfile
from dataclasses import replace

from fake_cifar100 import md5
from pictures import jpeg

from repro.data.tiny_imagenet import PUBLISHED, Published

# Not sorted: the order of the labels is that of the file.
CLASSES = ("n00000007", "n00000003", "n00000005")
WORDS = {
    "n00000003": "goldfish, Carassius auratus",
    "n00000005": "bullfrog",
    "n00000007": "European fire salamander",
}


def train_name(wnid: str, number: int) -> str:
    return f"train/{wnid}/images/{wnid}_{number}.JPEG"


def files() -> dict[str, bytes]:
    """Every file by its path below `tiny-imagenet-200`; the first image of each class is grey."""
    contents = {
        "wnids.txt": "".join(f"{wnid}\n" for wnid in CLASSES).encode(),
        "words.txt": "".join(
            f"{wnid}\t{words}\n" for wnid, words in {"n1": "entity", **WORDS}.items()
        ).encode(),
    }
    for label, wnid in enumerate(CLASSES):
        for number in range(4):
            mode = "L" if number == 0 else "RGB"
            contents[train_name(wnid, number)] = jpeg(10 * label + number, mode=mode)
        contents[f"train/{wnid}/{wnid}_boxes.txt"] = b"x\t0\t0\t1\t1\n"
    rows = []
    for number in range(6):
        contents[f"val/images/val_{number}.JPEG"] = jpeg(100 + number)
        rows.append(f"val_{number}.JPEG\t{CLASSES[number % 3]}\t0\t0\t62\t62\n")
    contents["val/val_annotations.txt"] = "".join(reversed(rows)).encode()
    contents["test/images/test_0.JPEG"] = jpeg(200)
    return contents


def zipped(contents: dict[str, bytes]) -> bytes:
    """The files as the published archive has them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("tiny-imagenet-200/"), b"")
        for name, content in contents.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    return buffer.getvalue()


def published(packed: bytes) -> Published:
    """What would be published of this archive."""
    return replace(
        PUBLISHED,
        url="http://127.0.0.1:9/none",  # refuses connections
        archive_md5=md5(packed),
        classes=3,
        train_per_class=4,
        test_per_class=2,
        max_members=100,
        max_bytes=1_100_000,
    )
