"""Parts of records that were never trained: an environment, and which test images were right."""

import base64
import math

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
    """The last `correct` of `total` test images were classified correctly."""
    bits = ((1 << correct) - 1) << (-total % 8)  # the last byte is filled up with zeros
    return base64.urlsafe_b64encode(bits.to_bytes(math.ceil(total / 8))).decode()
