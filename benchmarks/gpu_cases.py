"""What the GPU suite runs: sizes, the arguments of each run, and which settings and micro-batches fit a device.

In: names of sizes, memory of the device. Out: Case tuples. Pure but for reading the shipped configurations.
"""

from typing import NamedTuple

from megagpt.config_file import load_config
from megagpt.plan import RunPlan, make_plan
from megagpt.plan_memory import GIB

SIZES = ("gpt3-base", "gpt3-large", "gpt3-1.3b", "gpt3-2.7b", "gpt3-13b")
PEERS = ("nanogpt", "huggingface")
FP8_SIZES = ("gpt3-1.3b", "gpt3-2.7b", "gpt3-13b")  # "1.3B and up"
BATCH_TOKENS = 131_072  # a step of 2.7B at 50 % of an H100's peak takes 5 seconds
MEMORY_SHARE = 0.94  # of the device, that an estimate may take: a run that does not fit after all is tried smaller
LARGEST_MICRO_BATCH = 32
CURVE_STEPS, CURVE_BATCH_TOKENS = 500, 16_384

# what a size may be trained with where it does not fit as it is, cheapest first
SETTINGS: tuple[tuple[str, ...], ...] = (
    ("--train.recompute=none",),
    ("--train.recompute=full", "--train.recompute_every=2"),
    ("--train.recompute=full",),
    ("--train.recompute=full", "--parallel.zero_stage=2", "--parallel.offload_optimizer=cpu"),
)
# one device, nothing of the recipe that has no part in a step's time
COMMON = (
    *("--parallel.tensor=1", "--parallel.pipeline=1", "--parallel.sequence_parallel=false"),
    *("--train.batch_ramp_tokens=0", "--train.warmup_tokens=0", "--train.lr_schedule=constant", "--train.lr=1e-4"),
    *("--checkpoint.interval_steps=0", "--checkpoint.resume=never", "--evaluation.interval_steps=0"),
    *("--evaluation.max_batches=1", "--log.interval_steps=1", "--log.tensorboard=false", "--data.split=1.0,0.0,0.0"),
)


class Case(NamedTuple):
    """One run of one program."""

    kind: str  # ours, nanogpt, huggingface or ceiling
    size: str
    micro_batch: int
    steps: int
    arguments: tuple[str, ...] = ()  # of ours, beside the size; of a peer, of the model whose shape it takes
    tag: str = ""  # what else tells it from others of the table

    @property
    def key(self) -> str:
        """By which its result is found again."""
        return " ".join([self.kind, self.size, f"micro-batch {self.micro_batch}", self.tag, *self.arguments]).strip()


class Memory(NamedTuple):
    """Of the machine, in GiB."""

    device_gib: float
    host_gib: float


def plan_of(size: str, arguments: tuple[str, ...], micro_batch: int = 1) -> RunPlan:
    """The plan of a size on one device. Arguments given later win."""
    words = [*COMMON, "--train.steps=10", f"--train.batch_tokens={BATCH_TOKENS}", *arguments]
    return make_plan(load_config(size, [*words, f"--train.micro_batch_size={micro_batch}"]), 1, None)


def fits(plan: RunPlan, memory: Memory) -> bool:
    """By the plan's estimate, with what the estimate leaves out."""
    peak = plan.peak_memory
    return (
        peak.total_bytes <= MEMORY_SHARE * memory.device_gib * GIB
        and peak.host_bytes <= MEMORY_SHARE * memory.host_gib * GIB
    )


def settings_that_fit(size: str, memory: Memory, arguments: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """The cheapest of SETTINGS with which one sequence a micro-batch fits; None where none does."""
    for settings in SETTINGS:
        if fits(plan_of(size, (*settings, *arguments)), memory):
            return settings
    return None


def layers_that_fit(size: str, memory: Memory) -> int:
    """Most layers of a size, of the same width, that fit without offloading; 0 where not one does."""
    most = plan_of(size, ()).spec.num_layers
    for layers in range(most, 0, -1):
        if fits(plan_of(size, (*SETTINGS[0], f"--model.num_layers={layers}"), 2), memory):
            return layers
    return 0


def micro_batches_to_try(size: str, arguments: tuple[str, ...], memory: Memory, most: int, count: int) -> list[int]:
    """Powers of two, the largest that fits by the plan's estimate first, then the next smaller ones."""
    largest = 1
    while largest < most and fits(plan_of(size, arguments, 2 * largest), memory):
        largest *= 2
    return [largest >> step for step in range(count) if largest >> step]


def ours_arguments(case: Case, folder: str, data: str) -> list[str]:
    """The command line of `megagpt train` for a case."""
    return [
        *(case.size, *COMMON, f"--train.steps={case.steps}", f"--train.micro_batch_size={case.micro_batch}"),
        *(f"--train.batch_tokens={BATCH_TOKENS}", f"--run.folder={folder}"),
        *(f"--tokenizer.path={data}/tokenizer.json", f"--data.path={data}/corpus", *case.arguments),
    ]
