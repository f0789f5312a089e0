"""Defects planted in the processes of a sweep, each as the sitecustomize of a folder put on their PYTHONPATH.

The program's own files stay as they are: Python runs a sitecustomize before anything else.
"""

from pathlib import Path

# With the check for a newer attempt only the newest comes to commit: these defects show where it sees none.
_NO_FENCE = """
import sys
if "train" in sys.orig_argv:
    import repro.training.run_attempt
    repro.training.run_attempt.RunAttempt._check_not_superseded = lambda self: None
"""

RENAME_INSTEAD_OF_LINK = (
    """
import os
import repro.storage

class Renaming:
    def __getattr__(self, name):
        return getattr(os, name)

    def link(self, source, target):
        (os.rename if os.path.basename(source) == "record.json" else os.link)(source, target)

repro.storage.os = Renaming()
"""
    + _NO_FENCE
)

NO_VALIDATION_ON_READ = """
import json
import repro.records

def believe(text, where):
    content = json.loads(text)
    content.pop("sha256", None)
    return repro.records.RunRecord.model_validate_json(json.dumps(content))

repro.records.parse_record = believe
"""

OPTIMIZER_NOT_RESTORED = """
import sys
if "train" in sys.orig_argv:
    import torch
    torch.optim.SGD.load_state_dict = lambda self, state: None
"""

GENERATOR_SHARED_BY_RUNS = """
import sys
if "train" in sys.orig_argv:
    import torch
    import repro.training.seeding
    shared = torch.Generator().manual_seed(0)
    repro.training.seeding.generator = lambda seed, purpose, index=0: shared
"""

NO_DEATH_SIGNAL = """
import repro.signals
repro.signals.die_with_parent = lambda stop: None
"""

TRAINS_WITHOUT_LOCK = """
import repro.storage

locked = repro.storage.FileLock.acquire
repro.storage.FileLock.acquire = lambda self: self.path.name == "lock" or locked(self)
"""

REPLACES_WHATEVER_IS_THERE = (
    """
import repro.storage

compare_and_swap = repro.storage.commit_record
repro.storage.commit_record = lambda record, paths, attempt, replaces: compare_and_swap(
    record, paths, attempt, repro.storage.record_digest(paths.record)
)
"""
    + _NO_FENCE
)

STOP_IGNORED = """
import repro.signals
repro.signals.Stop.now = property(lambda self: False, lambda self, asked: None)
"""

INTERRUPTED_IS_FAILED = """
import repro.attempts

write = repro.attempts.write_attempt

def blame(folder, note):
    if note.kind is repro.attempts.Outcome.INTERRUPTED:
        note = note.model_copy(update={"outcome": "failed: stopped"})
    write(folder, note)

repro.attempts.write_attempt = blame
"""

DAMAGED_CHECKPOINT_IS_READ = """
import sys
if "train" in sys.orig_argv:
    import hashlib
    import types
    import repro.training.checkpoint

    class EqualToAll(bytes):
        def __ne__(self, other):
            return False

    class Sha256:
        digest_size = 32

        def __init__(self, content=b""):
            self.content = content

        def digest(self):
            return EqualToAll(hashlib.sha256(self.content).digest())

    repro.training.checkpoint.hashlib = types.SimpleNamespace(sha256=Sha256)
"""


def plant(defect: str, folder: Path) -> str:
    """Writes the defect below `folder`; what PYTHONPATH must begin with."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(defect)
    return str(folder)
