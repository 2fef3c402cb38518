"""Puts an engine together from its configuration. The one place that knows all its parts."""

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from adamix.backbones import backbone
from adamix.backbones.backbone import Backbone
from adamix.backbones.decoders import KvShape
from adamix.errors import InvalidConfig, StoreFull
from adamix.files import adapter_file, disk
from adamix.files.manifest import BackboneSpec
from adamix_kernels.paged import PAGE_TOKENS
from adamix_server.blobs.local import BLOBS_DIRECTORY, BlobStore
from adamix_server.blobs.os_errors import from_os_error
from adamix_server.channel.channel import EngineChannel
from adamix_server.channel.engine_frames import Hello, Limits
from adamix_server.channel.supervisor_frames import StartEngine
from adamix_server.config import EngineSettings
from adamix_server.engine import kv_sizes, warm_up
from adamix_server.engine.decoder_runner import DecoderRunner
from adamix_server.engine.decoder_scheduler import TEXT_TOKENS, DecoderScheduler
from adamix_server.engine.decoding import Decoding
from adamix_server.engine.encoding import Encoding
from adamix_server.engine.engine import Engine
from adamix_server.engine.kv_cache import kv_page_bytes
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.pages import Pages
from adamix_server.engine.residency.host_cache import HostCache
from adamix_server.engine.residency.loader import AdapterLoader
from adamix_server.engine.residency.packing import PackedAdapter, pack
from adamix_server.engine.residency.rehearsal import Rehearsal
from adamix_server.engine.residency.slot_bank import SlotBank
from adamix_server.engine.residency.slots import Slots
from adamix_server.engine.sampler import Sampler
from adamix_server.engine.scheduler import Scheduler
from adamix_server.engine.steps import Steps
from adamix_server.engine.token_rate import TokenRate
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

# Beside the tokenizer.
GENERATION_FILE = "generation.json"
# Texts at once: more of them make each one slower than people read, on a CPU long before.
HOST_RUNNING, DEVICE_RUNNING = 64, 256
# Of a prompt beside running texts, so that a step with one takes at most twice as long as a step without.
HOST_CHUNK_TOKENS, DEVICE_CHUNK_TOKENS = 64, 2048
# No step of a decoder is to take more than so much of the time after which it counts as stalled.
STALL_SHARE = 0.25
# Of the tokens that leave a decoder's queue, which are few where texts are long.
LEAVING_HALF_LIFE_TOKENS = 1024


def choose_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, or the CPU where there is none. Raises InvalidConfig."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidConfig(f"{name!r} is not a device; use auto, cpu or cuda[:N]", field="device") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("no CUDA device is available; use --device cpu", field="device")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is fp32 on CPUs (parity with training) and bf16 on CUDA devices."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def load_backbone(start: StartEngine) -> Backbone:
    """The backbone on its device, and what front ends read of it written: its tokenizer, and how a decoder's texts end.

    Raises:
        InvalidConfig: there is no such backbone or device, or it cannot be served.
        AdamixError: these files cannot be written; the disk is full, or what `from_os_error` says.
    """
    settings = start.settings
    family = backbone.read_family(settings.backbone)
    if settings.quantize != "none" and not family.is_decoder:
        raise InvalidConfig(
            f"--quantize is for decoders, and {family.model_type} is an encoder: leave it out, or say --dtype",
            field="quantize",
        )
    device = choose_device(settings.device)
    _write_tokenizer(start.tokenizer, backbone.export_tokenizer(settings.backbone))
    if family.is_decoder:
        _write_tokenizer(start.tokenizer.with_name(GENERATION_FILE), backbone.export_generation(settings.backbone))
    return backbone.load(
        settings.backbone,
        dtype=choose_dtype(settings.dtype, device),
        device=device,
        language_model=family.is_decoder,
    )


