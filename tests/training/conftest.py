"""One uninterrupted pretraining run that other runs are compared with."""

import contextlib

import pytest

from .small_runs import settings, write_sources


@contextlib.contextmanager
def _a_fresh_cpu():
    """No accelerator, and nothing left of what another test told Accelerate."""
    state = pytest.importorskip("accelerate.state").AcceleratorState
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        state._reset_state(reset_partial_state=True)
        yield
    state._reset_state(reset_partial_state=True)


@pytest.fixture
def on_the_cpu():
    """For runs in this process."""
    with _a_fresh_cpu():
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """With the sources under `data`, and an uninterrupted run of one process under `straight`."""
    pytest.importorskip("datasets")
    from walrus_hf.training.loop import pretrain

    folder = tmp_path_factory.mktemp("pretraining")
    write_sources(folder / "data")
    with _a_fresh_cpu():
        assert pretrain(settings(folder / "data", folder / "straight")) == folder / "straight" / "model"
    return folder
