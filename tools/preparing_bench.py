"""Times `repro data prepare` and its peak memory, on real files and on a TinyImageNet of the published size.

    python tools/preparing_bench.py WORK [--cifar100 DIR] [--tiny-imagenet DIR] [--lfw DIR]

WORK gets the full-size copy (110,000 JPEGs, as a folder and as a zip: 0.5 GB) and the prepared arrays (1.4 GB
a copy). The images of the copy are the real ones of --tiny-imagenet, again and again under new names, else
generated ones. Each preparation runs twice in fresh folders; the memory is the sum of the proportional set
sizes of the command and all its children, sampled every 50 ms: a page that they share counts once.
"""

import hashlib
import io
import itertools
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import psutil
from PIL import Image

from repro.manifest import read_manifest

SHOWN = ("set", "source", "images", "classes", "seconds", "CPU seconds", "peak MiB", "twice the same bytes")


@click.command()
@click.argument("work", type=click.Path(path_type=Path, file_okay=False))
@click.option("--cifar100", type=click.Path(path_type=Path, exists=True))
@click.option("--tiny-imagenet", type=click.Path(path_type=Path, exists=True))
@click.option("--lfw", type=click.Path(path_type=Path, exists=True))
def main(work: Path, cifar100: Path | None, tiny_imagenet: Path | None, lfw: Path | None) -> None:
    """Prepare each set twice and print a markdown table."""
    work.mkdir(parents=True, exist_ok=True)
    tree = full_size(work / "full" / "tiny-imagenet-200", tiny_imagenet)
    archive = zipped(tree, work / "full" / "tiny-imagenet-200.zip")
    wanted = [
        ("tiny-imagenet, full size", tree, ("tiny-imagenet",)),
        ("tiny-imagenet, full size", archive, ("tiny-imagenet",)),
    ]
    if cifar100:
        wanted.insert(0, ("cifar100", cifar100, ("cifar100",)))
    if tiny_imagenet:
        options = ("tiny-imagenet", "--allow-partial", "--as", "tiny-imagenet-subset")
        wanted.append(("tiny-imagenet-subset", tiny_imagenet, options))
    if lfw:
        options = ("lfw", "--title", "LFW, deep-funneled", "--min-images", "20", "--crop", "0.6")
        wanted.append(("lfw", lfw, options))
    click.echo("| " + " | ".join(SHOWN) + " |\n|" + "---|" * len(SHOWN))
    for name, source, options in wanted:
        click.echo("| " + " | ".join(measured(name, source, options, work)) + " |")


def measured(name: str, source: Path, options: tuple[str, ...], work: Path) -> tuple[str, ...]:
    """One row: two preparations in fresh folders."""
    seconds, cpu, peaks, hashes, counts = [], [], [], [], (0, 0)
    for attempt in (1, 2):
        data = work / f"data-{attempt}"
        shutil.rmtree(data, ignore_errors=True)
        command = [sys.executable, "-m", "repro", "data", "prepare", *options, "--from", str(source)]
        elapsed, used, peak = timed([*command, "--data-dir", str(data)])
        seconds.append(elapsed)
        cpu.append(used)
        peaks.append(peak)
        hashes.append(array_hashes(data))
        counts = shape(data)
    kind = "zip" if source.is_file() else "folder"
    took, used = (" and ".join(f"{value:.1f}" for value in both) for both in (seconds, cpu))
    peak = f"{max(peaks) / 2**20:,.0f}"
    same = "yes" if hashes[0] == hashes[1] else "NO"
    return name, kind, f"{counts[0]:,}", str(counts[1]), took, used, peak, same


def timed(command: list[str]) -> tuple[float, float, int]:
    """Seconds, CPU seconds, and the peak of the memory, in bytes, of the command with its children."""
    started, cpu, peak = time.monotonic(), cpu_of_children(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        family = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, sum(proportional(each) for each in [family, *children(family)]))
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.monotonic() - started, cpu_of_children() - cpu, peak


def cpu_of_children() -> float:
    """CPU seconds of all child processes that have ended, and of theirs."""
    used = os.times()
    return used.children_user + used.children_system


def children(process: psutil.Process) -> list[psutil.Process]:
    """The process's children and theirs; none where it has just ended."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def proportional(process: psutil.Process) -> int:
    """Its proportional set size in bytes."""
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def array_hashes(data: Path) -> dict[str, str]:
    """File → sha256 of every prepared array."""
    return {
        file.name: hashlib.file_digest(file.open("rb"), "sha256").hexdigest()
        for file in sorted(data.rglob("*.npy"))
    }


def shape(data: Path) -> tuple[int, int]:
    """Images and classes, of the manifest."""
    (path,) = data.rglob("manifest.json")
    manifest = read_manifest(data, path.parent.parent.name)
    return manifest.train.count + manifest.test.count, len(manifest.class_names)


def full_size(folder: Path, real: Path | None) -> Path:
    """A copy in the published layout with 200 × 500 training and 10,000 test images."""
    if (folder / "wnids.txt").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    classes = [f"n{k:08}" for k in range(200)]
    if real:
        classes = (real / "wnids.txt").read_text().split()
    images = pictures(real)
    for wnid in classes:
        place = folder / "train" / wnid / "images"
        place.mkdir(parents=True)
        for number in range(500):
            (place / f"{wnid}_{number}.JPEG").write_bytes(next(images))
    place = folder / "val" / "images"
    place.mkdir(parents=True)
    rows = []
    for number in range(10_000):
        (place / f"val_{number}.JPEG").write_bytes(next(images))
        rows.append(f"val_{number}.JPEG\t{classes[number % 200]}\t0\t0\t63\t63\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    (folder / "words.txt").write_text("".join(f"{wnid}\tclass {wnid}\n" for wnid in classes))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in classes))
    return folder


def pictures(real: Path | None) -> Iterator[bytes]:
    """JPEGs without end."""
    if real is None:
        return itertools.cycle([noise(seed) for seed in range(2_000)])
    return itertools.cycle([path.read_bytes() for path in sorted(real.rglob("*.JPEG"))])


def noise(seed: int) -> bytes:
    """A JPEG of 64 × 64 smooth random pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


def zipped(tree: Path, archive: Path) -> Path:
    """The tree as an archive, as it is published."""
    if not archive.is_file():
        partial = archive.with_suffix(".part")
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(tree.rglob("*")):
                if path.is_file():
                    file.write(path, f"{tree.name}/{path.relative_to(tree)}")
        partial.replace(archive)
    return archive


if __name__ == "__main__":
    main()
