"""Audio in, genres out: the library behind the commands `reclass-plex` and `reclass-plexd`.

    from pathlib import Path
    from reclass_plex.config import EnsembleOptions
    from reclass_plex.ensemble import Ensemble
    from reclass_plex.pipeline import classify_file

    verdict, embeddings = classify_file(Path("song.flac"), Ensemble(EnsembleOptions()))

`pipeline` tells the whole story; README.md says what each module turns into what.
"""
