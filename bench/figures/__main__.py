"""Draw the figures of the paper from runs of one's own.

python -m bench.figures strips OUT.png RUN RUN ...         Fig. 6, 7, 10: image, truth, and what every run says of it
python -m bench.figures similarity OUT.png RUN             Fig. 5: what the bank says of some pixels
python -m bench.figures distribution OUT.png RUN RUN ...   Fig. 9: how frequent classes are, from source to bank

A run is its folder or a checkpoint in it. Beside every picture OUT.png stands OUT.json: commit, machine, checkpoints
and the numbers that were drawn. Fig. 8 is drawn by `python -m bench.tables --table 8a 8b --split test --render`.
"""

import sys
from typing import Annotated

import tyro

from bench.figures import distribution, similarity, strips
from dida.command import USER_ERRORS_OF_READING, told_in_one_line
from dida.machine.files import require_writable

Figure = (
    Annotated[strips.StripsOptions, tyro.conf.subcommand("strips")]
    | Annotated[similarity.SimilarityOptions, tyro.conf.subcommand("similarity")]
    | Annotated[distribution.DistributionOptions, tyro.conf.subcommand("distribution")]
)
DRAW = {
    strips.StripsOptions: strips.main,
    similarity.SimilarityOptions: similarity.main,
    distribution.DistributionOptions: distribution.main,
}


def figures_command(args: list[str]) -> None:
    """Draw what a command line asks for. What a user can put right ends in one message and exit code 1."""
    options = tyro.cli(Figure, prog="bench.figures", description=__doc__.splitlines()[0], args=args)
    with told_in_one_line("bench.figures", *USER_ERRORS_OF_READING):
        require_writable(options.out, option="OUT.png")
        DRAW[type(options)](options)
    print(options.out)


if __name__ == "__main__":
    figures_command(sys.argv[1:])
