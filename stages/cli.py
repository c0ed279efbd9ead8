"""The `ris` command line. Each command imports its module when it is called: `ris --help` answers at once."""

import sys
from io import TextIOWrapper

import stages.cli_chain
import stages.cli_tools  # noqa: F401 - importing them registers their commands, in this order
from stages.register import app


def main() -> None:
    """Runs `ris`: exit 0 done, 1 failed, 2 wrong usage, 130 or 143 stopped by a signal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal without UTF-8 must not fail after the work is done
            stream.reconfigure(errors="replace")
    if any(word.startswith(("--local-rank", "--local_rank")) for word in sys.argv[1:]):
        print("ris: torch.distributed.launch is not supported: start the processes by torchrun", file=sys.stderr)
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
