"""Parts of records that were never trained: an environment, and which test images were right."""

import base64

from repro.records import Environment

PRETENDED = Environment(
    git_commit="0" * 40,
    git_dirty=False,
    packages={"torch": "2.6.0"},
    python="3.11.2",
    system="Debian GNU/Linux 12",
    kernel="Linux 6.1",
    processor="a processor",
    device="a bench",
    device_memory_bytes=11 * 2**30,
    compute_capability=None,
    cuda=None,
    cudnn=None,
    driver=None,
)


def correct_images(correct: int, total: int) -> str:
    """The first `correct` of `total` test images were classified correctly."""
    bits = "1" * correct + "0" * (8 * -(-total // 8) - correct)
    return base64.b64encode(int(bits, 2).to_bytes(len(bits) // 8)).decode()
