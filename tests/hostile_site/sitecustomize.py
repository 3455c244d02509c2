"""On PYTHONPATH, it makes every process fall that opens a file of a certain name: a codec's fault.

Python imports a module of this name by itself. No real file is known that does this to FFmpeg.
"""

import os
import signal
import sys
import time


def _fall(event: str, args: tuple[object, ...]) -> None:
    if event != "open" or not isinstance(args[0], (str, os.PathLike)):
        return
    name = os.path.basename(os.fspath(args[0]))
    if name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    elif name.startswith("circle"):
        while True:
            pass
    elif name.startswith("stall"):
        signal.pause()
    elif name.startswith("greedy"):
        held = [bytearray(64 << 20)]
        while True:
            held.append(held[0] * 1)
    elif name.startswith("fault"):
        raise ZeroDivisionError("of our own making")


sys.addaudithook(_fall)
while time.process_time() < float(os.environ.get("HOSTILE_START", "0")):
    pass  # it takes as long to be there
