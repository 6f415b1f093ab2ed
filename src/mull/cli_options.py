"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL = "A run, RUN:NAME, a model directory, a .gguf file, smollm2, or a pulled ORG/NAME."
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL)]
Out = Annotated[Path | None, typer.Option("--out", help="The run's directory; the same command continues it.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, the thinking included.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token always.")]
Seed = Annotated[int, typer.Option(help="Of the draws; the same seed draws the same.")]
NoThink = Annotated[bool, typer.Option("--no-think", help="Answer at once.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Exact = Annotated[bool, typer.Option("--exact", help="The same bits in any company and order; slower.")]

__all__ = [
    "MODEL", "Device", "Exact", "Json", "MaxTokens", "ModelArgument", "NoThink", "Out", "Quiet", "Seed", "Temperature",
]  # fmt: skip
