"""The verbs `array-task` and `array-merge`: a build as an array of tasks, with the arguments of `build`.

In: parsed arguments. Out: an exit status. launch/preprocess.slurm runs them under SLURM; any scheduler can.
"""

import argparse
from collections.abc import Mapping
from types import MappingProxyType

from megagpt.data import cli_build
from megagpt.data.tool import Verb


def run_task(args: argparse.Namespace) -> int:
    """Build one task's part, unless it is done."""
    from megagpt.data.array_build import array_request, part_is_done
    from megagpt.data.parts import task_output

    request = array_request(args.inputs, args.tokenizer, args.text_key, args.on_error, args.task, args.num_tasks)
    if part_is_done(args.output, request, args.overwrite):
        print(f"{task_output(args.output, args.task, args.num_tasks)} was built before, from the same input")
        return 0
    return cli_build.run(args)


def run_merge(args: argparse.Namespace) -> int:
    """Join the parts of all tasks, and remove them."""
    from megagpt.data.array_build import array_request, merge_array

    request = array_request(args.inputs, args.tokenizer, args.text_key, args.on_error, 0, args.num_tasks)
    print("\n".join(merge_array(args.output, request, args.overwrite, args.workers)))
    return 0


VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        "array-task": Verb(
            "Build one task's part of a dataset (arguments of build), unless it is done.",
            cli_build.add_arguments,
            run_task,
        ),
        "array-merge": Verb(
            "Join the parts of all tasks (the arguments that say what was built) into the dataset, and remove them.",
            cli_build.add_dataset_arguments,
            run_merge,
        ),
    }
)
