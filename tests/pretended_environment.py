"""Parts of records and attempts that never were: an environment, the right test images, an attempt's note."""

import base64
import math
from datetime import UTC, datetime

from repro.attempts import AttemptNote
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
    return base64.urlsafe_b64encode(((1 << correct) - 1).to_bytes(math.ceil(total / 8))).decode()


def attempt_note(outcome: str, number: int = 1, **changes) -> AttemptNote:
    """What an attempt leaves behind that came to `outcome`."""
    now = datetime.now(UTC)
    ended = None if outcome == "running" else now
    note = AttemptNote(number=number, started=now, ended=ended, outcome=outcome, resumed_at_step=0)
    return note.model_copy(update=changes)
