"""dida COMMAND ...: what train.py and eval.py do, from wherever the package is installed. `python -m dida` is the same.

Nothing slow is imported before the options are read, so that --help and a mistyped option are answered at once.
"""

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dida.machine.signals import Signals
from dida.machine.streams import standard_streams
from dida.options.program import program_name


def train_command(args: Sequence[str]) -> None:
    """train on a labelled source and an unlabelled target"""
    _train(args, program_name("train"))


def _train(args: Sequence[str], program: str) -> None:
    from dida.recipes import from_command_line

    config = from_command_line(list(args), program)
    with _importing(program):
        from dida import command

    command.run_check(config, program) if config.check_data else command.run_training(config)


def eval_command(args: Sequence[str]) -> None:
    """score a network on labelled images"""
    from dida.options import read_command_line
    from dida.options.evaluation import EvalConfig

    config = read_command_line(EvalConfig, list(args), program := program_name("eval"))
    with _importing(program):
        from dida.command import run_evaluation

    run_evaluation(config)


def label_command(args: Sequence[str]) -> None:
    """label pictures and videos of one's own"""
    from dida.options import read_command_line
    from dida.options.evaluation import LabelConfig

    program = program_name("label")
    config = read_command_line(LabelConfig, list(args), program)
    with _importing(program):
        from dida.command import run_labelling

    run_labelling(config, config.pictures, program)


def export_command(args: Sequence[str]) -> None:
    """write a network for programs that have nothing of this package: ONNX, torch.export, safetensors"""
    from dida.options import read_command_line
    from dida.options.export import ExportConfig

    config = read_command_line(ExportConfig, list(args), program := program_name("export"))
    with _importing(program):
        from dida.command import run_export

    run_export(config)


def report_command(args: Sequence[str]) -> None:
    """write what is known of runs into one HTML file: curves, scores, calibration, pictures"""
    from dida.options import read_command_line
    from dida.options.report import ReportConfig

    config = read_command_line(ReportConfig, list(args), program := program_name("report"))
    with _importing(program):
        from dida.command import run_report

    run_report(config)


def check_data_command(args: Sequence[str]) -> None:
    """read every file that training would read, and say what is wrong"""
    if {"-h", "--help"} & set(args):
        print("usage: dida check-data --src NAME --tgt NAME [--data-root PATH], with the options of dida train:\n")
    _train([*args, "--check-data"], program_name("check-data"))


def toy_command(args: Sequence[str]) -> None:
    """draw the toy, a small data set on which everything can be tried"""
    from dida.options import read_command_line
    from dida.options.toy import ToyOptions

    config = read_command_line(ToyOptions, list(args), program := program_name("toy"))
    with _importing(program):
        from dida.command import run_toy

    run_toy(config)


def doctor_command(args: Sequence[str]) -> None:
    """say what this machine has and which backend every operation will use"""
    from dida.options import read_command_line
    from dida.options.doctor import DoctorOptions

    options = read_command_line(DoctorOptions, list(args), program := program_name("doctor"))
    with _importing(program):
        from dida import doctor

    doctor.main(options)


@contextmanager
def _importing(program: str) -> Iterator[None]:
    """What DIDA_BACKEND says is looked at while the operations are imported, and is a user's to put right."""
    try:
        yield
    except ValueError as error:
        sys.exit(f"{program}: {error}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train_command,
    "eval": eval_command,
    "label": label_command,
    "export": export_command,
    "report": report_command,
    "check-data": check_data_command,
    "toy": toy_command,
    "doctor": doctor_command,
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a command. Exit status as that of train.py; 2 where there is no such command."""
    with standard_streams(), Signals() as signals, signals.interrupting():
        name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
        if name in COMMANDS:
            COMMANDS[name](rest)
        elif name in ("-h", "--help", "help"):
            print("\n".join(usage()))
        elif name == "--version":
            import dida

            print(dida.__version__)
        else:
            near = difflib.get_close_matches(name, COMMANDS, 1)
            print(f"dida: no command {name!r}" + (f"; did you mean {near[0]}?" if near else ""), file=sys.stderr)
            print("\n".join(usage()), file=sys.stderr)
            sys.exit(2)


def usage() -> list[str]:
    """The commands, a line each."""
    lines = [f"    {name:12}{command.__doc__}" for name, command in COMMANDS.items()]
    return ["usage: dida COMMAND [options]", *lines, "dida COMMAND --help lists the options of a command."]
