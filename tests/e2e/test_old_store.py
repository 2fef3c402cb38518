"""`adamix serve` on the store of an older adamix: brought up to date at the start, served, changed."""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from adamix.files.adapter_file import AdapterFile, encode
from adamix.files.manifest import BackboneSpec
from adamix.files.tensors import canonical_json
from adamix_client import Input
from adamix_testing.servers import StartServer

OLD = Path(__file__).parent.parent / "server" / "catalog" / "old_stores" / "schema_2"


def with_other_bytes(store: Path, old: str, adapter: AdapterFile, fingerprint: str) -> str:
    """Put an adapter, and the backbone it is for, in the place of those that the old store was written with."""
    data = encode(adapter.manifest, adapter.tensors)
    digest, manifest = hashlib.sha256(data).hexdigest(), canonical_json(adapter.manifest.to_json())
    blob = store / "blobs" / "sha256" / digest[:2] / digest
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(data)
    connection = sqlite3.connect(store / "catalog.db")
    with connection:
        for table in ("traffic", "versions"):
            connection.execute(f"UPDATE {table} SET backbone_fingerprint = ?", [fingerprint])
        changed = digest, len(data), manifest, old
        connection.execute("UPDATE versions SET digest = ?, num_bytes = ?, manifest_json = ? WHERE digest = ?", changed)
        connection.execute("UPDATE pins SET digest = ? WHERE digest = ?", [digest, old])
        for column in ("current", "earlier"):
            connection.execute(f"UPDATE traffic SET {column} = replace({column}, ?, ?)", [old, digest])
    connection.close()
    return digest


def test_it_lists_answers_and_changes(
    start_server: StartServer, spec: BackboneSpec, make_adapter: Callable[..., AdapterFile], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(OLD, store)
    recorded = json.loads((store / "answers.json").read_text(encoding="utf-8"))
    tasks = {name.partition("/")[2]: row for name, row in recorded["snapshot"].items() if name.startswith("default/")}
    digest = with_other_bytes(store, tasks["topic-2"]["traffic"][0][0], make_adapter(1, spec=spec), spec.fingerprint)
    server = start_server(store=store).wait()
    upgraded = server.find(process="supervisor", message="the catalog was brought up to date")
    assert upgraded is not None
    assert upgraded["kept"] == "catalog.db.v2"
    assert (store / "catalog.db.v2").stat().st_size > 0
    assert not [record for record in server.records if "alembic" in record.get("logger", "")]
    with server.client() as client:
        assert {task.task: task.etag for task in client.tasks()} == {name: row["etag"] for name, row in tasks.items()}
        (prediction,) = client.predict([Input(task="topic-2", text="the cat sleeps")]).predictions
        assert (prediction.error, prediction.version) == (None, digest)
        client.delete_task("topic-1")
        assert {task.task for task in client.tasks()} == tasks.keys() - {"topic-1"}
    assert server.terminate() == 0
