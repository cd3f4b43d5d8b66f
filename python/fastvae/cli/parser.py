"""The options of the command and their help."""

from __future__ import annotations

import difflib
import importlib.metadata
from argparse import (
    SUPPRESS,
    ArgumentParser,
    ArgumentTypeError,
    BooleanOptionalAction,
    Namespace,
    RawDescriptionHelpFormatter,
    _SubParsersAction,
)
from collections.abc import Callable, Sequence
from typing import NoReturn

DATA_HELP = (
    "digits (scikit-learn's 8x8 scans), an .npy or .npz file, a folder of images (subfolders are classes), "
    "or a folder of IDX files named as MNIST's, or one of them"
)


def build_parser() -> ArgumentParser:
    """Build the parser of ``fastvae`` and its commands."""
    parser = ArgumentParser(
        prog="fastvae",
        description="Train variational autoencoders and use them.",
        epilog="""examples:
  fastvae train digits                              train, leave a run folder with pictures
  fastvae train data/mnist --latent-dim 32 -o runs/mnist
  fastvae sample runs/mnist -n 1000000 -o samples.npy
  fastvae evaluate runs/mnist data/mnist

`fastvae COMMAND --help` tells more.
exit codes: 0 fine, 1 failed, 2 wrong use, 130 interrupted (what there is has been written)""",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastvae {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_sample(commands)
    _add_encode(commands)
    _add_reconstruct(commands)
    _add_evaluate(commands)
    _add_info(commands)
    return parser


def reject_unknown_options(parser: ArgumentParser, options: Namespace, unknown: Sequence[str]) -> NoReturn:
    """End with an error that names the option that was probably meant."""
    from fastvae.training.aliases import ALIASES  # noqa: PLC0415  brings torch, only for this error

    known = {option[2:].replace("-", "_") for option in options.known_options if option.startswith("--")}
    meant = {alias: word for word, aliases in ALIASES.items() if word in known for alias in aliases}
    given = next((text for text in unknown if text.startswith("-")), unknown[0])
    word = given.lstrip("-").partition("=")[0].replace("-", "_")
    close = difflib.get_close_matches(word, [*known, *meant], n=1, cutoff=0.7)
    right = meant.get(word) or (close and meant.get(close[0], close[0]))
    if not given.startswith("-"):
        parser.error(f"{options.command}: did not expect {given!r}")
    hint = f"; did you mean --{right.replace('_', '-')}?" if right else ""
    parser.error(f"{options.command}: there is no option {given.partition('=')[0]}{hint}")


def _add_train(commands: _SubParsersAction[ArgumentParser]) -> None:
    parser = _command(
        commands,
        "train",
        "DATA [-o FOLDER] [options]",
        "train a model on data",
        """Train a variational autoencoder and leave a run folder: config.json, metrics.jsonl,
model.safetensors and pictures. Ctrl-C, or SIGTERM, ends the training and keeps what there
is; the same command with --resume goes on.""",
        """examples:
  fastvae train digits
  fastvae train data/mnist --model conv --epochs 20 -o runs/mnist
  fastvae train data/mnist --model conv --epochs 40 -o runs/mnist --resume
  fastvae train table.npy --likelihood gaussian --latent-dim 8 --hidden-dims 256 128
  fastvae train photos/ --model conv --beta 4 --warmup 0.2 --workers 2
  torchrun --nproc-per-node 4 -m fastvae train data/mnist --batch-size 512    four processes, one model""",
    )
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)

    model = parser.add_argument_group("model")
    _option(model.add_argument, "--model", "networks: mlp or conv (default: mlp)", metavar="NAME")
    _option(model.add_argument, "--latent-dim", "number of codes (default: 32)", type=_count)
    _option(
        model.add_argument,
        "--hidden-dims",
        "hidden sizes from data to code, mirrored in the decoder (default: the model's own)",
        type=_count,
        nargs="+",
    )
    _option(
        model.add_argument,
        "--likelihood",
        "of the data given the codes (default: auto, by the range of the data)",
        choices=["auto", "bernoulli", "gaussian"],
    )
    _option(
        model.add_argument,
        "--variance",
        "of the Gaussian likelihood: learned, predicted, or a number (default: learned)",
        type=_word_or_number,
        metavar="WORD|X",
    )
    _option(
        model.add_argument,
        "--variational",
        "--no-variational trains a plain autoencoder (default: variational)",
        action=BooleanOptionalAction,
    )

    training = parser.add_argument_group("training")
    _option(
        training.add_argument,
        "--epochs",
        "passes over the data (default: as many as make 2000 steps, within 20 and 400)",
        type=_count,
    )
    _option(
        training.add_argument,
        "--batch-size",
        "samples per step, of all processes together (default: 128)",
        type=_count,
    )
    _option(training.add_argument, "--learning-rate", "of Adam (default: 0.001)", type=float, metavar="X")
    _option(training.add_argument, "--weight-decay", "decoupled (default: 0)", type=float, metavar="X")
    _option(training.add_argument, "--beta", "weight of the KL (default: 1)", type=float, metavar="X")
    _option(
        training.add_argument,
        "--warmup",
        "fraction of all steps in which that weight grows from 0 (default: 0)",
        type=float,
        metavar="X",
    )
    _option(
        training.add_argument,
        "--cycles",
        "warm-ups, evenly over the training (default: 1)",
        type=_count,
    )
    _option(
        training.add_argument,
        "--capacity",
        "train on beta * |KL - X|, where X grows over --warmup; in nats, 0 for beta * KL (default: 0)",
        type=float,
        metavar="X",
    )
    _option(
        training.add_argument,
        "--free-bits",
        "nats that each code of each sample carries at no cost (default: 0)",
        type=float,
        metavar="X",
    )
    _option(
        training.add_argument,
        "--binarize",
        "make pixels binary: drawn anew in each epoch, or above 0.5 (default: none)",
        choices=["none", "dynamic", "threshold"],
    )
    _option(
        training.add_argument,
        "--validation",
        "held-out data: a fraction, other DATA, or none (default: the test set of the data, else a tenth)",
        type=_validation,
        metavar="X|DATA",
    )

    run = parser.add_argument_group("run")
    run.add_argument(
        "-o",
        "--output-dir",
        metavar="FOLDER",
        help="the run folder; an earlier run in it is replaced, or gone on with by --resume (default: a new "
        "one, runs/NAME)",
    )
    _option(
        run.add_argument,
        "--resume",
        "go on with the run in FOLDER where it was cut, with the same options; without one there, begin it",
        action="store_true",
    )
    _option(run.add_argument, "--seed", "decides everything random (default: 0)", type=int)
    _add_device(run.add_argument)
    _option(
        run.add_argument,
        "--precision",
        "of the networks in training (default: float32)",
        choices=["float32", "bfloat16"],
    )
    _option(
        run.add_argument,
        "--compile",
        "what is made of steps: graph (CUDA graphs), inductor, none, or auto (default: auto, graphs on "
        "CUDA where networks and likelihood are fastvae's own)",
        type=_compile,
        metavar="WORD",
    )
    _option(
        run.add_argument,
        "--distributed",
        "whether processes that torchrun starts train one model together: auto, or none, each its own "
        "(default: auto)",
        type=_distributed,
        metavar="WORD",
    )
    _option(run.add_argument, "--workers", "processes that read images (default: 0)", type=int)
    _option(
        run.add_argument,
        "--progress",
        "show a progress bar on standard error (default: shown)",
        action=BooleanOptionalAction,
    )


def _add_sample(commands: _SubParsersAction[ArgumentParser]) -> None:
    parser = _command(
        commands,
        "sample",
        "RUN -n N -o OUT [options]",
        "make samples from noise",
        """Decode unit Gaussian noise, a few samples at a time: memory does not grow with their number.
Sample i of a seed is the same however many are made.""",
        """examples:
  fastvae sample runs/digits -n 100000 -o samples.npy      one float32 array
  fastvae sample runs/digits -n 64 -o samples.png          one picture of them all
  fastvae sample runs/digits -n 500 -o samples/            a folder of PNG files""",
    )
    _add_run(parser)
    parser.add_argument("-n", "--number", type=_count, required=True, metavar="N", help="how many")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="an .npy file, a .png file, or a new folder for one .png each",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    parser.add_argument(
        "--start", type=_natural, default=0, metavar="I", help="number of the first sample (default: 0)"
    )
    parser.add_argument(
        "--sampled",
        action="store_true",
        help="draw from the likelihood too; without, its mean is written, which looks better for images",
    )
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="values shown as black and white in PNG files (default: 0 1)",
    )
    _add_device(parser.add_argument)


