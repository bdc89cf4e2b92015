"""Row 7: a stopped and resumed run equals an undisturbed one."""

import signal

from . import inject
from .checkpoints import EMA
from .frame import case, check, finished, row
from .lab import Lab
from .look import steps, weights

row(7, "stopped and resumed", "weights, optimizer, EMA and order of images are those of the undisturbed run")

REPEATED = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 0.9)
AMP = ("SOLVER.AMP.ENABLED", "True")


@case(7, "killed in iteration 4, without workers")
@case(7, "killed in iteration 4, with a worker", "DATALOADER.NUM_WORKERS", 1)
@case(7, "killed in iteration 4, with two workers and groups of aspect ratio", "DATALOADER.NUM_WORKERS", 2)
def resume_exactly(lab: Lab, *options: object) -> str:
    return resumed(lab, *options)


@case(7, "with EMA and mixed precision", *EMA, *AMP, stock=False)
@case(7, "with accumulation", "TRAIN.ACCUMULATE", 2, stock=False)
@case(7, "with repeat factors", *REPEATED)
def resume_options(lab: Lab, *options: object) -> str:
    return resumed(lab, *options)


def resumed(lab: Lab, *options: object) -> str:
    """Kill a run in iteration 4, resume it, and compare it with an undisturbed one."""
    out, traces = lab.out(), [lab.folder / name for name in ("killed", "resumed", "undisturbed")]
    faults = [(inject.trace_iterations, str(traces[0])), (inject.at_iteration, 4, inject.send, signal.SIGKILL)]
    lab.killed(lab.train(out, *options, faults=faults))
    done = lab.train(out, *options, resume=True, faults=[(inject.trace_iterations, str(traces[1]))])
    finished(done)
    calm = lab.out()
    finished(lab.train(calm, *options, faults=[(inject.trace_iterations, str(traces[2]))]))
    killed, rest, all_steps = map(steps, traces)
    check(killed == all_steps[: len(killed)], "an undisturbed run does not repeat itself")
    check({s[0] for s in rest} == {4, 5}, f"the resumed run trained the iterations {[s[0] for s in rest]}")
    late = [s for s in all_steps if s[0] >= 4]
    check(rest == late, f"other images: {[s[1] for s in rest]}, undisturbed {[s[1] for s in late]}")
    for name in ("model", "raw_model", "optimizer", "iteration"):
        same = weights(out / "model_final.pth", name) == weights(calm / "model_final.pth", name)
        check(same, f"another state of {name}")
    return "survived: final weights equal"


@case(7, "on two ranks", stock=True)
def resume_ranks(lab: Lab) -> str:
    out, calm = lab.out(), lab.out()
    kill = {rank: [(inject.at_iteration, 4, inject.send, signal.SIGKILL)] for rank in range(2)}
    lab.kills += sum(done.returncode == -signal.SIGKILL for done in lab.ranks(out, faults_of=kill))
    trace = [{r: [(inject.trace_iterations, str(lab.folder / f"{name}{r}"))] for r in range(2)} for name in ("a", "b")]
    for folder, faults, resume in ((out, trace[0], True), (calm, trace[1], False)):
        for done in lab.ranks(folder, faults_of=faults, resume=resume):
            finished(done)
    for rank in range(2):
        rest, all_steps = (steps(lab.folder / f"{name}{rank}") for name in ("a", "b"))
        check(rest == all_steps[4:], f"other images on rank {rank}: {rest}, undisturbed {all_steps[4:]}")
    check(weights(out / "model_final.pth") == weights(calm / "model_final.pth"), "the final weights differ")
    return "survived: final weights equal"
