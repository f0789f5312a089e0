"""A sweep as a program, so that real signals can be sent to it: `fake_sweep.py RESULTS SLOTS RUN_ID…`.

Progress goes to stderr, the outcome to stdout as JSON, and the exit code is the outcome's.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from sweep_bench import Bench

from repro.scheduling.view import PlainView


def main() -> int:
    bench = Bench.at(Path(sys.argv[1]))
    runs = [bench.registry.parse(run_id) for run_id in sys.argv[3:]]
    with PlainView(sys.stderr) as view:
        outcome = bench.scheduler(runs, slots=int(sys.argv[2]), listener=view).run()
    print(json.dumps(asdict(outcome), default=str))
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