def _add_encode(commands: _SubParsersAction[ArgumentParser]) -> None:
    parser = _command(
        commands,
        "encode",
        "RUN DATA -o OUT [options]",
        "give the codes of data",
        "Write the mean code of each sample, in order: one float32 array, a row for each sample.",
        """examples:
  fastvae encode runs/digits digits -o codes.npy""",
    )
    _add_run(parser)
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="an .npy file")
    _add_device(parser.add_argument)
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images")


def _add_reconstruct(commands: _SubParsersAction[ArgumentParser]) -> None:
    parser = _command(
        commands,
        "reconstruct",
        "RUN DATA -o OUT [options]",
        "encode data and decode it again",
        "Write what the model makes of data: the decoded mean code of each sample, in order.",
        """examples:
  fastvae reconstruct runs/digits digits -o digits.npy     all of them, one float32 array
  fastvae reconstruct runs/digits digits -o digits.png     some of them, below their originals""",
    )
    _add_run(parser)
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="an .npy file or a .png file")
    _add_device(parser.add_argument)
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images")


def _add_evaluate(commands: _SubParsersAction[ArgumentParser]) -> None:
    parser = _command(
        commands,
        "evaluate",
        "RUN DATA [options]",
        "evaluate the bound on data",
        """Print the ELBO at beta = 1 and its two terms in nats per sample, and how many codes are in use;
with --num-samples, the importance-weighted estimate of log p(x) too. Where the data comes with
a test set (MNIST's), that is evaluated.""",
        """examples:
  fastvae evaluate runs/mnist data/mnist
  fastvae evaluate runs/mnist data/mnist --num-samples 1000
  fastvae evaluate runs/mnist data/mnist/train-images-idx3-ubyte.gz --json""",
    )
    _add_run(parser)
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--num-samples",
        type=_natural,
        default=0,
        metavar="K",
        help="codes drawn per sample to estimate log p(x); 0 leaves it out (default: 0)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the codes drawn (default: 0)")
    _add_device(parser.add_argument)
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images")


