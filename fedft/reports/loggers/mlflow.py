"""A run of MLflow: the numbers of `lines` by version, and the run file as its parameters.

Nobody is contacted unless MLFLOW_TRACKING_URI names a server: without it the run is in mlflow.db of the run's folder,
which `mlflow ui --backend-store-uri sqlite:///.../mlflow.db` shows. MLflow's own telemetry is off unless
MLFLOW_DISABLE_TELEMETRY says otherwise. MLFLOW_EXPERIMENT_NAME names the experiment, "fedft" without it.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

from fedft.config import RunConfig
from fedft.reports.loggers import lines
from fedft.reports.observers import Observer

log = logging.getLogger(__name__)

URI = "MLFLOW_TRACKING_URI"
TAG = "fedft_id"
VERSION = "version"
"""A number of every line, written with its others at once: the last one says how far the run has been told."""
AT_ONCE = 100
"""Parameters that MLflow takes in one call."""
LONGEST = 6000
"""Characters of a parameter."""


def mlflow(folder: Path, config: RunConfig) -> Observer:
    """A run that was begun before goes on behind the last version that MLflow has of it."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric
    except ImportError as e:
        raise ImportError(f"{e}; pip install 'fedft[mlflow]' brings it") from e
    uri, place = os.environ.get(URI), None
    if not uri:
        file = (folder / "mlflow.db").resolve()
        uri, place = f"sqlite:///{file}", file.with_name("mlflow").as_uri()
        log.warning("mlflow: %s is not set: written to %s, sent to nobody", URI, file)
    client = MlflowClient(tracking_uri=uri)
    run = _begun(client, folder, config, place)
    last, number = run.data.metrics.get(VERSION, -1), run.info.run_id

    def write(version: int, numbers: dict[str, float]) -> None:
        if version > last:
            now = int(time.time() * 1000)
            told = [Metric(n, float(x), now, version) for n, x in {**numbers, VERSION: version}.items()]
            client.log_batch(number, metrics=told)

    def end(finished: bool) -> None:
        client.set_terminated(number, "FINISHED" if finished else "KILLED")

    return lines.follow("mlflow", folder, config, write, end)


def _begun(client: Any, folder: Path, config: RunConfig, place: str | None) -> Any:
    """MLflow's run of the run in `folder`: the one that there is, or a new one with the run file's keys.

    `place`: where a new experiment keeps its files; None: the server knows.
    """
    from mlflow.entities import Param

    name, own = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedft"), lines.identity(folder)
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name, artifact_location=place)
    if before := client.search_runs([experiment], f"tags.{TAG} = '{own}'"):
        client.update_run(before[0].info.run_id, status="RUNNING")
        return before[0]
    run = client.create_run(experiment, run_name=folder.resolve().name, tags={TAG: own})
    keys = [Param(name, str(value)[:LONGEST]) for name, value in lines.settings(config).items()]
    for start in range(0, len(keys), AT_ONCE):
        client.log_batch(run.info.run_id, params=keys[start : start + AT_ONCE])
    return run
