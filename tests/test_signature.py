"""What marks a record as made by older code, and what leaves it alone."""

import shutil
from pathlib import Path

import pytest
from smoke_project import ROOT, edit, forget_code

from repro import signature
from repro.config import RunConfig
from repro.signature import code_hash, config_hash


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A copy of the package, edited by one test after the other; `code_hash` reads it instead of the real one."""
    folder = tmp_path_factory.mktemp("package")
    copy = Path(shutil.copytree(ROOT / "repro", folder / "repro", ignore=shutil.ignore_patterns("*.pyc")))

    def module_file(module: str) -> Path | None:
        base = folder.joinpath(*module.split("."))
        candidates = (base.parent / f"{base.name}.py", base / "__init__.py")
        return next((path for path in candidates if path.is_file()), None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signature, "module_file", module_file)
        patch.setattr("repro.plugins.module_file", module_file)
        yield copy
    forget_code()


def config_of(registry, cell: str, seed: int = 0) -> RunConfig:
    return registry.config(registry.parse(f"{cell}/seed{seed}"), registry.preset("paper"))


CELLS = ("cifar100/resnet18/scaled-bn-m1", "cifar100/resnet18/cross-entropy", "cifar100/vgg16/scaled-bn-m1")


def hashes(registry) -> list[str]:
    forget_code()
    return [code_hash(config_of(registry, cell)) for cell in CELLS]


@pytest.fixture(scope="module")
def before(registry, package) -> list[str]:
    return hashes(registry)


LINE = ("\n\n\n", "\n\n\nX = 1\n")
OF_NO_RUN = {
    "losses/logit_norm.py": LINE,
    "plugins.py": LINE,
    "scheduling/plan.py": LINE,
    "losses/scaled_bn.py": ("\n\n\n", "\n\n\n# a remark\n"),
    "training/optim.py": ('"""Sets the lr', '"""Puts the lr'),
}


@pytest.mark.parametrize(
    ("edits", "changed"),
    [
        ({"losses/scaled_bn.py": LINE}, [True, False, True]),
        ({"losses/cross_entropy.py": LINE}, [False, True, False]),
        ({"losses/base.py": LINE}, [True, True, True]),
        ({"training/loop.py": LINE}, [True, True, True]),
        ({"models/resnet.py": LINE}, [True, True, False]),
        ({"models/vgg.py": LINE}, [False, False, True]),
        ({"data/loader.py": LINE}, [True, True, True]),
        ({"training/optim.py": ('group["lr"] = lr', 'group["lr"] = 2 * lr')}, [True, True, True]),
        (OF_NO_RUN, [False, False, False]),
    ],
)
def test_code_concerns_the_runs_that_use_it_and_remarks_concern_none(
    registry, package, before, edits, changed
):
    whole = {package / file: (package / file).read_text() for file in edits}
    for file, (old, new) in edits.items():
        edit(package / file, old, new)
    after = hashes(registry)
    for path, text in whole.items():
        path.write_text(text)
    assert [a != b for a, b in zip(before, after, strict=True)] == changed


@pytest.mark.parametrize(
    ("cell", "field", "departure"),
    [
        ("cifar100/resnet18/cross-entropy", "weight_decay_on", "weights"),
        ("cifar100/resnet18/scaled-bn-m1", "statistics", "full-batches"),
        ("cifar100/resnet18/cross-entropy", "momentum_reset", "true"),
        ("cifar100/resnet18/pedcc-s7.5-m0.35", "embedding", "linear-bn"),
    ],
)
def test_a_field_that_came_later_is_not_part_of_a_recipe_that_leaves_it_alone(
    registry, cell, field, departure
):
    """The config of a record made before the field existed has the hash of today's."""
    config = config_of(registry, cell)
    earlier = config.model_dump(mode="json")
    for part in (earlier["recipe"], earlier["loss_parameters"]):
        part.pop(field, None)
    assert config_hash(RunConfig.model_validate(earlier)) == config_hash(config)
    assert config_hash(config_of(registry, f"{cell}+{field}={departure}")) != config_hash(config)


@pytest.mark.parametrize(
    ("cell", "seed", "sha256"),
    [
        ("cifar100/vgg16/cross-entropy", 0, "fa3e82aa63f12943e68a9183279b267c80d418f6d6b3063311f2a03670111fbc"),
        ("tiny-imagenet/resnet18/scaled-bn-m1", 1, "d76c49abc4b60071bd8fa452bcb63407ec6d5ef378842105115c1941ac34c9a6"),
        ("facescrub/resnet50/pedcc-s7.5-m0.35", 2, "e8521b56fd665426b5b7bf92a48728e2f574514090c8edabc8051fb8a1c6d2a5"),
    ],
)  # fmt: skip
def test_the_recipe_of_a_paper_run_keeps_its_hash_for_ever(registry, cell, seed, sha256):
    """Where it changes, every record of the preset `paper` is void: weeks of a GPU."""
    assert config_hash(config_of(registry, cell, seed)) == sha256
