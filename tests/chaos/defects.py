"""Defects planted in the processes of a sweep, each as the sitecustomize of a folder put on their PYTHONPATH.

The program's own files stay as they are: Python runs a sitecustomize before anything else.
"""

from pathlib import Path

RENAME_INSTEAD_OF_LINK = """
import os
import repro.storage

class Renaming:
    def __getattr__(self, name):
        return getattr(os, name)

    def link(self, source, target):
        (os.rename if os.path.basename(source) == "record.json" else os.link)(source, target)

repro.storage.os = Renaming()
"""

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
import repro.commands.stop
import repro.scheduling.guardian
repro.commands.stop.die_with_parent = lambda stop: None
repro.scheduling.guardian.guarded_environment = lambda scheduler: {}
"""


def plant(defect: str, folder: Path) -> str:
    """Writes the defect below `folder`; what PYTHONPATH must begin with."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(defect)
    return str(folder)
