"""The encoder that is timed computes, for each sequence of a packed batch, that sequence alone with its own adapter."""

import pytest
import torch
import torch.nn.functional as F

from adamix_bench.kernels.whole_encoder import TINY, PackedEncoder, retention
from adamix_kernels.gpu.tiles import Room, reserve
from adamix_kernels.testing import assert_close, error_ratio

CPU = torch.device("cpu")


@torch.inference_mode()
def alone(encoder: PackedEncoder, sites: tuple[str, ...]) -> torch.Tensor:
    """Each sequence by itself through transformers' own attention, with adapters added by hand."""
    model, parts = encoder.model, []
    adapters = {
        layer: [
            (site.linear, site.adapters.weights)
            for name, output in (("mlp_out", layer.output), ("attn_out", layer.attention.output))
            if name in sites and (site := output.dense)
        ]
        for layer in model.encoder.layer
    }
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    for slot, start, end in encoder.segments:
        hooks = [
            linear.register_forward_hook(lambda _, __, y, w=weights[slot]: y + update(y, w))
            for of_layer in adapters.values()
            for linear, weights in of_layer
        ]
        # Positions and types are transformers' own.
        sequence = {"input_ids": encoder.inputs["input_ids"][:, start:end]}
        encoder.segments, kept = type(encoder.segments).from_lengths([0], [end - start]), encoder.segments
        parts.append(model(**sequence).last_hidden_state[0])
        encoder.segments = kept
        for hook in hooks:
            hook.remove()
    model.set_attn_implementation(own)
    return torch.cat(parts)


def update(y: torch.Tensor, weights) -> torch.Tensor:
    hidden = F.gelu(F.linear(y, weights.down, weights.down_bias))
    return F.linear(hidden, weights.up.T, weights.up_bias)


@pytest.mark.parametrize("sites", [(), ("mlp_out",), ("mlp_out", "attn_out")], ids=str)
def test_a_packed_batch_is_its_sequences_alone(sites: tuple[str, ...]) -> None:
    encoder = PackedEncoder(TINY, CPU, torch.float32, sites)
    # The sums of attention and products have another order: a few units in the last place for each of two layers.
    assert error_ratio(encoder.forward(), alone(encoder, sites)) < 1e-5


def test_the_adapters_of_a_sequence_matter() -> None:
    encoder = PackedEncoder(TINY, CPU, torch.float32, ("mlp_out",))
    before = encoder.forward()
    encoder.segments = encoder.rotated()
    assert encoder.segments.lengths.tolist() == encoder.lengths
    assert error_ratio(encoder.forward(), before) > 0.1


def test_bare_and_adapted_encoders_have_the_same_backbone() -> None:
    bare, adapted = (PackedEncoder(TINY, CPU, torch.float32, sites) for sites in ((), ("mlp_out",)))
    adapted.segments = type(adapted.segments).from_lengths([0], [TINY.batch.rows])
    assert torch.equal(bare.forward(), adapted.forward())


def test_another_batch_in_reserved_room_is_that_batch(device: str) -> None:
    """What a captured graph does: it reads the room of the batch it was captured with."""
    encoder = PackedEncoder(TINY, torch.device(device), torch.float32, ("mlp_out",), implementation="triton")
    first, other = encoder.segments, encoder.rotated()
    tiles = reserve(first, torch.device(device), Room(len(first), TINY.batch.rank))
    before = encoder.forward()
    with torch.inference_mode():
        tiles.refill(other)
    refilled = encoder.forward()
    encoder.segments = other
    assert_close(refilled, encoder.forward().double())
    assert error_ratio(refilled, before) > 0.1


def test_the_encoder_is_compared_with_its_backbone() -> None:
    one, two = retention(TINY, CPU, torch.float32)
    assert (one.target, two.target) == (None, None)
    assert one.measured is not None
    assert len(one.measured.values) == TINY.turns
    assert one.measured.lowest > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_encoder_computes_the_batch_that_is_put_into_it() -> None:
    """`retention` refuses a graph that does not."""
    one, _ = retention(TINY, torch.device("cuda"), torch.bfloat16)
    assert one.measured is not None
