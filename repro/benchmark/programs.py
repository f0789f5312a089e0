"""A benchmark's program in the process that was started for it, from its description to its steps."""

import os
from collections.abc import Callable
from functools import partial

import torch

from repro.benchmark.ours import OwnLoop
from repro.benchmark.processes import OURS, PLAIN, TUNED, Prepared, Program
from repro.benchmark.rates import wait
from repro.benchmark.rivals import RivalLoop
from repro.benchmark.subject import Subject, make_subject
from repro.benchmark.windows import Step
from repro.training.accelerations import Accelerations
from repro.training.loop import build
from repro.training.precision import Precision, choose_precision


def prepare(program: Program) -> tuple[Step, Callable[[], None], Prepared]:
    """Sets the process up and takes the first two steps: how to take one, how to wait for it, how it went."""
    device = torch.device(program.device)
    if program.threads is not None:
        torch.set_num_threads(program.threads)
    if program.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not program.deterministic
    subject = make_subject(program.run_id, program.config, program.image_size, program.data_dir)
    notes: list[str] = []
    loop = _loop(program, subject, device, notes)
    step = loop.start()
    step()  # the second step still fills caches
    finish = partial(wait, device)
    finish()
    return step, finish, Prepared(loop.preparing, tuple(notes))


def _loop(program: Program, subject: Subject, device: torch.device, notes: list[str]) -> OwnLoop | RivalLoop:
    if program.kind == PLAIN:
        return RivalLoop(subject, Precision("fp32", device, torch.contiguous_format), tuned=False)
    techniques = Accelerations.of(program.techniques) if program.kind == OURS else Accelerations()
    precision = used_precision(subject, choose_precision(device, program.precision), techniques)
    if program.kind == TUNED:
        return RivalLoop(subject, precision, tuned=True)
    return OwnLoop(subject, precision, techniques, program.runs, notes.append)


def used_precision(subject: Subject, precision: Precision, techniques: Accelerations) -> Precision:
    """The precision with the memory format that `techniques` train the subject's network in."""
    manifest = subject.data.manifest
    network, _ = build(subject.config, manifest.image_size, manifest.classes)
    return techniques.layout(precision.for_network(network))
