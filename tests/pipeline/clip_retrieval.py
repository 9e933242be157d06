"""clip-retrieval's output folder, as its writer makes it (`clip_inference/writer.py`)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]


def write_partition(
    folder: Path,
    index: int,
    partitions: int,
    rows: Array,
    keys: Sequence[str],
    metadata: Sequence[dict[str, Any]] | None = None,
) -> None:
    """Write what clip-retrieval writes for one partition of several.

    Args:
        folder: its output folder.
        index: the partition.
        partitions: how many there are; numbers are padded to its digits.
        rows: (n, d) float16.
        keys: `image_path` of each row.
        metadata: the JSON of each sample, if metadata were asked for.
    """
    number = str(index).zfill(int(math.log10(partitions)) + 1)
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    np.save(folder / f"img_emb/img_emb_{number}.npy", rows)
    table = pd.DataFrame({"image_path": list(keys)})
    if metadata is not None:
        parsed = pd.json_normalize([json.loads(json.dumps(one)) for one in metadata])
        table = table.join(parsed)
    table.to_parquet(folder / f"metadata/metadata_{number}.parquet")
