"""What a run is made of, kept in its `run.json`: with it alone a run is resumed or repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reclass_plex.errors import ConfigError, Unreadable, printable
from reclass_plex.files import naming_errors
from reclass_plex.training.approaches import Settings, find_approach
from reclass_plex.training.columns import select_columns
from reclass_plex.training.table import FeatureTable, check_finite, join_tables, keep, leave_out
from reclass_plex.training.table_csv import CsvSource, read_csv_table

RUN = "run.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Record):
    """A table: a folder of `reclass-plex extract`, or CSV files. Paths are full."""

    folder: Path | None = None
    features: Path | None = None
    labels: Path | None = None
    parents: Path | None = None
    name: str | None = None
    excerpt: str = "full"
    rate: int | Literal["native"] = "native"
    window_seconds: float = Field(default=30.0, gt=0)
    without_test: bool = False  # leave out the recordings of the published test part
    beside: tuple[Path, ...] = ()  # folders of tables whose features stand beside these
    common_with: tuple[Path, ...] = ()  # only recordings that all of them have, as the first lists
    columns: tuple[str, ...] = ()  # only these groups of columns
    without: tuple[str, ...] = ()  # all but these

    def read(self) -> tuple[FeatureTable, tuple[str, ...]]:
        """Return the table and remarks on it. Raises ConfigError or FileError."""
        table, remarks = self._read()
        if self.without_test:
            table = leave_out(table, "test")
        if self.beside or self.common_with:
            table = self._among_others(table)
        if self.columns:
            table = select_columns(table, self.columns)
        if self.without:
            table = select_columns(table, self.without, without=True)
        return table, remarks

    def _among_others(self, table: FeatureTable) -> FeatureTable:
        from reclass_plex.training.extraction import read_manifest, read_table

        lists = [[one.key for one in read_manifest(at).recordings] for at in self.common_with]
        if self.beside:
            table = join_tables([table, *(read_table(at) for at in self.beside)])
        if not lists:
            return table
        there = set(table.keys).intersection(*lists)
        if not there:
            raise ConfigError(f"table {table.name}: no recording is in all of the tables")
        return keep(table, [key for key in lists[0] if key in there])

    def _read(self) -> tuple[FeatureTable, tuple[str, ...]]:
        if self.folder is not None:
            from reclass_plex.training.extraction import read_table

            return read_table(self.folder), ()
        if self.features is None:
            raise ConfigError("a table needs a folder or a file: --table or --csv")
        return read_csv_table(
            CsvSource(
                self.features, self.labels, self.parents, self.name,
                self.excerpt, self.rate, self.window_seconds,
            )
        )  # fmt: skip


class RunConfig(_Record):
    """A whole training run. `threads` is kept because sums depend on how they are shared out."""

    version: Literal[1] = 1
    approach: str
    settings: Settings
    sources: tuple[Source, ...] = Field(min_length=1)
    fingerprint: str  # of the table
    protocol: Literal["auto", "split", "folds"] = "auto"
    folds: int = Field(default=5, ge=2, le=100)
    device: Literal["cpu", "cuda"]
    threads: int = Field(gt=0)
    models: Path | None = None  # folder of fetched models; None is the usual one
    licence: str | None = None  # of the data, where the table does not say it
    started: str  # date
    command: str
    versions: dict[str, str]


def read_config(folder: Path) -> RunConfig:
    """Read a run's configuration. Raises ConfigError or FileError, naming the file."""
    path = folder / RUN
    if folder.is_dir() and not path.exists():
        raise ConfigError(f"{printable(folder)}: is no training run: it has no {RUN}")
    try:
        with naming_errors(path, writing=False):
            return RunConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or RUN
        raise Unreadable(path, f"{key}: {first['msg']}") from None


def read_tables(approach: str, sources: tuple[Source, ...]) -> tuple[FeatureTable, tuple[str, ...]]:
    """Return the one table that a run reads, several joined, and remarks. Raises ReclassError."""
    joins = find_approach(approach).joins
    if joins != (len(sources) > 1):
        wanted = "two tables or more" if joins else "one table"
        raise ConfigError(f"--approach {approach} reads {wanted}, not {len(sources)}")
    tables: list[FeatureTable] = []
    remarks: list[str] = []
    for source in sources:
        table, said = source.read()
        check_finite(table)
        tables.append(table)
        remarks += said
    return (join_tables(tables) if joins else tables[0]), tuple(remarks)


def installed_versions() -> dict[str, str]:
    """Return the versions of what computes a fit's bits."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "numpy", "scikit-learn", "xgboost", "xgboost-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
