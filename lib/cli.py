"""The command line: `redbook build | run | train | scan | sweep | bench`. Thin: the work is in the package.

Exit status: 0 done, and for a scan nothing found; 1 a backdoor found, or a chapter failed; 2 bad input, said
in one line on stderr. Nothing heavy is imported before a command needs it.
"""

import json
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from .book import Summary

# ruff: noqa: B006  typer copies the default of a repeatable option
app = typer.Typer(
    name="redbook",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reverse-engineering defences against backdoored image classifiers: the book and its tools.",
)

SETTINGS = Annotated[
    list[str], typer.Option("-p", "--set", metavar="NAME VALUE", help="A parameter or setting; repeatable.")
]
FOUND, FAILED, BAD_INPUT, BROKEN, INTERRUPTED = 1, 1, 2, 70, 130


@app.command()
def build(
    profile: Annotated[str, typer.Option(help="A file of notebooks/profiles, by name or path.")] = "smoke",
    jobs: Annotated[int | None, typer.Option(min=1, help="Chapters at once; default: one per core.")] = None,
    only: Annotated[list[str], typer.Option(help="Run just this chapter, such as 04.")] = [],
    force: Annotated[bool, typer.Option(help="Run chapters even if they are fresh.")] = False,
    offline: Annotated[
        bool, typer.Option(help="Pages without external requests (npm fetches scripts once).")
    ] = False,
) -> None:
    """Run the chapters that are not fresh, and build _build/html/index.html."""
    from . import book

    how: dict[str, Any] = {"jobs": jobs, "only": only, "force": force, "offline": offline}
    with book.Bars() as bars:
        summary = book.make(book.find_root(), profile=profile, **how, progress=bars)
    _tell(summary, only=bool(only))


def _tell(report: "Summary", *, only: bool) -> None:
    for failure in report.failures:
        typer.echo(f"failed: {failure}", err=True)
    counts = f"{len(report.ran)} chapters run, {len(report.reused)} fresh"
    if report.failures:
        typer.echo(f"{counts}, {len(report.failures)} failed; the pages were left as they were", err=True)
        raise typer.Exit(FAILED)
    pages = "" if only else ", pages built" if report.pages_built else ", pages up to date"
    typer.echo(f"{counts}{pages} in {report.seconds:.0f} s")
    if not only:
        typer.echo(f"open {report.index}")


@app.command()
def run(
    notebook: Annotated[Path, typer.Argument(help="A chapter, such as notebooks/04_lred.ipynb.")],
    set_: SETTINGS = [],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Executed notebook; default: _build/runs/.")
    ] = None,
) -> None:
    """Run one chapter with parameters of your own, and print what it glued."""
    from . import book
    from .book import notebooks, parameters

    pairs = dict(_pair(text) for text in set_)
    notebooks.read(notebook)
    given = parameters.check(notebook, pairs)
    root = book.find_root(notebook.resolve().parent)
    out = (out or root / "_build" / "runs" / notebook.name).resolve()
    if out == notebook.resolve():
        _fail(f"{out} is the chapter itself: give another --out")
    with book.Bars() as bars:
        failure = book.run_chapter(root, notebook.resolve(), given, out, progress=bars)
    if failure:
        typer.echo(f"failed: {failure}", err=True)
        raise typer.Exit(FAILED)
    for name, value in notebooks.glued(out).items():
        if not isinstance(value, dict):
            typer.echo(f"{name} = {value}")
    typer.echo(f"executed notebook: {out}")


DATA = Annotated[
    str, typer.Option("--data", help="digits, mnist, gtsrb, ..., or a folder with train/ and test/.")
]
DEVICE = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")]


