"""The backbone under test, with requests and tasks for it: what all parts of one run share."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerFast

from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone
from adamix.errors import InvalidConfig
from adamix.files.manifest import Kind
from adamix_bench.serving.settings import Popularity
from adamix_bench.serving.synthesis import SynthTask, make_task
from adamix_bench.serving.workload import Ints, Lengths, Requests, draw_tasks, draw_texts

_MOST_WORDS = 2000
# Draws that must not change when another one is added each have a stream of their own.
_TEXTS, _TASKS, _ARRIVALS = 1, 2, 3


@dataclass(frozen=True)
class Workbench:
    """A loaded backbone and a seed."""

    backbone: Backbone
    tokenizer: PreTrainedTokenizerFast
    seed: int

    @classmethod
    def load(cls, name: str, seed: int) -> "Workbench":
        """Raises InvalidConfig: see `adamix.backbones.backbone.load`."""
        return cls(backbones.load(name), backbones.load_tokenizer(name), seed)

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id or 0

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Plain words that are one token each, in order of their ids. Raises InvalidConfig when there are none."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        # Pieces inside a word are told from words by tokenizing them.
        names = [name.lstrip("Ġ▁") for name in sorted(vocabulary, key=vocabulary.__getitem__)]
        candidates = [n for n in dict.fromkeys(names) if n.isascii() and n.isalpha() and n.islower() and len(n) > 1]
        candidates = candidates[: 2 * _MOST_WORDS]
        encoded = self.tokenizer([f"{word} {word}" for word in candidates], add_special_tokens=False)["input_ids"]
        words = [word for word, ids in zip(candidates, encoded, strict=True) if len(ids) == 2 and ids[0] == ids[1]]
        if not words:
            raise InvalidConfig("the backbone's tokenizer has no plain words to make requests of", field="backbone")
        return tuple(words[:_MOST_WORDS])

    def requests(self, count: int, popularity: Popularity, num_tasks: int) -> Requests:
        """`count` requests of lognormal lengths, up to what the backbone takes."""
        random = np.random.default_rng([self.seed, _TEXTS])
        most = min(Lengths.longest, self.backbone.spec.max_tokens)
        special = self.tokenizer.num_special_tokens_to_add()
        texts = draw_texts(self.words, Lengths(longest=most).draw(count, random).tolist(), special, random)
        token_ids = tuple(np.asarray(ids, np.int32) for ids in self.tokenizer(texts)["input_ids"])
        tasks = self.draw_tasks(popularity, count, num_tasks)
        return Requests(tuple(map(int, tasks)), tuple(texts), token_ids)

    def draw_tasks(self, popularity: Popularity, count: int, num_tasks: int) -> Ints:
        return draw_tasks(popularity, count, num_tasks, self.tasks_random(num_tasks))

    def tasks_random(self, num_tasks: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, _TASKS, num_tasks])

    def arrivals_random(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, _ARRIVALS])

    def tasks(self, count: int, *, kind: Kind | None = None, prefix: str = "bench") -> Iterator[SynthTask]:
        """The first `count` tasks of the seed, made as they are asked for."""
        return (make_task(self.backbone.spec, i, self.seed, kind=kind, prefix=prefix) for i in range(count))
