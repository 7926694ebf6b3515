import pytest


@pytest.fixture(autouse=True)
def manifests_of_their_own(tmp_path_factory, monkeypatch):
    """No test finds what another one indexed, or leaves anything in the user's cache."""
    monkeypatch.setenv("WALRUS_HF_CACHE", str(tmp_path_factory.mktemp("manifests")))
