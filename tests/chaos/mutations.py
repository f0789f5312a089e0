"""Random mutations of a record: `python -m chaos.mutations COUNT [SEED]` in tests/; exit code 4 if one is accepted.

Each of COUNT mutants has one to three changes of its bytes: a flipped bit, a byte inserted, a byte or a passage cut
out, doubled or moved, a digit made another. None may be read as a record,
except one that equals the original byte for byte.
"""

import random
import sys
import tempfile
from pathlib import Path

from smoke_project import RUN, record_of, smoke_context, train_here

from repro.errors import IntegrityError
from repro.records import decode_record


def mutate(content: bytes, draw: random.Random) -> bytes:
    """`content` after one to three random changes."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(changed) - 1)
        passage = changed[at : at + draw.choice((1, 1, draw.randint(2, 200)))]
        kind = draw.choice(("flip", "insert", "digit", "cut", "double", "move"))
        if kind == "flip":
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == "insert":
            changed.insert(at, draw.randrange(256))
        elif kind == "digit":
            digits = [place for place, byte in enumerate(changed) if 48 <= byte <= 57]
            changed[draw.choice(digits)] = 48 + draw.randrange(10)
        if kind in ("cut", "move"):
            del changed[at : at + len(passage)]
        if kind in ("double", "move"):
            to = draw.randrange(len(changed)) if kind == "move" else at
            changed[to:to] = passage
    return bytes(changed)


def accepted(content: bytes, run: str, preset: str, count: int, seed: int) -> list[bytes]:
    """Those of `count` mutants of a record that differ from it and are read as one all the same."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        mutant = mutate(content, draw)
        try:
            decode_record(mutant, "a mutant", run, preset)
        except IntegrityError:
            continue
        if mutant != content:
            found.append(mutant)
    return found


def main() -> int:
    """Trains one run for its record and mutates that."""
    count, seed = int((sys.argv[1:] or ["3000"])[0]), int((sys.argv[2:] or ["0"])[0])
    with tempfile.TemporaryDirectory() as folder:
        context = smoke_context(None, Path(folder))
        train_here(context, RUN)
        found = accepted(record_of(context, RUN).to_json().encode(), RUN, "smoke", count, seed)
    print(f"{count} mutants of a record, seed {seed}: {len(found)} accepted")
    return 4 if found else 0


if __name__ == "__main__":
    sys.exit(main())
