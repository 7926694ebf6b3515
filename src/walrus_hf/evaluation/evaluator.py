"""Evaluate a model on trajectories: read, forecast and score step by step, a batch of trajectories at a time.

Memory holds a batch of contexts, a chunk of the truth and one frame of each forecast, however many trajectories and
steps there are. What is finished is written to `partial/`, so an evaluation that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..fields import Trajectory
from ..metrics import hidden_line, is_hidden
from ..model_card import RESULTS_FORMAT
from ..pipeline_walrus import WalrusPipeline
from .baselines import load_baseline
from .folder import EvaluationFolder
from .forecasters import Forecaster, Frame, TrainedForecaster, WalrusForecaster, describe_model, predicted_frames
from .kept_forecasts import KeptForecast
from .protocol import GROUP, Protocol
from .published import published_for
from .results import Record, rows_of, scenario_results, versions
from .scoring import Scores, TrajectoryGrid, TruthFrame
from .sources import EvaluatedScenario, EvaluatedTrajectory, digest, open_scenarios

MODEL, PERSISTENCE = "model", "persistence"
PUBLISHED_NOTE = (
    "published numbers are of models fine-tuned on this scenario, with window 1 over all possible starts "
    "(published_results.json says more)"
)
# How the frames of a batch arrive: one frame, or the reason why there is none, for each trajectory.
Frames = Iterator[Sequence[Frame | str]]


def evaluate(
    model: WalrusPipeline,
    data: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike | None = None,
    protocol: Protocol | None = None,
    baselines: Mapping[str, Forecaster] | None = None,
    *,
    model_name: str | None = None,
    base_path: str | os.PathLike | None = None,
    batch_size: int = 1,
    workers: int = 0,
    kept_forecasts: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Score forecasts of all trajectories of some data beside persistence, and write a folder of results.

    Args:
        model: a pipeline.
        data: files, folders, URLs, manifests or names of scenarios (`walrus_hf.data.SCENARIOS`).
        output: folder to write; None writes nothing.
        protocol: what is measured; None is the published one.
        baselines: name -> anything with `predict(context, steps)`, such as `load_baseline` gives.
        model_name: what to call the model in the results.
        base_path: folder or URL that holds scenarios as `<name>/data/<split>`, instead of the Hub.
        batch_size: trajectories that are forecast together, at most 8. Sums are rounded in another order.
        workers: threads that read ahead; no digit depends on them.
        kept_forecasts: forecasts of the first so many trajectories of each scenario are written for pictures.
        overwrite: replace earlier results, and start anew where the folder holds a part of another evaluation.
        progress: show a bar.

    Returns:
        The content of results.json (README.md), numbers that are not finite included.

    Raises:
        FileExistsError: the folder holds results already, or a part of an evaluation with other settings.
        ValueError, OSError: data that are not there, `output` among them, or arguments that make no sense. Single
            trajectories that cannot be used are left out with a note instead.
        ImportError: a folder is to be written and the extra `eval` is not installed.
    """
    if not 1 <= batch_size <= GROUP:
        raise ValueError(f"batch_size: expected 1 to {GROUP}, found {batch_size}")
    if min(workers, kept_forecasts) < 0:
        raise ValueError(f"workers and kept_forecasts: expected 0 or more, found {workers} and {kept_forecasts}")
    protocol = protocol or Protocol()
    given = {PERSISTENCE: load_baseline(PERSISTENCE), **(baselines or {})}
    if MODEL in given:
        raise ValueError(f"baselines: expected other names than {MODEL!r}, which is the model's own")
    if protocol.ensemble_size > 1 and find_spec("scoringrules") is None:
        raise ImportError("scores of ensembles need the extra `eval`: pip install 'walrus-hf[eval]'")
    jitter = model.processor.jitter if protocol.jitter is None else protocol.jitter
    if protocol.ensemble_size > 1 and not jitter:
        raise ValueError("ensemble_size: without jitter all members are equal; switch jitter on or ask for one")
    protocol = dataclasses.replace(protocol, jitter=jitter)
    sources = [data] if isinstance(data, str | os.PathLike) else list(data)
    with contextlib.ExitStack() as stack:
        temporary = output is None
        folder = EvaluationFolder(stack.enter_context(TemporaryDirectory()) if output is None else output, overwrite)
        if temporary:
            kept_forecasts = 0
        else:
            folder.require_packages()
        scenarios = open_scenarios(sources, protocol, base_path)
        for scenario in () if temporary else scenarios:
            folder.refuse_inside(scenario)
        about = describe_model(model_name or model.model.name_or_path or "walrus", model)
        settings = {
            "format": RESULTS_FORMAT, "versions": versions(), "protocol": protocol.to_json(), "model": about,
            "baselines": {name: _kind(baseline) for name, baseline in given.items()}, "kept_forecasts": kept_forecasts,
            "data": [scenario.identity() for scenario in scenarios],
        }  # fmt: skip
        folder.begin(settings)
        run = _Run(model, protocol, given, folder, kept_forecasts)
        total = sum(len(scenario.trajectories) for scenario in scenarios)
        with tqdm(total=total, desc="evaluate", unit="trajectory", disable=not progress) as bar:
            for scenario in scenarios:
                run.scenario(scenario, batch_size, workers, bar)
        results = {
            "format": RESULTS_FORMAT, "protocol": settings["protocol"], "model": about,
            "versions": settings["versions"],
            "device": str(next(model.model.parameters()).device),
            "scenarios": {s.name: _summary(s, folder, protocol) for s in scenarios},
            "forecast_files": folder.forecast_files(),
        }  # fmt: skip
        if not temporary:
            folder.finish(results, (rows_of(s.name, s.source, folder.records(s.name)) for s in scenarios))
    return results


