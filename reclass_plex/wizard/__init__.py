"""`reclass-plex init`: a few questions, then a configuration.

`questions` asks and writes, `plex` asks about the server, `folders` and `path_guess` find its
libraries on this machine, `asking` is how questions reach the user.
"""

from reclass_plex.wizard.asking import Ask, Terminal, Unattended
from reclass_plex.wizard.plex import PlexGiven
from reclass_plex.wizard.questions import Given, Written, config_text, run_init

__all__ = [
    "Ask",
    "Given",
    "PlexGiven",
    "Terminal",
    "Unattended",
    "Written",
    "config_text",
    "run_init",
]
