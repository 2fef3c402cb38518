"""What trains in turns: the mixture, the single adapter it is compared with, and what its parts cost. No torch here.

The peer is one adapter whose rows go through the backbone twice in one forward pass, with the same consistency loss: a
mixture without a choice. What is left between the two is the price of many experts and of routing among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from adamix.config import AdapterConfig, MixtureConfig
from adamix_bench.training.settings import Settings

MIXTURE, PEER = "mixture", "single, two passes"
EXPERTS = (2, 4, 8)


@dataclass(frozen=True)
class Way:
    """One configuration that is trained.

    Attributes:
        adapter: with no sites it is a head alone.
    """

    adapter: AdapterConfig
    mixture: MixtureConfig


def ways(settings: Settings) -> Mapping[str, Way]:
    """By name, the mixture and its peer first, side by side."""
    adapter = settings.adapter
    mixture = MixtureConfig(num_experts=settings.experts)
    found = {
        MIXTURE: mixture,
        PEER: replace(mixture, num_experts=1, share="none"),
        "single, one pass": MixtureConfig.single(),
        "mixture, one pass": replace(mixture, consistency=0.0),
        "mixture, routes per row": replace(mixture, routing_granularity="instance"),
        "mixture, nothing shared": replace(mixture, share="none"),
        **{
            f"mixture, M = {count}": replace(mixture, num_experts=count)
            for count in EXPERTS
            if count != settings.experts
        },
    }
    return {
        **{name: Way(adapter, config) for name, config in found.items()},
        "head alone": Way(replace(adapter, sites=()), MixtureConfig.single()),
    }
