"""The command line `uad`: list, data, run, predict, export, table, ledger, book.

Wrong use and bad input end in one line that says what, where and how to mend it, with exit status 2.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from uad_core.errors import UserError

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Unsupervised anomaly detection: fit on normal images, map what is not.",
)  # fmt: skip

PROFILES = "smoke (seconds), cpu (minutes), colab (a free GPU), paper (a large one)"
Root = Annotated[Path | None, typer.Option(help="Folder of all data; else $UAD_DATA, else the user's cache folder.")]
INTERRUPTED = 130
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")]


@app.command("list")
def list_(root: Root = None) -> None:
    """Show methods, profiles, backbones and data sets: what is here and what must be downloaded."""
    from uad_core.listing import listing

    typer.echo(listing(root))


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="A data set of `uad list`.")],
    category: Annotated[str | None, typer.Option(help="One category only, where the set can be had in parts.")] = None,
    root: Root = None,
    out: Annotated[Path | None, typer.Option(help="For `procedural`: the folder to draw into.")] = None,
    image_size: Annotated[int, typer.Option(help="For `procedural`: pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="For `procedural`: what is drawn.")] = 0,
) -> None:
    """Download a data set (or say how to get it), check it and unpack it."""
    from uad_core import datasets

    if name == "procedural" and out is not None:
        from uad_core.datasets import procedural

        procedural.write(out, image_size=image_size, seed=seed, categories=[category] if category else None)
        typer.echo(f"{out}: drawn")
        return
    if out is not None:
        raise UserError(f"--out goes with `uad data procedural` only; {name} is placed under --root")
    if name == "procedural":
        typer.echo("procedural is drawn when it is used: nothing to download; --out DIR writes it as files")
        return
    typer.echo(f"{datasets.fetch(name, category, root, _watched())}: complete")


@app.command()
def run(
    method: Annotated[str, typer.Argument(help="A method or a baseline of `uad list`.")],
    out: Annotated[Path, typer.Option(help="Folder for result.json, maps.npz and model/.")],
    dataset: Annotated[
        str, typer.Option(help="A name of `uad list`, or a folder in MVTec layout; several as a,b.")
    ] = "procedural",
    category: Annotated[
        str,
        typer.Option(
            help="One, several as a,b,c, or all; of several data sets as DATASET/CATEGORY, and all that are here. "
            "One-class sets: the normal class."
        ),
    ] = "all",
    joint: Annotated[
        bool | None, typer.Option(help="Several categories: one model for all or one for each; else the method's way.")
    ] = None,
    root: Root = None,
    profile: Annotated[str, typer.Option(help=PROFILES)] = "cpu",
    backbone: Annotated[str | None, typer.Option(help="Any timm network; else the profile's.")] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Pixels, HEIGHTxWIDTH, or auto (the shape of the first image); else the profile's.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Of everything random.")] = 0,
    device: Device = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A field of the configuration.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Also leave report.html, beside each model.")] = False,
) -> None:
    """Fit on normal images, evaluate on the test images, and keep result, maps and model."""
    from uad_core import datasets
    from uad_core.experiment import Experiment
    from uad_core.experiment import run as run_experiment

    size = None if image_size is None else datasets.parse_size(image_size)
    experiment = Experiment(
        method, dataset, category, root, profile, backbone, size, seed, device, _settings(set_ or []), joint
    )
    result = run_experiment(experiment, out, progress=_watched())
    if report:
        from uad_core.report import of_run

        of_run(experiment, out)
    typer.echo(json.dumps(result, indent=2) if json_ else _summary(result, out))


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="The --out folder of a run.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="A new folder for overlays, maps and scores.")],
    device: Device = "auto",
    json_: Annotated[
        bool, typer.Option("--json", help="Print JSON lines, and keep them as scores.jsonl, for other programs.")
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Also leave report.html, one web page of all.")] = False,
) -> None:
    """Map the anomalies of your own images: one overlay per image, scores.csv and maps.npz.

    Exit status: 0 if no image is called anomalous, 1 if one is, 2 if one cannot be read (or on wrong use).
    """
    from uad_core.prediction import predict_files

    options = {"progress": _watched(), "json_lines": json_, "page": report}
    prediction = predict_files(model, images, out, device, **options)
    if json_:
        typer.echo(prediction.json_lines(), nl=False)
    else:
        for row in prediction.rows:
            typer.echo(f"{row.verdict:10s} {row.score:10.4f}  {row.image}")
    for reason in prediction.unreadable.values():
        typer.echo(f"unreadable: {reason}", err=True)
    if any(row.verdict == "no verdict" for row in prediction.rows):
        typer.echo("no verdict: the model has no threshold; fit it on 16 normal images or more", err=True)
    raise typer.Exit(prediction.status)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="The --out folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="The file; else model.onnx in that folder.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Numbers in half precision: half the size.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Convolutions in 8 bits; needs --images.")] = False,
    images: Annotated[
        list[Path] | None, typer.Option(help="Normal images, or folders of them, to compare on; int8 needs them.")
    ] = None,
) -> None:
    """Write the fitted detector as one ONNX file, which runs without this package, and compare it with PyTorch."""
    from uad_core import export as export_

    if half and int8:
        raise UserError("--half and --int8 exclude each other: export twice, to two files")
    done = export_.export(model, out, "int8" if int8 else "half" if half else "single", images)
    moved = done.score_error > export_.MOVED
    without = "the scores move too far for the threshold" if moved else "the detector has no threshold"
    typer.echo(
        f"{done.file}: {done.size / 1e6:.1f} MB, {done.precision} precision; differs from PyTorch by at most "
        f"{done.map_error:.1e} in the maps and {done.score_error:.1e} in the scores (relative)"
        + ("" if done.verdict else f"; no verdict: {without}")
    )


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="A method, or: one-class, compare, products, bank, cost, alarms.")],
    format_: Annotated[str, typer.Option("--format", help="text, md, latex, html or csv")] = "text",
    ledger: Annotated[Path | None, typer.Option(help="Folder of results; else the book's own.")] = None,
    add: Annotated[Path | None, typer.Option(help="First add the runs below this folder to the ledger.")] = None,
) -> None:
    """Print a table computed from the ledger, beside the paper's figures."""
    from uad_core import ledger as ledger_
    from uad_core import tables

    if add is not None:
        ledger_.collect(add, ledger)
    typer.echo(tables.table(name, ledger, format_))


