"""Model files: those in the package, and those that the user fetches.

`bundled` are in the package. `catalogue` says what can be fetched, `fetch` and `offline` bring it
to `models_folder()`, `installed` finds and verifies it there. Fetching needs HTTP, converting
needs torch: both are imported when it comes to that.
"""

from reclass_plex.models.bundled import (
    DATA,
    SUMS,
    ModelFile,
    check_shapes,
    list_models,
    load_tensors,
    read_sums,
    write_sums,
)
from reclass_plex.models.catalogue import (
    CATALOGUE,
    Model,
    find_in_catalogue,
    load_catalogue,
    models_folder,
)
from reclass_plex.models.installed import (
    Manifest,
    find_model,
    read_manifest,
    remove_model,
    verify_model,
    why_missing,
)

__all__ = [
    "CATALOGUE",
    "DATA",
    "SUMS",
    "Manifest",
    "Model",
    "ModelFile",
    "check_shapes",
    "find_in_catalogue",
    "find_model",
    "list_models",
    "load_catalogue",
    "load_tensors",
    "models_folder",
    "read_manifest",
    "read_sums",
    "remove_model",
    "verify_model",
    "why_missing",
    "write_sums",
]
