"""One rank's session of a prepared run: start the ranks, build the model, resume, train to the end, report.

In: PreparedRun. Out: a trained run on disk. Knows nothing of the command line.
"""

import os
import warnings

import torch
import torch.distributed as dist
from rich.console import Console

from megagpt.errors import MegagptError
from megagpt.kernels.attention_backends import check_backend
from megagpt.kernels.compiled import check_compile
from megagpt.kernels.float8 import check_float8
from megagpt.parallel.agree import on_every_rank
from megagpt.parallel.launcher import launched_local_rank, launched_rank, launched_world_size
from megagpt.parallel.mesh import Mesh, build_mesh, destroy_mesh
from megagpt.plan import RunPlan
from megagpt.plan_layout import describe_axes
from megagpt.training.build import build_engine
from megagpt.training.data import describe_data
from megagpt.training.data_hashes import verify_alone, verify_together
from megagpt.training.devices import device_name, peak_tflops, slow_precision
from megagpt.training.exit_status import COMPLETE, RESTART
from megagpt.training.host_memory import keep_freed_memory
from megagpt.training.loop import TrainingRun, train
from megagpt.training.lost_peer import is_lost_peer, keep_traceback, lost_peer
from megagpt.training.metrics import MetricsSink, open_sinks
from megagpt.training.own_seconds import OwnSeconds
from megagpt.training.policies import Policies
from megagpt.training.prepare import PreparedRun
from megagpt.training.profile_options import ProfiledSteps
from megagpt.training.profile_run import RunProfile
from megagpt.training.progress import Phase, Progress
from megagpt.training.recorder import Recorder
from megagpt.training.resume import describe_resume, resume_run
from megagpt.training.run_environment import RankPlace, this_host
from megagpt.training.run_session import RunSession
from megagpt.training.run_trace import TRACE_FILE, RunTrace, traced_steps
from megagpt.training.saver import Saver
from megagpt.training.slow_ranks import SlowRanks
from megagpt.training.stop import Stopped, StopSignals
from megagpt.training.terminal import TerminalSink
from megagpt.training.watchdog import Watchdog, WatchedRank, collective_timeout


def run_training(
    prepared: PreparedRun,
    console: Console,
    session: RunSession,
    stop: StopSignals,
    trace: bool = False,
    profiled: ProfiledSteps | None = None,
) -> None:
    """Start the ranks, build the model, continue from the checkpoint if there is one, and train to the end.

    `stop`: listens already; all ranks save and end after the step in which it has heard a signal on one of them.
    `trace`: write RUN/trace.json, what every rank did in two of the first steps. `profiled`: write RUN/profile. A rank
    that hangs ends the process.
    Raises LostPeer where another rank is gone, and what the loop raises.
    """
    warnings.filterwarnings("ignore", module=r"(megatron|torch)\.")  # about packages that are optional, and renamings
    plan = prepared.plan
    if prepared.first_step >= plan.num_steps:
        console.print(
            f"already trained for {prepared.first_step} of {plan.num_steps} steps; raise train.steps to go on"
        )
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if not torch.cuda.is_available():
        keep_freed_memory()
    progress, timeout = Progress(), plan.config.faults.hang_timeout_seconds
    rank = WatchedRank(launched_rank(), launched_local_rank(), launched_world_size(), this_host())
    with Watchdog(progress, timeout, prepared.folder, rank, lambda reason: session.end(reason, RESTART)):
        try:
            stopped = _meet_and_train(prepared, console, session, stop, progress, trace, profiled)
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise
            place = progress.newest.describe()
            session.end(f"lost a peer in {place}", RESTART)
            keep_traceback(error, rank.rank, prepared.folder)
            raise lost_peer(rank.rank, place, prepared.folder) from None
    if stopped is not None:
        console.print(stopped.describe(), highlight=False)
        session.end(stopped.reason(), COMPLETE)


