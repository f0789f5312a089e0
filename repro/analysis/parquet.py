"""Tables as Parquet, typed and compressed, for pandas and other readers; needs the extra `parquet`."""

import io
from collections.abc import Sequence
from typing import Any

from repro.analysis.aggregate import CellSummary
from repro.analysis.cell_verdict import Judged
from repro.analysis.tidy import CSV_COLUMNS, cell_values
from repro.config import Preset
from repro.errors import SetupError
from repro.registry import Registry

_WHOLE = ("n", "expected", "diverged")
_WORDS = (
    "preset",
    "table",
    "dataset",
    "network",
    "loss",
    "label",
    "axes",
    "not_counted",
    "notes",
    "verdict",
    "so_far",
)


def to_parquet(
    summaries: Sequence[CellSummary], registry: Registry, preset: Preset, judged: Judged | None = None
) -> bytes:
    """A row a cell with the columns of the CSV; seeds and accuracies are lists, a number that is not is null.

    The rules' file and sha256 are in the schema's metadata. Raises SetupError without pyarrow.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise SetupError(
            "Parquet needs pyarrow, which is not installed: pip install 'scaled-bn-repro[parquet]'"
        ) from None
    types: dict[str, Any] = {
        **dict.fromkeys(CSV_COLUMNS, pa.float64()),
        **dict.fromkeys(_WHOLE, pa.int64()),
        **dict.fromkeys(_WORDS, pa.string()),
        "seeds": pa.list_(pa.int64()),
        "accuracies": pa.list_(pa.float64()),
        "best_accuracies": pa.list_(pa.float64()),
    }
    metadata = {"rules": judged.rules.place, "rules_sha256": judged.rules.sha256} if judged else None
    schema = pa.schema([(name, types[name]) for name in CSV_COLUMNS], metadata=metadata)
    rows = [cell_values(summary, registry, preset, judged) for summary in summaries]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
    return file.getvalue()
