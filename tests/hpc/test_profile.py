from __future__ import annotations

from pathlib import Path

import pytest

from hpc.profile import ProfileError, load_profile

STAGES = ("embed", "train")


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    return path


def test_a_stage_has_the_defaults_and_its_own_values(tmp_path: Path) -> None:
    text = "defaults: {cpus: 2}\nstages: {train: {gpus: 4, memory_gb: 1.5}}\nenvironment: {A: 1}"
    profile = load_profile(_write(tmp_path, text), STAGES)
    assert (profile.resources("train").cpus, profile.resources("train").gpus) == (2, 4)
    assert profile.resources("embed").gpus == 0
    assert profile.environment == {"A": "1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage: {}", "stage: unknown key; did you mean 'stages'?"),
        ("stages: {trian: {}}", "stages.trian: unknown key; did you mean 'train'?"),
        ("stages: {train: {gpu: 1}}", "stages.train.gpu: unknown key; did you mean 'gpus'?"),
        ("defaults: {cpus: 0}", "defaults.cpus: expected a whole number above 0, found 0"),
        ("defaults: {cpus: two}", "defaults.cpus: expected a whole number above 0, found 'two'"),
        ("defaults: {gpus: -1}", "defaults.gpus: expected a whole number of at least 0, found -1"),
        ("defaults: {memory_gb: true}", "defaults.memory_gb: expected a number above 0"),
        ("stages: {train: 3}", "stages.train: expected a mapping, found 3"),
        ("stages: [train]", "stages: expected a mapping, found ['train']"),
        ("- a", "expected a mapping, found ['a']"),
        ("a: b: c", "not valid YAML"),
    ],
)
def test_a_bad_profile_says_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ProfileError) as error:
        load_profile(_write(tmp_path, text), STAGES)
    assert message in str(error.value)
    assert "site.yaml" in str(error.value)
