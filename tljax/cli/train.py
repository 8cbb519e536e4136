"""`train`: fine-tunes, validates, saves and resumes; ends with result.json."""

from tljax import console
from tljax.cli.flags import parse_experiment
from tljax.config import flag_types
from tljax.distributed import processes
from tljax.distributed.preemption import PreemptionSignal
from tljax.training.trainer import train


def main(arguments: list[str]) -> None:
    """Runs the verb."""
    parser = flag_types.Parser("train", description=__doc__)
    parser.add_argument(
        "--workdir", required=True, type=flag_types.path, help="required: a new folder or bucket, or one to resume"
    )
    text = "save and stop before S seconds have passed, with exit status 75; the same command resumes"
    parser.add_argument("--max-seconds", type=flag_types.seconds, default=0, metavar="S", help=text)
    processes.add_arguments(parser)
    experiment, options = parse_experiment(parser, arguments)
    with PreemptionSignal(options.max_seconds).listening() as preemption, processes.join(options):
        result = train(experiment, options.workdir, preemption)
        workdir = console.shown_path(options.workdir)
        if "test" in result["splits"]:
            console.next_step("report", workdir, "--out=report")
        else:
            console.next_step("predict", f"--workdir={workdir}", "FILE")
