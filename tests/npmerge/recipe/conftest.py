"""Folders that stand for models."""

import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Models are found here; they are empty, so that whatever opens one fails."""
    for name in ("base", "a", "b", "c", "a+b", "a+b+c", "a@main", "models"):
        (tmp_path / name).mkdir()
    (tmp_path / "models" / "llama-7b").mkdir()
    (tmp_path / "models" / "llama-7b" / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path
