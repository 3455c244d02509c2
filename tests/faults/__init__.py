"""Fault injection: the real daemon on real files, hurt in every way, and judged by a checker that
shares no code with it. `benchmarks/fault_injection.py` runs it; docs/faults.md tells what came.

    music -> world (daemon, Plex stand-in, disks) <- people, faults
                        |
      ledger (what was done to each file) -> checker -> violations
"""
