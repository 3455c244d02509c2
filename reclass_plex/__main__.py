"""`reclass-plex`, and `python -m reclass_plex`: set the collector, then hand over to the commands.

A run makes many small objects that live on, and few cycles: collecting rarely makes a known
library a tenth faster, and it has to be said before the imports, which make most of them.
"""

import gc

gc.set_threshold(100_000)

from reclass_plex import cli  # noqa: E402 - the reason for this module
from reclass_plex.credentials import take_from_environment  # noqa: E402


def main() -> None:
    """Run the command; no process that it starts is given a secret."""
    take_from_environment()
    cli.main()


if __name__ == "__main__":
    main()
