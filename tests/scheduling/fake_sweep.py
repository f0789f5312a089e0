"""A sweep as a program, so that real signals can be sent to it: `fake_sweep.py RESULTS SLOTS RUN_ID…`.

Progress goes to stderr, the outcome to stdout as JSON, and the exit code is the outcome's.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from sweep_bench import PRESET, Bench, cpu_slots

from repro.scheduling.heartbeat import HeartbeatFile
from repro.scheduling.view import PlainView


def main() -> int:
    bench = Bench.at(Path(sys.argv[1]))
    runs = [bench.registry.parse(run_id) for run_id in sys.argv[3:]]
    slots = int(sys.argv[2])
    heartbeat = HeartbeatFile(bench.project.schedulers(PRESET), cpu_slots(slots))
    with PlainView(sys.stderr) as view, heartbeat:

        def tell(event):
            view(event)
            heartbeat(event)

        outcome = bench.scheduler(runs, slots=slots, listener=tell).run()
    print(json.dumps(asdict(outcome), default=str))
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
