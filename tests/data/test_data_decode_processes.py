"""repro.data.decode: the same images on any number of processes, and no process that outlives its use."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from pictures import jpeg

from repro.data.decode import BATCH, DecodeRules, ImageDecoder, ImageRequest, decode_batch, folder_files
from repro.errors import SetupError

RULES = DecodeRules(16)
COUNT = 3 * BATCH + 5


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(COUNT):
        (folder / f"{index:04}.jpg").write_bytes(jpeg(index, size=16) if index % 50 else b"torn")
    return folder


def wanted(folder: Path, count: int = COUNT) -> list[ImageRequest]:
    return [ImageRequest(file) for file in folder_files(folder, "")[:count]]


def test_two_processes_give_what_one_gives_in_the_same_order(images):
    expected = decode_batch(wanted(images), RULES)
    seen = []
    with ImageDecoder(2) as decoder:
        pieces = list(decoder.decode(wanted(images), RULES, lambda *call: seen.append(call)))
        again = list(decoder.decode(wanted(images, 10), RULES))
    assert np.array_equal(np.concatenate([piece.pixels for piece in pieces]), expected.pixels)
    assert [each for piece in pieces for each in piece.sha256] == expected.sha256
    assert [each for piece in pieces for each in piece.problems] == expected.problems
    assert np.array_equal(again[0].pixels, expected.pixels[:10])
    assert seen[-1] == (COUNT, COUNT, "images")
    assert workers_only(psutil.Process().children(recursive=True)) == []


def test_nothing_is_started_for_a_handful_of_images(images):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with ImageDecoder(2) as decoder:
        assert len(next(iter(decoder.decode(wanted(images, BATCH), RULES))).problems) == BATCH
        assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_no_images_are_no_pieces():
    with ImageDecoder(2) as decoder:
        assert list(decoder.decode([], RULES)) == []


def test_a_file_that_cannot_be_read_is_named_from_another_process_too(images):
    files = wanted(images)
    gone = ImageRequest(type(files[0].file)(str(images), "gone.jpg", 1))
    with pytest.raises(SetupError, match=r"cannot read .*gone\.jpg"), ImageDecoder(2) as decoder:
        list(decoder.decode([*files[: 2 * BATCH], gone], RULES))


SCRIPT = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from repro.data.decode import DecodeRules, ImageDecoder, ImageRequest, folder_files
    from repro.errors import SetupError

    if __name__ == "__main__":
        files = folder_files(Path(sys.argv[1]), "")
        try:
            with ImageDecoder(2) as decoder:
                for number, _ in enumerate(decoder.decode([ImageRequest(file) for file in files] * 2000, DecodeRules(16))):
                    if number == 3:
                        print("under way", flush=True)
        except SetupError as error:
            print(error, flush=True)
            sys.exit(3)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            sys.exit(130)
    """
)


def start(images: Path, folder: Path) -> subprocess.Popen:
    """A process that decodes without end, in a session of its own."""
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(folder / "script.py"), str(images)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def under_way(images, tmp_path):
    """Such a process, under way, and its workers."""
    process = start(images, tmp_path)
    assert process.stdout.readline() == "under way\n", process.stderr.read()
    yield process, psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()


def end(workers: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []


def workers_only(children: list[psutil.Process]) -> list[psutil.Process]:
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_the_workers_know_no_torch_and_a_killed_one_is_one_clear_error(under_way):
    process, children = under_way
    workers = workers_only(children)
    assert len(workers) == 2
    for worker in workers:
        assert not any("libtorch" in mapped.path for mapped in worker.memory_maps())
    workers[0].kill()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "a process that decoded images died (killed, or out of memory?): nothing was kept" in out
    assert err == ""
    end(children)


def test_ctrl_c_leaves_no_process_and_no_traceback(under_way):
    process, children = under_way
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "interrupted\n", "")
    end(children)


def test_ctrl_c_while_the_second_process_starts_leaves_no_traceback(images, tmp_path):
    process = start(images, tmp_path)
    deadline = time.monotonic() + 60
    while len(workers_only(psutil.Process(process.pid).children())) < 2:
        assert time.monotonic() < deadline, "no second process after a minute"
        time.sleep(0.002)
    time.sleep(0.05)  # for its interpreter to have signal handlers
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert out.endswith("interrupted\n")


def test_no_worker_outlives_a_killed_parent(under_way):
    process, children = under_way
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "a worker is still there a minute after its parent was killed"
        time.sleep(0.05)
