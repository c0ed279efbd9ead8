"""The `ris` command line. Each command imports its module when it is called: `ris --help` answers at once."""

import stages.cli_chain
import stages.cli_tools  # noqa: F401 - importing them registers their commands, in this order
from stages.register import app


def main() -> None:
    """Runs `ris`: exit 0 done, 1 failed, 2 wrong usage, 130 or 143 stopped by a signal."""
    app()


if __name__ == "__main__":
    main()