@app.command()
def train(
    data: DATA = "digits",
    network: Annotated[str, typer.Option(help="An architecture, such as small, lenet5, resnet18.")] = "small",
    attack: Annotated[
        str, typer.Option(help="An attack group of the L-RED papers, or C-0 for none.")
    ] = "C-0",
    recipe: Annotated[
        str | None, typer.Option(help="A training recipe; default: smoke on digits, else laptop.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: DEVICE = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a classifier (once: the zoo keeps it), and print its accuracy, its attack's success, its name."""
    from . import attacks, zoo

    spec = zoo.Spec(
        dataset=data,
        network=network,
        attack=attacks.group(attack, data, seed=seed),
        seed=seed,
        recipe=recipe or ("smoke" if data == "digits" else "laptop"),
    )
    made = zoo.get(spec, device=_device(device), progress=sys.stderr.isatty() and not json_)
    if json_:
        typer.echo(json.dumps({"entry": made.name, "path": str(made.path), **made.metrics}))
        return
    typer.echo(f"CTA    {100 * made.metrics['cta']:.2f} %")
    for name, label in (("asr", "ASR"), ("collateral", "collateral")):
        if made.metrics.get(name) is not None:
            typer.echo(f"{label:<6} {100 * made.metrics[name]:.2f} %")
    typer.echo(f"entry  {made.name}")


@app.command()
def scan(
    entry: Annotated[
        str, typer.Argument(help="A zoo entry, or a safetensors file (then --network and --data).")
    ],
    detector: Annotated[
        str,
        typer.Option(help="lred, ured, pred, neural-cleanse, usb, b3d, ...; a wrong name lists them all."),
    ] = "lred",
    n: Annotated[int, typer.Option("-n", help="Clean images per class.")] = 8,
    rule: Annotated[
        str, typer.Option(help="gamma, gamma-pairs, calibrated, mad or mad-or-quarter.")
    ] = "calibrated",
    network: Annotated[str | None, typer.Option(help="Architecture of a file of weights.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Image set that the classifier is for.")] = None,
    set_: SETTINGS = [],
    seed: Annotated[int, typer.Option(min=0, help="Which clean images are drawn.")] = 0,
    device: DEVICE = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    report: Annotated[Path | None, typer.Option(help="Also write a self-contained HTML page.")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Also keep the scan, patterns and all, in a safetensors file.")
    ] = None,
) -> None:
    """Look for a backdoor. Exit status 0: nothing found, 1: a backdoor, 2: bad input."""
    from .audit import report as reports
    from .audit.examine import examine
    from .audit.suspects import suspect
    from .detectors import from_words

    for option, path in (("--report", report), ("--save", save)):
        _check_output(option, path)
    known, how = from_words(detector, dict(_pair(text) for text in set_))
    subject = suspect(entry, network=network, dataset=data).to(_device(device))
    watched = sys.stderr.isatty() and not json_
    result = examine(subject, how, name=known, n=n, rule=rule, seed=seed, progress=watched)
    if json_:
        typer.echo(reports.to_json(result))
    else:
        from rich.console import Console

        Console(highlight=False).print(reports.to_table(result))
        typer.echo(result.summary)
    if report is not None:
        report.write_text(reports.to_html(result))
    if save is not None:
        result.scan.save(save)
    raise typer.Exit(FOUND if result.verdict.attacked else 0)


def _check_output(option: str, path: Path | None) -> None:
    if path is not None and not path.absolute().parent.is_dir():
        _fail(f"{option} {path}: no folder {path.absolute().parent}")
    if path is not None and path.is_dir():
        _fail(f"{option} {path}: a folder; a file's name is needed")


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(help="A YAML grid, such as data/grids/digits.yml.")],
    out: Annotated[Path | None, typer.Option(help="The table; default: data/results/<grid>.parquet.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 1,
    device: DEVICE = "auto",
) -> None:
    """Run every row of a grid that the table lacks; resumable after any kill."""
    from .experiments import sweep as sweeps
    from .experiments.grids import read_grid
    from .experiments.tables import attack_summary, works

    tasks, where = read_grid(grid), _device(device)
    out = out or Path("data/results") / f"{grid.stem}.parquet"
    try:
        table = sweeps.run(tasks, out, workers=workers, device=where)
    except RuntimeError as error:
        typer.echo(f"redbook: {error}", err=True)
        raise typer.Exit(FAILED) from None
    if "clean_cta" in table:  # a grid of attacks
        typer.echo(attack_summary(table).to_string(float_format="{:.3f}".format))
        typer.echo(f"{int(works(table).sum())} of {len(table)} classifiers meet both marks")
    typer.echo(f"{len(table)} rows in {out}")


@app.command()
def bench(
    data: DATA = "digits",
    network: Annotated[str, typer.Option(help="An architecture.")] = "small",
    n: Annotated[int, typer.Option("-n", min=1, help="Clean images per class.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 3.0,
    device: DEVICE = "auto",
) -> None:
    """Image-gradients per second of one step of a scan of all classes: what a scan's seconds come from."""
    from .audit.bench import throughput

    on = _device(device)
    rate, batch = throughput(network, data, n=n, seconds=seconds, device=on)
    where = f"{network}, {data}, n = {n}, {on}"
    typer.echo(f"{rate:,.0f} image-gradients per second, {batch:,} per step ({where})")


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        _fail(f"--device {name}: not on this machine")
    return name


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        _fail(f"-p {text}: give a name and a value, as in -p n_seeds 3")
    return name.strip(), value.strip()


def _fail(message: str) -> NoReturn:
    typer.echo(f"redbook: {message}", err=True)
    raise typer.Exit(BAD_INPUT)


def _joined(argv: list[str]) -> list[str]:
    """`-p name value` as one word, `-p name=value`: click has no repeatable option of two words."""
    out, words = [], iter(argv)
    for word in words:
        out.append(word)
        if word in ("-p", "--set") and (name := next(words, None)) is not None:
            value = None if "=" in name else next(words, None)
            out.append(name if value is None else f"{name}={value}")
    return out


def main(argv: list[str] | None = None) -> int:
    """Entry point of the command `redbook`; returns the exit status, and turns bad input into one line."""
    # end as Ctrl-C does: children, then partial files
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command: Any = typer.main.get_command(app)
    try:
        return command.main(args=_joined(sys.argv[1:] if argv is None else argv), prog_name="redbook") or 0
    except SystemExit as done:
        if done.code == INTERRUPTED:  # click has caught the KeyboardInterrupt
            typer.echo("redbook: interrupted; the same command goes on from here", err=True)
        return done.code if isinstance(done.code, int) else BAD_INPUT if done.code else 0
    except (ValueError, OSError) as error:
        typer.echo(f"redbook: {error}", err=True)
        return BAD_INPUT
    except Exception:  # never 0 or 1, which are verdicts
        traceback.print_exc()
        return BROKEN


if __name__ == "__main__":
    sys.exit(main())
