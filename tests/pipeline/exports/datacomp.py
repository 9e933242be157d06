"""How DataComp itself reads a subset file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import webdataset


def as_datacomp(subset_file: Path, tars: Sequence[Path]) -> Iterator[str]:
    """What DataComp's resharder takes: `load_subset` and `copy_worker` of its resharder.py."""
    u16 = np.dtype("u8,u8")
    with subset_file.open("rb") as file:
        assert file.read(6) == b"\x93NUMPY"
    subset = np.load(subset_file, mmap_mode="r")
    assert subset.dtype == u16
    assert sorted(subset.tolist()) == subset.tolist()
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(list(map(str, tars))), webdataset.tarfile_to_samples()
    )
    for sample in pipeline:
        key_str = json.loads(sample["json"]).get("uid")
        key_u16 = np.array([divmod(int(key_str, 16), 2**64)], u16)[0]
        a = np.searchsorted(subset, key_u16, "left")
        b = np.searchsorted(subset, key_u16, "right")
        for _ in range(b - a):
            yield sample["__key__"]
