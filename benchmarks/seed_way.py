"""The way that this project began with, for comparison: `python seed_way.py FILE ...`

librosa loads each file whole, librosa computes the FMA features of all of it, a head says the
genre; one track after another, and program and model are loaded anew for the run. Only what that
way cannot do without is here: it writes nothing and remembers nothing. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def main() -> None:
    """Say the genre of each file; print seconds, and processor seconds, of start and tracks."""
    began, cpu = time.perf_counter(), time.process_time()
    import librosa
    import torch
    from fma_reference import reference_features

    from reclass_plex.profiles import find_profile
    from reclass_plex.stage_heads import load_stage_heads

    profile = find_profile("default", "cpu", None)
    heads, _ = load_stage_heads(profile)
    stage = next(stage for stage in profile.spec.stages if stage.features == "fma518")
    head = heads[stage.name]
    start = [time.perf_counter() - began, time.process_time() - cpu]
    tracks = []
    for name in sys.argv[1:]:
        began, cpu = time.perf_counter(), time.process_time()
        samples, rate = librosa.load(name, sr=22_050, mono=True)
        features = torch.from_numpy(reference_features(samples, int(rate)))[None]
        genre = head.card.genres[int(head.predict(features.float()).argmax())]
        tracks.append([time.perf_counter() - began, time.process_time() - cpu])
        print(f"{Path(name).name}: {genre}, {tracks[-1][0]:.1f} s", file=sys.stderr)
    print(json.dumps({"start": start, "tracks": tracks}))


if __name__ == "__main__":
    main()
