"""`reclass-plexd`: reads the configuration, sets up log and signals, and runs the daemon."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the daemon, or with --worker its worker; return the exit status."""
    if sys.argv[1:] == ["--worker"]:
        from service import work

        return work.main()
    return _run_daemon()


def _run_daemon() -> int:
    import argparse
    import logging
    import os
    import signal
    from pathlib import Path

    from reclass_plex.config import config_path, load_config
    from reclass_plex.credentials import take_from_environment
    from reclass_plex.errors import ConfigError, ReclassError, StoreDamaged, StoreNewer
    from service import heap
    from service.logs import set_up_log

    parser = argparse.ArgumentParser(
        prog="reclass-plexd", description="Tags new music by itself, in the file and in Plex."
    )
    parser.add_argument("--config", type=Path, help="configuration file")
    parser.add_argument("--verbose", action="store_true", help="log more")
    options = parser.parse_args()
    set_up_log(logging.DEBUG if options.verbose else logging.INFO)
    heap.keep_small()
    take_from_environment()
    try:
        config = load_config(options.config)
        file = (options.config or config_path()).absolute()

        from service.daemon import Daemon

        daemon = Daemon(config, file if file.exists() else None)
        signal.signal(signal.SIGTERM, daemon.stop)
        signal.signal(signal.SIGINT, daemon.stop)
        signal.signal(signal.SIGHUP, daemon.ask_reload)
        daemon.run()
    except ConfigError as error:
        logging.error("%s", error)
        return os.EX_CONFIG
    except (StoreDamaged, StoreNewer) as error:  # no restart mends that: a person must
        from service.notices import tell_at_once

        logging.error("%s", error)
        tell_at_once(config.notify, file, str(error))
        return os.EX_DATAERR
    except ReclassError as error:
        logging.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
