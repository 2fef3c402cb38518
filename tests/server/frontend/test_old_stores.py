"""A front end over a store that an older adamix wrote: it tells and answers what that one did."""

import json
import shutil
from pathlib import Path

import pytest

from adamix_protos.v1 import adapters_pb2, inference_pb2
from adamix_server.catalog.recovery import recover
from adamix_testing.harness import StartServing

STORES = Path(__file__).parent.parent / "catalog" / "old_stores"
PREFIX = "tenants/default/tasks/"


@pytest.mark.parametrize("schema", [1, 2, 3])
async def test_it_serves_what_was_served(start_serving: StartServing, store: Path, schema: int) -> None:
    shutil.copytree(STORES / f"schema_{schema}", store)
    recorded = json.loads((store / "answers.json").read_text(encoding="utf-8"))
    recover(store)
    expected = {
        name.partition("/")[2]: task for name, task in recorded["snapshot"].items() if name.startswith("default/")
    }
    harness = await start_serving()
    listed = (await harness.adapters.ListTasks(adapters_pb2.ListTasksRequest())).tasks
    found = {
        task.name.removeprefix(PREFIX): (task.etag, [[share.digest, share.weight] for share in task.traffic])
        for task in listed
    }
    assert found == {name: (task["etag"], task["traffic"]) for name, task in expected.items()}
    for name in expected:
        asked = adapters_pb2.ListVersionsRequest(task=name)
        versions = (await harness.adapters.ListVersions(asked)).versions
        rows = [row for page, _ in recorded["list_versions"][f"default/{name}"] for row in page]
        told = [(row["digest"], row["live"], row["manifest"]) for row in rows]
        assert [(row.digest, row.live, json.loads(row.manifest_json)) for row in versions] == told
    live = {name: [digest for digest, _ in task["traffic"]] for name, task in expected.items() if task["traffic"]}
    inputs = [inference_pb2.PredictInput(task=name, text="w1 w2") for name in live]
    answered = await harness.inference.Predict(inference_pb2.PredictRequest(inputs=inputs))
    for prediction in answered.predictions:
        assert prediction.version in live[prediction.task]
        assert prediction.classification.label in ("yes", "LABEL_2")
    assert len(answered.predictions) == len(live) > 3