def _kind(baseline: Forecaster) -> str:
    learnt = f" {baseline.fingerprint()}" if isinstance(baseline, TrainedForecaster) else ""
    return f"{type(baseline).__module__}.{type(baseline).__qualname__}{learnt}"


def _summary(scenario: EvaluatedScenario, folder: EvaluationFolder, protocol: Protocol) -> dict[str, Any]:
    facts = {**scenario.describe(), "notes": scenario.notes}
    found = scenario_results(facts, folder.records(scenario.name), protocol)
    published = []
    if scenario.scenario is not None and protocol.frame_stride == 1:
        published = published_for(scenario.scenario.name)
    if any(entry["window"] in protocol.windows for entry in published):
        found["notes"] = [*found["notes"], PUBLISHED_NOTE]
    return {**found, "published": published}


class _Run:
    """What stays the same from scenario to scenario."""

    def __init__(
        self,
        pipe: WalrusPipeline,
        protocol: Protocol,
        baselines: Mapping[str, Forecaster],
        folder: EvaluationFolder,
        kept_forecasts: int,
    ) -> None:
        self.pipe, self.protocol, self.baselines = pipe, protocol, baselines
        self.folder, self.kept_forecasts = folder, kept_forecasts

    def scenario(self, data: EvaluatedScenario, batch_size: int, workers: int, bar: tqdm) -> None:
        """Forecast what is not finished yet."""
        protocol = self.protocol
        walrus = WalrusForecaster(
            self.pipe, data.scenario, protocol.ensemble_size, protocol.jitter, protocol.tokens_per_axis,
            protocol.frame_stride,
        )  # fmt: skip
        done = self.folder.done(data.name)
        bar.update(len(done))
        batches = list(data.batches(batch_size, done))
        stream = read_ahead(_reads(data, batches), workers)
        for batch in batches:
            records = self._batch(data, walrus, batch, stream)
            for trajectory, record in zip(batch, records):
                self.folder.save(data.name, trajectory.number, record)
                bar.update()

    def _batch(
        self,
        data: EvaluatedScenario,
        walrus: WalrusForecaster,
        batch: Sequence[EvaluatedTrajectory],
        stream: Iterator[Any],
    ) -> list[Record]:
        """Records of alike trajectories. The stream gives their contexts, then chunks of their truth."""
        rows: list[_Row] = []
        failed: dict[int, str] = {}
        for trajectory, context in zip(batch, next(stream)):
            if isinstance(context, str):
                failed[trajectory.number] = context
                continue
            begun = _Row(trajectory, context, walrus)
            reason = begun.unusable()
            if reason is None:
                rows.append(begun)
            else:
                failed[trajectory.number] = reason
        forecasts = self._forecasts(walrus, rows) if rows else {}
        for row in rows:
            row.begin(list(forecasts), self._spectra_steps(row.trajectory.steps))
            if row.trajectory.number < self.kept_forecasts and row.readable:
                row.kept = KeptForecast(row.context, row.trajectory.steps)
        step, steps, chunk = 0, batch[0].steps, data.chunk_frames(batch)
        while step < steps:
            truths = dict(zip((t.number for t in batch), next(stream)))
            for row in rows:
                row.take_truth(truths[row.trajectory.number])
            for offset in range(min(chunk, steps - step)):
                step += 1
                self._step(step, offset, rows, forecasts)
        for row in rows:
            if row.kept is not None:
                row.kept.write(self.folder.forecasts, f"{data.name}-{row.trajectory.number}")
        found = {row.trajectory.number: row.record(walrus.notes) for row in rows}
        missing = {
            number: {"trajectory": number, "error": error, "notes": list(walrus.notes)}
            for number, error in failed.items()
        }
        return [{**found, **missing}[trajectory.number] for trajectory in batch]

    def _forecasts(self, walrus: WalrusForecaster, rows: Sequence[_Row]) -> dict[str, Frames]:
        contexts, trajectory = [row.context for row in rows], rows[0].trajectory
        found: dict[str, Frames] = {}
        if rows[0].readable:
            found[MODEL] = walrus.rollout(contexts, trajectory.steps, self.protocol.seed_of(trajectory.number))
        for name, baseline in self.baselines.items():
            found[name] = predicted_frames(baseline, contexts, trajectory.steps)
        return found

    def _step(self, step: int, offset: int, rows: Sequence[_Row], forecasts: Mapping[str, Frames]) -> None:
        frames = {name: next(found) for name, found in forecasts.items()}
        for i, row in enumerate(rows):
            row.add(step, offset, {name: found[i] for name, found in frames.items()})

    def _spectra_steps(self, steps: int) -> set[int]:
        """First, last, and the ends of the windows."""
        return {1, steps, *(last for _, last in self.protocol.windows.values() if last <= steps)}


