"""`python -m repro` is the command `repro`; executors launch it so, whatever the PATH holds."""

from repro.cli import main

if __name__ == "__main__":
    main(prog_name="repro")