def _add_info(commands: _SubParsersAction[ArgumentParser]) -> None:
    parser = _command(
        commands,
        "info",
        "RUN [--json]",
        "tell what a run is",
        "Print what a run was trained on, how, and where it ended.",
        """examples:
  fastvae info runs/digits
  fastvae info runs/digits --json | jq .history[-1].val_elbo""",
    )
    _add_run(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, history included")


def _command(
    commands: _SubParsersAction[ArgumentParser],
    name: str,
    usage: str,
    summary: str,
    description: str,
    examples: str,
) -> ArgumentParser:
    parser = commands.add_parser(
        name,
        usage=f"fastvae {name} {usage}",
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the source an error came from"
    )
    parser.set_defaults(known_options=parser._option_string_actions)
    return parser


def _add_run(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder that `fastvae train` wrote")


def _add_device(add: Callable[..., object]) -> None:
    _option(add, "--device", "cpu, cuda or mps (default: auto, the first there is of cuda, mps, cpu)")


def _option(add: Callable[..., object], flag: str, text: str, **settings: object) -> None:
    """Add an option that is left out unless it is given: its default is that of the function it goes to."""
    if "choices" not in settings and "action" not in settings:
        settings.setdefault("metavar", "N" if settings.get("type") in {int, _count} else "NAME")
    add(flag, default=SUPPRESS, help=text, **settings)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def _word_or_number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _compile(text: str) -> str | bool:
    if text not in {"auto", "graph", "inductor", "none"}:
        raise ArgumentTypeError(f"expected auto, graph, inductor or none, got {text!r}")
    return text != "none" and text


def _distributed(text: str) -> str | bool:
    if text not in {"auto", "none"}:
        raise ArgumentTypeError(f"expected auto or none, got {text!r}")
    return text != "none" and text


def _validation(text: str) -> str | float | None:
    return None if text == "none" else _word_or_number(text)


def _version() -> str:
    try:
        return importlib.metadata.version("fastvae")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