class _Row:
    """One trajectory on its way: its context, the truth that is at hand, and the scores of each forecast."""

    def __init__(self, trajectory: EvaluatedTrajectory, context: Trajectory, walrus: WalrusForecaster) -> None:
        self.trajectory, self.context, self.digest = trajectory, context, digest(context)
        self.readable = True
        self.kept: KeptForecast | None = None
        self.error: str | None = None
        self.truth: dict[str, np.ndarray] = {}
        try:
            self.context = walrus.readable(context)
        except ValueError as error:
            self.readable = False
            walrus.note(f"the model cannot forecast this: {' '.join(str(error).split())}")
        self.log_fields = [name for name in walrus.processor.log_fields if name in self.context.fields]
        self.grid = TrajectoryGrid(self.context, self.log_fields, walrus.processor.field_names)
        self.scores: dict[str, Scores] = {}
        self.variance = dict.fromkeys(self.context.fields, 0.0)  # of the truth, the largest of a frame

    def unusable(self) -> str | None:
        """Why nothing can be forecast from the context, or scored."""
        if self.grid.free.sum() < 2:
            return "fewer than two cells lie outside obstacles (the mask is True inside)"
        try:
            self.context.check_finite()
        except ValueError as error:
            return f"of the {self.context.num_frames} frames before the start, {error}"
        return None

    def begin(self, names: Sequence[str], spectra_steps: set[int]) -> None:
        self.spectra_steps = spectra_steps
        fields, steps = list(self.context.fields), self.trajectory.steps
        self.scores = {name: Scores(self.grid, fields, steps, spectra_steps) for name in names}

    def take_truth(self, truth: dict[str, np.ndarray] | str) -> None:
        if isinstance(truth, str):
            self.error = self.error or truth
        else:
            self.truth = {name: truth[name] for name in self.context.fields}

    def add(self, step: int, offset: int, frames: Mapping[str, Frame | str]) -> None:
        if self.error is not None:
            return
        fields = {name: values[offset] for name, values in self.truth.items()}
        truth = TruthFrame(fields, self.grid, step in self.spectra_steps)
        for name, values in truth.cells.items():
            if not np.isfinite(values).all():
                self.error = f"its truth is not finite: field {name!r}, frame {self.trajectory.start + step - 1}"
                return
            self.variance[name] = max(self.variance[name], truth.variance[name])
        for name, frame in frames.items():
            self.scores[name].add(step, frame, truth)
        if self.kept is not None and self.scores[MODEL].failure is None:
            self.kept.add(frames[MODEL], fields)

    def record(self, notes: Sequence[str]) -> Record:
        if self.error is not None:
            return {"trajectory": self.trajectory.number, "error": self.error, "notes": list(notes)}
        context = self.context
        return {
            "trajectory": self.trajectory.number,
            "digest": self.digest,
            "notes": [*notes, *(hidden_line(name) for name, found in self.variance.items() if is_hidden(found))],
            "about": {
                "fields": list(context.fields),
                "ranks": {name: context.rank(name) for name in context.fields},
                "dt": context.dt,
                "obstacle_cells": 1 - float(self.grid.free.mean()),
                "log_fields": self.log_fields,
            },
            "forecasters": {name: scores.record() for name, scores in self.scores.items()},
        }


def _reads(
    data: EvaluatedScenario, batches: Sequence[Sequence[EvaluatedTrajectory]]
) -> Iterator[Callable[[], list[Any]]]:
    """All reads in the order in which they are wanted: of each batch the contexts, then chunks of the truth."""
    for batch in batches:
        yield partial(_read_all, data.context, batch)
        steps, chunk = batch[0].steps, data.chunk_frames(batch)
        for first in range(0, steps, chunk):
            yield partial(_read_all, partial(data.truth, first=first, stop=min(first + chunk, steps)), batch)


def _read_all(read: Callable[[EvaluatedTrajectory], Any], batch: Sequence[EvaluatedTrajectory]) -> list[Any]:
    """What was read, or in words why it cannot be used; a disk or network that fails ends the evaluation."""
    found: list[Any] = []
    for trajectory in batch:
        try:
            found.append(read(trajectory))
        except ValueError as error:
            found.append(" ".join(str(error).split()))
    return found


def read_ahead(reads: Iterator[Callable[[], Any]], workers: int) -> Iterator[Any]:
    """The results of all reads in their order; threads begin at most `workers` of them early."""
    if not workers:
        for read in reads:
            yield read()
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Any]] = deque()
        for read in reads:
            waiting.append(pool.submit(read))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