def _meet_and_train(
    prepared: PreparedRun,
    console: Console,
    session: RunSession,
    stop: StopSignals,
    progress: Progress,
    trace: bool,
    profiled: ProfiledSteps | None,
) -> Stopped | None:
    """From the meeting of the ranks until they part; returns what stopped training before its end."""
    plan, layout = prepared.plan, prepared.plan.layout
    data, is_alone = plan.config.data, launched_world_size() == 1
    if data.verify_hashes and is_alone:
        console.print(verify_alone(data, progress), highlight=False, markup=False, soft_wrap=True)
    timeout = collective_timeout(plan.config.faults.hang_timeout_seconds)
    mesh = build_mesh(layout.tensor, layout.pipeline, layout.virtual_stages, layout.context, timeout)
    if plan.config.train.fp8:
        check_float8(mesh.device)
    if plan.config.train.compile:
        check_compile(mesh.device)
    places = _gather_places(mesh)
    session.write_environment(places, torch.version.cuda)
    if data.verify_hashes and not is_alone:
        console.print(verify_together(data, mesh, progress), highlight=False, markup=False, soft_wrap=True)
    progress.mark(Phase.BUILD)
    check_backend(plan.config.train.attention_backend, mesh.device)
    engine = build_engine(plan, mesh)
    progress.mark(Phase.LOAD)
    prepared = resume_run(prepared, engine, console)
    session.resumed(prepared)
    first_step = prepared.first_step
    sinks = on_every_rank(lambda: _open_sinks(prepared, console, first_step) if mesh.rank == 0 else [], mesh)
    name = device_name(mesh.device)
    peak = peak_tflops(name, plan.config.train.precision)
    if peak is None:
        console.print(
            f"no MFU: the dense {plan.config.train.precision} peak of {name} is not in the table", highlight=False
        )
    recorder = Recorder(plan, sinks, peak, lambda trouble: _print_trouble(console, trouble), session.state)
    steps = traced_steps(first_step, plan.num_steps) if trace else range(0)
    run_trace = RunTrace(mesh, steps, prepared.folder / TRACE_FILE, console)
    profile = RunProfile(plan, mesh, profiled, first_step, console, progress)
    settings = plan.config.checkpoint
    saver = Saver(prepared.checkpoints, settings, plan.checkpoint_bytes, mesh, console)
    try:
        policies = Policies(plan.config, prepared.faults_before, console)
        hosts, ratio = [place.host for place in places], plan.config.faults.slow_rank_ratio
        slow = SlowRanks(layout, hosts, ratio, lambda line: _print_trouble(console, line))
        own_seconds = OwnSeconds(progress, mesh.device)
        run = TrainingRun(
            prepared,
            mesh,
            engine,
            recorder,
            saver,
            console,
            run_trace,
            profile,
            stop,
            progress,
            policies,
            slow,
            own_seconds,
        )
        stopped = train(run, first_step)
    except MegagptError:  # as on every rank: what is being saved is of use
        saver.settle()
        raise
    finally:
        profile.close()
        recorder.close()
    progress.mark(Phase.LEAVE)
    destroy_mesh()
    return stopped


def _open_sinks(prepared: PreparedRun, console: Console, first_step: int) -> list[MetricsSink]:
    """Opens every place where records go. Rank 0 only."""
    folder, plan = prepared.folder, prepared.plan
    return [*open_sinks(folder, plan.config, first_step), TerminalSink(console, plan.num_steps, first_step)]


def _gather_places(mesh: Mesh) -> list[RankPlace]:
    """Where every rank runs. Gathers over all ranks."""
    places: list[RankPlace | None] = [None] * mesh.world_size
    dist.all_gather_object(places, RankPlace(this_host(), device_name(mesh.device)))
    return [place for place in places if place is not None]


def _print_trouble(console: Console, trouble: str) -> None:
    console.print(trouble, style="bold red", highlight=False, markup=False, soft_wrap=True)


def describe_start(prepared: PreparedRun, console: Console) -> None:
    """A few lines about what is going to happen."""
    plan: RunPlan = prepared.plan
    layout, train = plan.layout, plan.config.train
    console.print(
        f"{plan.spec.name}: {plan.parameters.total:,} parameters, {train.precision}, {plan.num_steps:,} steps of "
        f"{train.batch_tokens:,} tokens on {layout.world_size} ranks "
        f"({describe_axes(layout.tensor, layout.context, layout.pipeline, layout.data)}, ZeRO {layout.zero_stage})",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for stage in layout.stages if layout.pipeline > 1 else ():
        ends = [name for name, has in (("embedding", stage.has_embedding), ("head", stage.has_head)) if has]
        last = stage.first_layer + stage.num_layers - 1
        console.print(
            f"  pipeline rank {stage.pipeline_rank} chunk {stage.chunk}: layers {stage.first_layer}-{last}"
            + (f" with {' and '.join(ends)}" if ends else ""),
            highlight=False,
            markup=False,
        )
    for line in describe_data(prepared.data, plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    describe_resume(prepared, console)
    slow = slow_precision(train.precision)
    for note in (*plan.notes, *([slow] if slow else [])):
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
