"""`reclass-plex`, and `python -m reclass_plex`: set the collector, then hand over to the commands.

A run makes many small objects that live on, and few cycles: collecting rarely makes a known
library a tenth faster, and it has to be said before the imports, which make most of them.
"""

import gc

gc.set_threshold(100_000)

from reclass_plex.cli import main  # noqa: E402 - the reason for this module

if __name__ == "__main__":
    main()
