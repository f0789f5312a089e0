"""The pretended worker as a program: `fake_worker.py train RUN_ID… --preset P --results DIR …`."""

import os
import signal
import sys
from pathlib import Path

from sweep_bench import Bench, pretend

from repro.scheduling.executors.inline import StopRequest


class _Asked:
    """What signals have asked for; an orphan stops as if asked to."""

    def __init__(self) -> None:
        self.request = StopRequest.NONE
        self.parent = int(os.environ["REPRO_DIE_WITH_PARENT"])
        signal.signal(signal.SIGUSR2, lambda number, frame: self.raise_to(StopRequest.DRAIN))
        signal.signal(signal.SIGTERM, lambda number, frame: self.raise_to(StopRequest.TERMINATE))

    def raise_to(self, request: StopRequest) -> None:
        self.request = max(self.request, request)

    def __call__(self) -> StopRequest:
        return self.request if os.getppid() == self.parent else StopRequest.TERMINATE


def main() -> int:
    asked = _Asked()
    words = sys.argv[1:]
    assert words[0] == "train", words
    first_option = next(place for place, word in enumerate(words) if word.startswith("--"))
    options = dict(zip(words[first_option::2], words[first_option + 1 :: 2], strict=True))
    code = pretend(
        Bench.at(Path(options["--results"])),
        words[1:first_option],
        asked,
        print,
        int(options["--co-tenants"]),
    )
    if code < 0:
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
