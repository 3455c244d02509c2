"""Features that are computed, not learned: the 518 of the FMA dataset."""

from reclass_plex.features.filters import MINIMUM_RATE
from reclass_plex.features.fma import COLUMN_NAMES, COLUMNS, extract_fma_features

__all__ = ["COLUMNS", "COLUMN_NAMES", "MINIMUM_RATE", "extract_fma_features"]
