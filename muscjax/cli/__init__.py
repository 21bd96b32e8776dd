"""The command line: verbs that parse, call and print. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from muscjax.cli.ablate import ablate
from muscjax.cli.compare import compare
from muscjax.cli.detect import detect
from muscjax.cli.evaluate import evaluate
from muscjax.cli.explain import explain
from muscjax.cli.lines import demo, synth
from muscjax.cli.profile import profile
from muscjax.cli.reference import reference
from muscjax.cli.tools import backbones, convert, doctor
from muscjax.errors import InputError

_TOO_LARGE = "out of memory: lower --memory-budget, --image-size or ipg.groups, or score --subsets"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Zero-shot anomaly detection of industrial scans by mutual scoring (MuSc-V2); no labels.",
)


@app.callback()
def _root() -> None:
    pass


for verb in (
    detect,
    evaluate,
    compare,
    ablate,
    explain,
    demo,
    synth,
    doctor,
    profile,
    convert,
    backbones,
):
    app.command()(verb)
app.add_typer(reference, name="reference")


def main() -> None:
    """Entry point: bad input ends in one line on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        _stop(str(error))
    except MemoryError:
        _stop(_TOO_LARGE)
    except RuntimeError as error:  # XLA's own errors are RuntimeErrors with a status in front
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _stop(_TOO_LARGE)


def _stop(message: str) -> NoReturn:
    typer.echo(f"muscjax: {message}", err=True)
    sys.exit(2)
