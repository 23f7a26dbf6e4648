"""How tokens are chosen, as the user says. Checks the values; knows no torch, so that wrong ones are told at once."""

from dataclasses import dataclass

from megagpt.errors import GenerationError

_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen. Defaults are those of ModelScope's GPT-3 pipelines: top-p 0.9 at temperature 1.

    max_new_tokens       tokens to generate at most, from 1
    temperature          logits are divided by it, 0.001 to 100
    top_k                only the k most likely ids, and those as likely as the k-th; 0: all
    top_p                only the most likely ids that together reach this probability, above 0 to 1; 1: all
    repetition_penalty   above 1 makes ids that occurred before less likely (Keskar et al. 2019, §4.1), 0.01 to 100
    greedy               the most likely id always; temperature, top_k, top_p and seed then play no part
    seed                 of the random choices, from 0

    Raises GenerationError naming every value that is out of its range.
    """

    max_new_tokens: int = 100
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    greedy: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)} is out of range; use {allowed}"
            for name, is_allowed, allowed in [
                ("max_new_tokens", self.max_new_tokens >= 1, "a whole number from 1"),
                (
                    "temperature",
                    0.001 <= self.temperature <= 100,
                    "a number from 0.001 to 100, or greedy for the most likely token",
                ),
                ("top_k", self.top_k >= 0, "a whole number from 1, or 0 for all ids"),
                ("top_p", 0 < self.top_p <= 1, "a number above 0 and up to 1; 1 is all ids"),
                ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "a number from 0.01 to 100; 1 is none"),
                ("seed", 0 <= self.seed <= _LARGEST_SEED, "a whole number from 0 to 2^63 - 1"),
            ]
            if not is_allowed
        ]
        if problems:
            raise GenerationError("\n".join(problems))
