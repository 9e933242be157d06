"""How fast work gets done at a site: what a profile may say in `speeds`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.forecast.amounts import Amount, unknown

SPEEDS = {
    "embed": ("tflops", "images_per_second"),
    "cluster": ("tflops",),
    "scan": ("tflops",),
    "mask": ("rows_per_second",),
    "train": ("tflops", "samples_per_second"),
    "evaluate": ("tflops", "images_per_second"),
    "decode": ("images_per_second",),
    "files": ("read_gb", "write_gb", "read_gb_in_all", "write_gb_in_all"),
}
"""Section -> keys. Of a device, that is a GPU, or a core where jobs have no GPU: `tflops`, 10^12
operations a second, or so many images, samples or rows of the pool. `decode`: of a core. `files`:
10^9 bytes a second, of a job and of the whole file system."""
_TERA, _GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Speeds:
    """What a profile says."""

    sections: Mapping[str, Mapping[str, Any]]

    def value(self, section: str, key: str) -> float | None:
        """A speed, if it is known."""
        found = self.sections.get(section, {}).get(key)
        return None if found is None else float(found)

    def source(self, section: str) -> str:
        """Where the speeds of a section are from; empty if the profile does not say."""
        return str(self.sections.get(section, {}).get("source", ""))

    def device_seconds(self, section: str, units: Amount, flops: Amount) -> Amount:
        """Seconds of one device.

        Args:
            section: whose speed counts.
            units: images, samples or rows.
            flops: their operations.
        """
        keys = SPEEDS[section]
        each = next((key for key in keys if key.endswith("_per_second")), "")
        if each and (rate := self.value(section, each)):
            return units / rate
        if "tflops" in keys and (tera := self.value(section, "tflops")):
            return flops / (tera * _TERA)
        return Amount(0, flops.missing or frozenset({f"speeds.{section}.{keys[0]}"}))

    def decoding_seconds(self, images: Amount) -> Amount:
        """Seconds of one core to decode images."""
        rate = self.value("decode", "images_per_second")
        return images / rate if rate else unknown("speeds.decode.images_per_second")

    def file_seconds(self, what: str, size: Amount) -> Amount:
        """Seconds to read or write bytes.

        Args:
            what: a key of `files`.
            size: in bytes.
        """
        rate = self.value("files", what)
        return size / (rate * _GIGA) if rate else unknown(f"speeds.files.{what}")
