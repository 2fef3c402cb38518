"""What connections are allowed, as the transport keeps it."""

import asyncio

import grpc.aio
import pytest

from adamix_protos.v1 import server_pb2, server_pb2_grpc
from adamix_server.frontend.endpoint import OPTIONS
from adamix_server.limits.calls import MAX_CONNECTIONS, MIN_PING_INTERVAL_S
from adamix_server.limits.messages import MAX_METADATA_BYTES
from adamix_testing.harness import Harness


def test_options_of_connections() -> None:
    options = dict(OPTIONS)
    assert len(options) == len(OPTIONS)
    # By chance between the two, if they differed.
    assert options["grpc.max_metadata_size"] == options["grpc.absolute_max_metadata_size"] == MAX_METADATA_BYTES
    assert options["grpc.max_concurrent_streams"] == 128
    assert MAX_CONNECTIONS == 1024
    # What nobody has asked for yet is bounded by the window that HTTP/2 begins with.
    assert options["grpc.http2.bdp_probe"] == 0
    # The last resort against readers that do not read.
    assert (options["grpc.max_connection_age_ms"], options["grpc.max_connection_age_grace_ms"]) == (1_800_000, 60_000)
    # Clients ping every 20 s.
    assert options["grpc.http2.min_ping_interval_without_data_ms"] < 20_000
    assert options["grpc.keepalive_permit_without_calls"] == 1


@pytest.mark.long
async def test_a_client_that_pings_every_20_s_is_welcome(harness: Harness) -> None:
    # As often as it may; more than two pings too many would end the connection.
    interval_ms = int(1000 * MIN_PING_INTERVAL_S) + 200
    keepalive = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", interval_ms),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with grpc.aio.insecure_channel(harness.address, options=keepalive) as channel:
        stub = server_pb2_grpc.ServerServiceStub(channel)
        await stub.GetServerInfo(server_pb2.GetServerInfoRequest())
        end = asyncio.get_running_loop().time() + 4.5 * interval_ms / 1000
        while (left := end - asyncio.get_running_loop().time()) > 0:
            try:
                async with asyncio.timeout(left):
                    await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
            except TimeoutError:
                return
            pytest.fail(f"the connection was lost: {channel.get_state()}")
