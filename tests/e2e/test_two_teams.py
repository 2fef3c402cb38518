"""The commands of docs/tutorials/two-teams.md, as they stand there; and that no secret is left anywhere by them, nor by
any method that is called with one."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message

from adamix.errors import AdamixError, InvalidRequest
from adamix.files.manifest import BackboneSpec
from adamix_client import ALL_TENANTS, Client
from adamix_server.access import api_keys
from adamix_server.access.rights import NEEDS
from adamix_testing.adapters import adapter_bytes
from adamix_testing.servers import Server

DRAIN = "/adamix.v1.ServerService/Drain"
PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "two-teams.md"


def commands() -> list[str]:
    """Those of the page that are to be run, in order."""
    return re.findall(r"^```sh\n(.*?)\n```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Ran:
    """The six commands after they were run: the server, where they ran, and what they printed."""

    server: Server
    directory: Path
    outputs: list[subprocess.CompletedProcess[str]]

    def key(self, name: str) -> str:
        return (self.directory / name).read_text().strip()


@pytest.fixture(scope="module")
def ran(backbone_directory: Path, spec: BackboneSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    directory = tmp_path_factory.mktemp("teams")
    (directory / "mine.safetensors").write_bytes(adapter_bytes(spec))
    program = directory / "bin" / "adamix"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m adamix_server "$@"\n')
    program.chmod(0o755)
    serve, *others = commands()
    words = shlex.split(serve.removesuffix("&"))
    assert words[:6] == ["adamix", "serve", "--backbone", "minilm", "--store", "./shop"]
    server = Server(backbone_directory, directory / "shop", *words[6:], "--metrics-port", "0", "--log-level", "debug")
    try:
        server.wait()
        path = f"{program.parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "ADAMIX_SERVER": server.address}
        outputs = [
            subprocess.run(["sh", "-c", line], cwd=directory, env=environment, capture_output=True, text=True)
            for line in others
        ]
        yield Ran(server, directory, outputs)
    finally:
        server.kill()
        shutil.rmtree(directory)


def test_six_commands_and_the_second_team_has_its_answer(ran: Ran) -> None:
    assert len(commands()) == 6
    assert all(line.count("adamix ") == 1 for line in commands())
    for line, output in zip(commands()[1:], ran.outputs, strict=True):
        assert output.returncode == 0, (line, output.stderr)
    assert "thank you" in ran.outputs[-1].stdout
    for name in ("shop/operator.key", "support.key"):
        assert stat.S_IMODE((ran.directory / name).stat().st_mode) == 0o600
    with Client(ran.server.address, api_key=ran.key("support.key")) as client:
        me = client.who_am_i()
        assert (me.tenant, me.rights) == ("support", ("infer",))
        with pytest.raises(AdamixError, match="task not found"):
            client.predict(task="tenants/default/tasks/theirs", texts=["hello"])


def test_no_secret_is_anywhere_but_where_it_was_made(ran: Ran) -> None:
    operator, caller = ran.key("shop/operator.key"), ran.key("support.key")
    address = ran.server.address
    with Client(address, api_key=operator) as client:
        revoked = client.create_key(role="caller")
        client.revoke_key(revoked.key.id)
        with pytest.raises(InvalidRequest):
            client.create_key(role="caller", display_name=f"the one with {caller}")
    unknown, _ = api_keys.make()
    mistyped = operator[:-1] + ("a" if operator[-1] != "a" else "b")
    token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
    secrets = [operator, caller, revoked.secret, unknown, mistyped, token]
    told = [output.stderr for output in ran.outputs]
    with grpc.insecure_channel(address) as channel:
        # `Drain` with the operator's would end the server.
        tried = [(method, shown) for method in NEEDS for shown in secrets if (method, shown) != (DRAIN, operator)]
        told += [ask(channel, method, shown, operator) for method, shown in tried]
    # Written some seconds late.
    wait_for_entries(address, operator)
    with Client(address, api_key=operator) as client:
        told += [json.dumps(entry.json) for entry in client.audit(ALL_TENANTS)]
    record = ran.server.find(process="supervisor", message="metrics")
    assert record is not None
    told.append(urllib.request.urlopen(f"http://{record['address']}/metrics", timeout=5).read().decode())
    told += [json.dumps(each) for each in list(ran.server.records)]
    for pid in (ran.server.process.pid, *ran.server.children()):
        told.append(Path(f"/proc/{pid}/cmdline").read_text())
        told.append(Path(f"/proc/{pid}/environ").read_text())
    for path in (ran.directory / "shop").rglob("*"):
        if path.is_file() and path.name != "operator.key":
            told.append(path.read_bytes().decode("latin-1"))
    assert len(told) > len(NEEDS) * len(secrets)
    for secret in secrets:
        # Of a key the id is public; what follows it is not, nor is half of it.
        part = secret[len("adx_") + api_keys.ID_CHARS + 1 :][:12] if secret.startswith("adx_") else secret[:16]
        found = [text[max(0, text.find(part) - 200) :][:300] for text in told if part in text]
        assert found == []


def wait_for_entries(address: str, key: str) -> None:
    """Until the audit has what a last call has left."""
    with Client(address, api_key=key) as client:
        end = time.monotonic() + 30
        while not any(entry.method.endswith("/ListGrants") for entry in client.audit(ALL_TENANTS, limit=50)):
            assert time.monotonic() < end
            client.grants()
            time.sleep(0.2)


def ask(channel: grpc.Channel, method: str, shown: str, secret: str) -> str:
    """How a method refuses a message that has a secret wherever a text may be; its status and everything with it."""
    service, name = method[1:].split("/")
    try:
        descriptor = Default().FindServiceByName(service).methods_by_name[name].input_type
    except KeyError:
        # Not in every package of grpc.
        return ""
    call = channel.stream_stream(method, request_serializer=lambda message: message.SerializeToString())(
        iter([filled(descriptor, secret)]), metadata=(("authorization", f"Bearer {shown}"),), timeout=5
    )
    try:
        next(call, None)
        call.cancel()
    except grpc.RpcError as error:
        status: Any = error
        return repr((status.details(), status.initial_metadata(), status.trailing_metadata()))
    return ""


def filled(descriptor: Descriptor, text: str, depth: int = 0) -> Message:
    """A message with this text in every field that takes one."""
    message: Any = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        is_repeated = hasattr(getattr(message, field.name), "append")
        if field.type == FieldDescriptor.TYPE_STRING:
            if is_repeated:
                getattr(message, field.name).append(text)
            else:
                setattr(message, field.name, text)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and depth < 4:
            if field.message_type.GetOptions().map_entry:
                continue
            inner = filled(field.message_type, text, depth + 1)
            if is_repeated:
                getattr(message, field.name).append(inner)
            else:
                getattr(message, field.name).CopyFrom(inner)
    return message
