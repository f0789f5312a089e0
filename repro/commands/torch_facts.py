"""What torch says of itself and its devices, as JSON on stdout: `python -m repro.commands.torch_facts`.

`repro doctor` starts it as a process of its own, so that a torch that crashes while it is imported, or a
device that hangs, is something to report and not the end of the doctor.
"""

import json


def main() -> None:
    """Prints torch's versions, its architectures, and the name, capability and fault of each device."""
    import torch

    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            devices.append(
                {
                    "name": torch.cuda.get_device_name(index),
                    "capability": list(torch.cuda.get_device_capability(index)),
                    "fault": _fault(torch, index),
                }
            )
    import torchvision

    facts = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "architectures": torch.cuda.get_arch_list(),
        "available": torch.cuda.is_available(),
        "devices": devices,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    print(json.dumps(facts))


def _fault(torch, index: int) -> str | None:  # type: ignore[no-untyped-def]
    """Why a kernel cannot be run on the device; None where one was."""
    try:
        ones = torch.ones(4, device=f"cuda:{index}")
        total = (ones + ones).sum().item()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the doctor was asked to find
        return (str(error).strip() or repr(error)).splitlines()[0]
    return None if total == 8.0 else f"it added four ones and four ones to {total}"


if __name__ == "__main__":
    main()
