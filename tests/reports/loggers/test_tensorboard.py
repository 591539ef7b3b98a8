"""TensorBoard's events: numbers of every line while the run goes on, clients' curves, the run file beside them."""

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from fedft import run_file
from fedft.reports.loggers.tensorboard import tensorboard
from fedft.suites.loggers import line


def read(folder: Path) -> Any:
    events = EventAccumulator(str(folder / "events"), size_guidance={"scalars": 0})
    events.Reload()
    return events


def test_each_line_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    observe = tensorboard(tmp_path, run_file.from_dict({}))
    for v in range(3):
        observe("line", line(v, evaluation={"north": {"loss": 2.0 - v}}))
        events = read(tmp_path)
        for name in ("loss", "seconds/evaluate", "client_loss/north"):
            assert [e.step for e in events.Scalars(name)] == list(range(v + 1))
    assert [e.value for e in events.Scalars("client_loss/north")] == [2.0, 1.0, 0.0]
    observe("ended", {"folder": tmp_path, "summary": {}})


def test_the_run_file_is_its_table_of_hyper_parameters(tmp_path: Path) -> None:
    observe = tensorboard(tmp_path, run_file.from_dict({"local": {"learning_rate": 0.25}}))
    for end in (False, True):
        if end:
            observe("ended", {"folder": tmp_path, "summary": {}})
        tags = read(tmp_path).PluginTagToContent("hparams")
        assert (metadata.SESSION_END_INFO_TAG in tags) == end
    said = plugin_data_pb2.HParamsPluginData.FromString(tags[metadata.SESSION_START_INFO_TAG]).session_start_info
    assert said.hparams["local.learning_rate"].number_value == 0.25
    assert said.hparams["strategy.name"].string_value == "flora"
    asked = plugin_data_pb2.HParamsPluginData.FromString(tags[metadata.EXPERIMENT_TAG]).experiment
    assert {m.name.tag for m in asked.metric_infos} == {"loss", "accuracy"}
