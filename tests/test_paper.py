"""The package names no paper: what it says of one comes from `experiments/paper.toml`."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
OF_THE_PAPER = re.compile(
    r"Zhu|2020\b|scaled[ -]?bn\b|scalable|our loss|three runs|\b3 runs|tables? [123]\b|figures? [123]\b|\bEq\. \d",
    re.IGNORECASE,
)
# The loss modules by name, and the class of their parameters.
LISTED = re.compile(r'"scaled-bn": (ScaledBNParameters|"repro\.losses\.scaled_bn:ScaledBN"),')


def test_nothing_outside_losses_and_networks_names_the_paper():
    found = []
    for path in sorted((ROOT / "repro").rglob("*")):
        part = path.relative_to(ROOT / "repro").parts[0]
        if path.suffix in (".py", ".html", ".js", ".css") and part not in ("losses", "models"):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if OF_THE_PAPER.search(LISTED.sub("", line)):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)
