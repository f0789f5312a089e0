"""The project with a smoke preset of a second per run: most tests need a run, not one that learns."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# 15 steps on 160 images instead of the preset's own recipe.
_SHORT_SMOKE = """[presets.smoke.recipe]
data = "digits"
classes = 10
images_per_class = 16
test_images_per_class = 8
batch_size = 32
epochs = 3
lr_drops = [1, 2]
width = 0.0625
"""


def _short_project() -> Path:
    """The project's experiments with a shorter smoke preset, in a folder that every process of a test finds."""
    project = ROOT / ".pytest_cache" / "short-smoke"
    target = project / "experiments"
    target.mkdir(parents=True, exist_ok=True)
    texts = {path.name: path.read_text() for path in (ROOT / "experiments").glob("*.toml")}
    before, marker, _ = texts["presets.toml"].partition("[presets.smoke.recipe]")
    assert marker
    texts["presets.toml"] = before + _SHORT_SMOKE
    for path in target.iterdir():
        if path.name not in texts:
            path.unlink(missing_ok=True)
    for name, text in texts.items():
        path = target / name
        if not path.is_file() or path.read_text() != text:
            # Other processes read it meanwhile: they get the old file or the new one, whole.
            new = project / f"{name}.{os.getpid()}"
            new.write_text(text)
            new.replace(path)
    return project


PROJECT = _short_project()