@app.command("ledger")
def ledger_(
    folder: Annotated[Path | None, typer.Option("--ledger", help="Folder of results; else the book's own.")] = None,
) -> None:
    """List the results in the ledger that other code made than the present; exit status 1 if there are any."""
    from uad_core import ledger

    old = ledger.outdated(folder)
    for row in old.itertuples():
        typer.echo(f"{row.file}: made by {row.code_version or 'an unknown version'}, present {row.present}")
    typer.echo(f"{len(old)} out of date: run them again and add them with `uad table NAME --add DIR`")
    if len(old):
        raise typer.Exit(1)


@app.command()
def book(
    dataset: Annotated[
        str | None, typer.Option(help="Data that the chapters run on; else the built-in images.")
    ] = None,
    root: Root = None,
    category: Annotated[str | None, typer.Option(help="The category that the chapters show.")] = None,
    profile: Annotated[str | None, typer.Option(help=PROFILES)] = None,
    out: Annotated[Path, typer.Option(help="Where the book goes.")] = Path("_build/custom"),
) -> None:
    """Run the notebooks on that data and build the static book from them (in a source tree of the book)."""
    from uad_core.bookbuild import build

    typer.echo(f"{build(dataset, root, category, profile, out)}: open it in a browser")


def _watched() -> bool:
    """Whether somebody sees progress bars; in a file they would bury the one line that says what is wrong."""
    return sys.stderr.isatty()


def _settings(pairs: list[str]) -> dict[str, str]:
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set {pair!r} is not of the form key=value, such as --set epochs=40")
        settings[key.strip()] = value.strip()
    return settings


def _summary(result: dict[str, Any], out: Path) -> str:
    """Return the metrics of a run as a small table, in percent, its cost, and what is promised."""
    cost = result["cost"]
    kept = f"fit {cost['fit_s']:.0f} s, prediction {cost['predict_ms_per_image']:.0f} ms per image; kept in {out}"
    return "\n".join([*_metrics(result), kept, *_promised(result)])


def _metrics(result: dict[str, Any]) -> list[str]:
    """Return a line for each category, below the names; none where nothing could be measured."""
    if not any(value is not None for value in result["metrics"].values()):
        return []
    last = "mean" if "per_category" in result else result["category"]
    rows = {**result.get("per_category", {}), last: result["metrics"]}
    names = list(result["metrics"])
    width = max(len(row) for row in rows) + 2
    lines = [" " * width + "".join(f"{name:>14s}" for name in names)]
    for row, metrics in rows.items():
        cells = ("-" if metrics[name] is None else f"{100 * metrics[name]:.2f}" for name in names)
        lines.append(f"{row:{width}s}" + "".join(f"{cell:>14s}" for cell in cells))
    return lines


def _promised(result: dict[str, Any]) -> list[str]:
    """Say what could not be measured, which false alarms are promised, and which were seen."""
    from uad_core.promise import promise

    verdict, rate = result["verdict"], result["config"]["false_alarms"]
    one_model = "per_category" not in result or result.get("joint")
    promised = promise(verdict["threshold"], rate, verdict["held_out"]) if one_model else ""
    missing = [name for name, value in result["metrics"].items() if value is None]
    lines = [promised] if promised else []
    if len(missing) == len(result["metrics"]):
        instead = f"; promised instead: {promised}" if promised else ""
        lines = [f"No {', '.join(missing)}: they take normal and defective test images{instead}"]
    elif missing:
        lines.append(f"No {', '.join(missing)}: they take masks of the defects.")
    if verdict["false_alarms"] is not None and verdict["normal_test_images"]:
        lines.append(
            f"False alarms: {verdict['false_alarms']} of {verdict['normal_test_images']} normal test images "
            f"({rate:.1%} promised)."
        )
    return lines


def main() -> None:
    """Run the command line; the console script `uad`."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.showwarning = lambda message, *_: print("warning:", *str(message).split(), file=sys.stderr)
    try:
        status = app(standalone_mode=False) or 0
    except UserError as error:
        _stop(str(error))
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except OSError as error:
        remedy = "check the path, its permissions and the free space"
        _stop(f"{error.filename or 'the system'}: {error.strerror or error}; {remedy}")
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _stop(f"{error.format_message()} (see `uad --help`)")
    if status == INTERRUPTED:  # which some versions of typer return instead of raising
        _stop("interrupted; a run, repeated with the same command, goes on from its last checkpoint", INTERRUPTED)
    sys.exit(status)


def _stop(message: str, status: int = 2) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)
