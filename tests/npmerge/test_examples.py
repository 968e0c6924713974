import pytest

from tests import examples

PUBLIC = {
    f"{package}.{name}": thing
    for package in ("npmerge", "npmerge.checkpoint")
    for name, thing in examples.public(package).items()
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_of_every_public_name_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples.check(name, PUBLIC[name])