def _write_tokenizer(path: Path, text: str) -> None:
    """Whole or not at all; left alone if it is there already: a front end may be reading it, a full disk refuse it."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    try:
        disk.write(path, text.encode())
    except OSError as error:
        known = from_os_error(error)
        if known is not None and not isinstance(known, StoreFull):
            raise known from error
        raise StoreFull(
            f"the tokenizer cannot be written for the front ends ({error.strerror}); free space on the disk"
        ) from error


def assemble(
    start: StartEngine,
    channel: EngineChannel,
    loaded: Backbone,
    recorder: Recorder,
    on_stats: Callable[[], None],
) -> Engine:
    """An engine ready to run. Takes `loaded` over: its modules are wrapped in place.

    Raises:
        FailedPrecondition: the backbone cannot be run packed.
        InvalidConfig: the queue, or a decoder's pages, could not hold one text of the backbone's full length; or this
            device has not what is asked for.
    """
    settings = start.settings
    if settings.max_queue_tokens < loaded.spec.max_tokens:
        raise InvalidConfig(
            f"max_queue_tokens {settings.max_queue_tokens} is below the backbone's {loaded.spec.max_tokens} positions",
            field="max_queue_tokens",
        )
    device = next(loaded.model.parameters()).device
    dtype = choose_dtype(settings.dtype, device)
    if settings.deterministic and (device.type != "cpu" or dtype != torch.float32):
        raise InvalidConfig(
            "deterministic answers are to be had in float32 on CPUs alone; leave out --deterministic, or use --device "
            "cpu --dtype float32",
            field="deterministic",
        )
    if settings.deterministic and settings.quantize != "none":
        raise InvalidConfig(
            "--deterministic and --quantize are not to be had together: leave one of them out", field="quantize"
        )
    bank = SlotBank(settings.slots, settings.arena_bytes, dtype, device)
    slots = Slots(settings.slots, settings.arena_bytes)
    limits = Limits(
        max_batch_tokens=settings.max_batch_tokens,
        max_queue_inputs=settings.max_queue_inputs,
        max_queue_tokens=settings.max_queue_tokens,
        slots=settings.slots,
        arena_bytes=slots.capacity_bytes,
    )
    steps: Steps
    if loaded.family.is_decoder:
        steps, limits, rate = _decoding(settings, loaded, bank, limits)
    else:
        steps, rate = _encoding(settings, loaded, bank)
    hello = Hello(
        engine_id=start.engine_id,
        generation=start.generation,
        spec=loaded.spec,
        limits=limits,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        quantize=settings.quantize,
    )
    blobs = BlobStore(start.store / BLOBS_DIRECTORY, make=False)
    adapters = AdapterLoader(
        slots=slots,
        bank=bank,
        cache=HostCache(settings.host_cache_bytes),
        # A text that is longer than the budget runs alone.
        read=_reader(blobs, loaded.spec, bank, max(settings.max_batch_tokens, loaded.spec.max_tokens)),
        wake=channel.wake,
        recorder=recorder,
    )
    return Engine(channel, steps, adapters, hello, rate, recorder, on_stats, start.front_ends)


def _encoding(settings: EngineSettings, loaded: Backbone, bank: SlotBank) -> tuple[Encoding, TokenRate]:
    """What an encoder's engine computes with, and how fast that is."""
    runner = ModelRunner(loaded, bank, deterministic=settings.deterministic)
    rate = TokenRate(warm_up.tokens_per_s(runner, loaded.spec, settings.max_batch_tokens), settings.max_batch_tokens)
    _check_patience(rate, settings.max_batch_tokens, settings.stall_s)
    return Encoding(runner, Scheduler(settings.max_batch_tokens)), rate


def _decoding(
    settings: EngineSettings, loaded: Backbone, bank: SlotBank, limits: Limits
) -> tuple[Decoding, Limits, TokenRate]:
    """What a decoder's engine computes with, what it can take at once, and how fast it computes prompts."""
    spec, is_host = loaded.spec, bank.device.type == "cpu"
    num_pages = kv_sizes.num_pages(
        settings.kv_bytes,
        kv_page_bytes(KvShape.of(loaded.model.config), bank.dtype),
        PAGE_TOKENS,
        spec.max_tokens,
        kv_sizes.free_bytes(bank.device),
        is_host=is_host,
    )
    limits = msgspec.structs.replace(
        limits,
        pages=num_pages,
        page_tokens=PAGE_TOKENS,
        # Each of them has a token in every step, and as many are left to prompts: else nobody could begin beside them.
        max_running=min(
            settings.max_running or (HOST_RUNNING if is_host else DEVICE_RUNNING), settings.max_batch_tokens // 2
        ),
    )
    max_chunk_tokens = settings.max_chunk_tokens or (HOST_CHUNK_TOKENS if is_host else DEVICE_CHUNK_TOKENS)
    # And one that is nobody's.
    pages = Pages(num_pages + 1, PAGE_TOKENS)
    runner = DecoderRunner(loaded, bank, pages.count, deterministic=settings.deterministic, quantize=settings.quantize)
    sampler = Sampler(spec.vocab_size)
    tokens_per_s = warm_up.decoder_tokens_per_s(runner, sampler, spec, settings.max_batch_tokens, PAGE_TOKENS)
    # Prompts can be cut anywhere, so no step has to take as long as a slow engine would need for a full batch.
    least = limits.max_running + min(limits.max_running, max_chunk_tokens)
    most = max(int(tokens_per_s * settings.stall_s * STALL_SHARE), TEXT_TOKENS, least)
    step_tokens = min(settings.max_batch_tokens, most)
    scheduler = DecoderScheduler(step_tokens, pages, limits.max_running, max_chunk_tokens, backbone=spec.fingerprint)
    full_tokens = min(step_tokens, TEXT_TOKENS)
    leaving_rate = TokenRate(tokens_per_s, full_tokens, LEAVING_HALF_LIFE_TOKENS)
    decoding = Decoding(runner, sampler, scheduler, limits, spec.max_tokens, leaving_rate)
    rate = TokenRate(tokens_per_s, full_tokens)
    _check_patience(rate, step_tokens, settings.stall_s)
    return decoding, limits, rate


def _check_patience(rate: TokenRate, max_batch_tokens: int, stall_s: float) -> None:
    """Say so if an engine that only works would be taken for one that stands still."""
    if (batch_s := rate.seconds(max_batch_tokens)) > stall_s / 2:
        log.warning(
            "a full batch takes so long that the engine may be taken for stalled: raise --engine-stall-s, or lower "
            "--max-batch-tokens",
            extra={"batch_s": round(batch_s, 1), "engine_stall_s": stall_s},
        )


def _reader(blobs: BlobStore, spec: BackboneSpec, bank: SlotBank, max_rows: int) -> Callable[[str], PackedAdapter]:
    rehearsal = Rehearsal(bank, max_rows)

    def read(digest: str) -> PackedAdapter:
        adapter = adapter_file.decode(blobs.get(digest))
        adapter_file.check_backbone(adapter, spec)
        packed = pack(adapter, bank.dtype, pin_memory=bank.device.type == "cuda")
        # Here, in a thread, nobody waits for the compiler but those who want this adapter.
        rehearsal.rehearse(packed)
        return packed

    return read
