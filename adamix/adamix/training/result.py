"""From trained modules to the mixture file that a run leaves behind: its manifest and its tensors.

Knows neither how they were trained nor where the file goes.
"""

import msgspec
import torch

from adamix.backbones.backbone import Backbone
from adamix.config import MixtureConfig, TrainingPlan
from adamix.data import GenerationData, TaskData
from adamix.errors import FailedPrecondition, InvalidAdapter
from adamix.files import adapter_file
from adamix.files.manifest import BackboneRef, Manifest, TrainingRecord, check_size
from adamix.files.tensors import TensorData, canonical_json
from adamix.merging.merge import MixtureFile, MixtureManifest, expert_key, initial_key
from adamix.modules.heads import ClozeHead, Head
from adamix.modules.mixture import Mixture
from adamix.training.task import TrainingTask

# For the metrics of the validation rows and the account of the merging, which come at the end.
_METRICS_BYTES = 2 << 10


def build_manifest(plan: TrainingPlan, task: TrainingTask, backbone: Backbone) -> Manifest:
    """The manifest of the adapter to be, checked now and not after hours of training."""
    adapter, mixture, spec = plan.adapter, plan.mixture, backbone.spec
    is_single = mixture.num_experts == 1 and mixture.passes == 1
    manifest = Manifest(
        kind=adapter.kind,
        activation="identity" if adapter.kind == "lora" else adapter.activation,
        scaling=adapter.scale,
        backbone=BackboneRef(
            model_type=spec.model_type,
            fingerprint=spec.fingerprint,
            tokenizer_fingerprint=spec.tokenizer_fingerprint,
            hidden_size=spec.hidden_size,
            num_layers=spec.num_layers,
            name=backbone.name,
            pooler_fingerprint=spec.pooler_fingerprint if plan.head.dense == "backbone" else None,
        ),
        head=task.head_spec(plan.head),
        max_length=plan.train.max_length,
        training=TrainingRecord(
            method="head" if not adapter.sites else "single" if is_single else "adamix",
            num_experts=mixture.num_experts,
            share=mixture.share,
            consistency=mixture.consistency,
            seed=plan.train.seed,
            data=f"{task.data.name[:400]} ({_rows_of(task.data)})",
        ),
    )
    manifest.check()
    check_size(canonical_json(manifest.to_json()), _METRICS_BYTES)
    return manifest


def _rows_of(data: TaskData | GenerationData) -> str:
    if isinstance(data, TaskData):
        return f"{len(data.examples)} rows"
    count = sum(len(example.references) for example in data.examples)
    return f"{'synthetic, ' if data.is_synthetic else ''}{len(data.examples)} sources, {count} references"


def with_metrics(manifest: Manifest, metrics: dict[str, float]) -> Manifest:
    """The manifest with the metrics of the merged adapter on the validation rows."""
    recorded = {f"validation_{name}": value for name, value in metrics.items()}
    return msgspec.structs.replace(manifest, training=msgspec.structs.replace(manifest.training, metrics=recorded))


def mixture_file(manifest: Manifest, mixture: MixtureConfig, tensors: dict[str, TensorData]) -> MixtureFile:
    """The file of a mixture; `tensors` are those of `expert_tensors` and `head_tensors`."""
    mixed = MixtureManifest(
        adapter=manifest,
        num_experts=mixture.num_experts,
        share=mixture.share,
        routing_granularity=mixture.routing_granularity,
        common_start=any(key.startswith("initial.") for key in tensors),
    )
    return MixtureFile(mixed, tensors)


def expert_tensors(experts: Mixture) -> dict[str, TensorData]:
    """Every expert of every projection, and their common starts where they have one."""
    tensors: dict[str, TensorData] = {}
    for key, projection in experts.projections():
        for expert, weight in enumerate(projection.weights):
            tensors[expert_key(key, expert, "weight")] = _to_data(weight)
        for expert, bias in enumerate(projection.biases or ()):
            tensors[expert_key(key, expert, "bias")] = _to_data(bias)
    for (key, part), start in experts.initial.items():
        tensors[initial_key(key, part)] = _to_data(start)
    return tensors


def head_tensors(head: Head | ClozeHead, scale: tuple[float, float]) -> dict[str, TensorData]:
    """The head's tensors; the standardisation of targets goes into the last linear, so outputs are in natural units."""
    mean, deviation = scale
    tensors: dict[str, TensorData] = {}
    for name, linear in head.linears.items():
        factor, shift = (deviation, mean) if name == "out_proj" else (1.0, 0.0)
        tensors[f"head.{name}.weight"] = _to_data(linear.weight * factor)
        tensors[f"head.{name}.bias"] = _to_data(linear.bias * factor + shift)
    return tensors


def check_converged(manifest: Manifest, tensors: dict[str, TensorData]) -> None:
    """Refuse what no file may hold: after the last reading of the loss, weights alone show that a run diverged."""
    try:
        adapter_file.check_values(manifest, tensors)
    except InvalidAdapter as error:
        raise FailedPrecondition(
            f"the training ended with {error.message}: use a lower learning rate", reason="DIVERGED"
        ) from None


def _to_data(tensor: torch.Tensor) -> TensorData:
    return TensorData.from_float32(tensor.detach().float().cpu().numpy())
