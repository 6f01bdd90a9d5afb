"""The command line: `redbook build | run | claims | train | scan | sweep | bench`. Thin: the work is in the package.

Exit status: 0 done, and for a scan nothing found; 1 a backdoor found, or a chapter failed, or claims that do not hold;
2 bad input, said in one line on stderr; 3 a scan that cannot tell, because searches ended before they had found a
trigger. Nothing heavy is imported before a command needs it.
"""

import json
import os
import re
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from .book import Summary, Trial
    from .experiments.tasks import Task

# ruff: noqa: B006  typer copies the default of a repeatable option
app = typer.Typer(
    name="redbook",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SETTINGS = Annotated[
    list[str], typer.Option("-p", "--set", metavar="NAME VALUE", help="A parameter or setting; repeatable.")
]
SEED = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Draws whatever is random.")]
FOUND, FAILED, BAD_INPUT, UNDECIDED, BROKEN, INTERRUPTED = 1, 1, 2, 3, 70, 130


@app.callback()
def redbook(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    """Reverse-engineering defences against backdoored image classifiers: the book and its tools."""
    if version:
        from . import __version__

        typer.echo(f"redbook {__version__}")
        raise typer.Exit


@app.command()
def build(
    profile: Annotated[str, typer.Option(help="A file of notebooks/profiles, by name or path.")] = "smoke",
    jobs: Annotated[int | None, typer.Option(min=1, help="Chapters at once; default: one per core.")] = None,
    only: Annotated[list[str], typer.Option(help="Run just this chapter, such as 04.")] = [],
    force: Annotated[bool, typer.Option(help="Run chapters even if they are fresh.")] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with 1 if a claim does not hold; pages are built, and say so."),
    ] = False,
) -> None:
    """Run the chapters that are not fresh, and build _build/html/index.html."""
    from . import book

    how: dict[str, Any] = {"jobs": jobs, "only": only, "force": force}
    with book.Bars() as bars:
        summary = book.make(book.find_root(), profile=profile, **how, progress=bars)
    _tell(summary, only=bool(only))
    if strict and summary.refuted:
        raise typer.Exit(FAILED)


def _tell(report: "Summary", *, only: bool) -> None:
    for failure in report.failures:
        typer.echo(f"failed: {failure}", err=True)
    for claim in report.refuted:
        typer.echo(claim, err=True)
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
    """Run one chapter with parameters of your own, and print what it glued, and which of its claims hold."""
    from . import book
    from .book import notebooks, parameters
    from .settings import shown

    pairs = _pairs(set_)
    notebooks.read(notebook)
    given = parameters.check(notebook, pairs)
    root = book.find_root(notebook.resolve().parent)
    if out is None:
        (root / "_build" / "runs").mkdir(parents=True, exist_ok=True)
    elif out.suffix != ".ipynb":
        _fail(f"--out {shown(str(out))}: a name that ends in .ipynb is needed")
    out = out or root / "_build" / "runs" / notebook.name
    for option, path in (("", notebook), ("--out ", out)):
        if re.search("[\udc80-\udcff]", str(path.absolute())):  # papermill writes both into the notebook
            _fail(f"{option}{shown(str(path))}: a path in UTF-8 is needed")
    _check_output("--out", out, notebook, *(root / "notebooks").glob("*.ipynb"))
    with book.Bars() as bars:
        failure = book.run_chapter(root, notebook.resolve(), given, out.absolute(), progress=bars)
    if failure:
        typer.echo(f"failed: {failure}", err=True)
        raise typer.Exit(FAILED)
    for name, value in notebooks.glued(out).items():
        if not isinstance(value, dict):
            typer.echo(f"{name} = {value}")
    for claim in notebooks.claims(out).values():
        typer.echo(f"claim {claim.name}: {'holds' if claim.holds else 'does not hold'}")
    typer.echo(f"executed notebook: {out}")


@app.command()
def claims(
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="How many seeds.")] = 5,
    first: Annotated[
        int, typer.Option(min=0, max=2**31, help="The first of them; the others follow in steps of 100.")
    ] = 100,
    profile: Annotated[str, typer.Option(help="A file of notebooks/profiles, by name or path.")] = "smoke",
    only: Annotated[list[str], typer.Option(help="Try just this chapter, such as 04.")] = [],
    jobs: Annotated[int | None, typer.Option(min=1, help="Chapters at once; default: one per core.")] = None,
) -> None:
    """Run the chapters with several seeds, and print how often each of their claims holds.

    Exit status 1: a chapter failed, or a claim of a run held in fewer than four of five. Claims of rows are of
    committed tables, and no matter of the seed: `redbook build --strict` is for these.
    """
    from . import book

    # a chapter with several classifiers takes the seeds from its own on: a hundred apart, none is taken twice
    tried = [first + 100 * i for i in range(seeds)]
    with book.Bars() as bars:
        trial = book.try_seeds(book.find_root(), tried, profile=profile, only=only, jobs=jobs, progress=bars)
    if not _tell_claims(trial):
        raise typer.Exit(FAILED)


def _tell_claims(trial: "Trial") -> bool:
    """Print what held how often; is all well?"""
    rows = [("chapter", "claim", "basis", "held", "")]
    order = sorted(trial.tried, key=lambda claim: claim.basis == "rows")
    for claim in order:
        mark = "fewer than four of five" if claim.shaky else ""
        rows.append((claim.chapter, claim.name, claim.basis, f"{claim.held} of {claim.runs}", mark))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        typer.echo("  ".join(f"{word:<{width}}" for word, width in zip(row, widths)).rstrip())
    for failure in trial.failures:
        typer.echo(f"failed: {failure}", err=True)
    of_run, of_rows = ([c for c in order if c.basis == basis] for basis in ("run", "rows"))
    shaky = sum(claim.shaky for claim in of_run)
    whole = sum(claim.held == claim.runs for claim in of_rows)
    typer.echo(f"{len(of_run)} claims of runs, {shaky} of them held in fewer than four of five")
    typer.echo(f"{len(of_rows)} claims of rows, which no seed changes, {whole} of them hold")
    failed = f", {len(trial.failures)} failed" if trial.failures else ""
    typer.echo(f"{trial.ran} runs, {trial.reused} fresh{failed}, in {trial.seconds:.0f} s")
    return not trial.failures and not shaky


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
    seed: SEED = 0,
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
        recipe=recipe if recipe is not None else "smoke" if data == "digits" else "laptop",
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
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="M,M,M", help="Of a file whose images are normalised outside: the mean by channel."
        ),
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="S,S,S", help="With --mean: the standard deviation by channel.")
    ] = None,
    level: Annotated[
        float | None, typer.Option(help="Of a rule that gives a p-value; default: 0.05.")
    ] = None,
    set_: SETTINGS = [],
    seed: SEED = 0,
    device: DEVICE = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    report: Annotated[Path | None, typer.Option(help="Also write a self-contained HTML page.")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Also keep the scan, patterns and all, in a safetensors file.")
    ] = None,
) -> None:
    """Look for a backdoor. Exit status 0: nothing found, 1: a backdoor, 2: bad input, 3: inconclusive."""
    from .anomaly import ATTACKED, INCONCLUSIVE
    from .audit import report as reports
    from .audit.examine import examine
    from .audit.suspects import locate, suspect
    from .data import root_folder
    from .detectors import from_words

    subject_at = locate(entry)
    inputs = [subject_at, *([Path(data), root_folder() / data] if data else [])]
    for option, path in (("--report", report), ("--save", save)):
        _check_output(option, path, *inputs)
    if report is not None and save is not None and os.path.realpath(report) == os.path.realpath(save):
        _fail(f"--report {report}, --save {save}: two files are needed")
    known, how = from_words(detector, _pairs(set_))
    where, normalised = _device(device), {"mean": _numbers("--mean", mean), "std": _numbers("--std", std)}
    subject = suspect(str(subject_at), network=network, dataset=data, **normalised).to(where)
    watched = sys.stderr.isatty() and not json_
    chosen: dict[str, Any] = {"n": n, "rule": rule, "level": level, "seed": seed}
    result = examine(subject, how, name=known, **chosen, progress=watched)
    if json_:
        typer.echo(reports.to_json(result))
    else:
        from rich.console import Console

        Console(highlight=False).print(reports.to_table(result))
        for line in (result.summary, *result.notes):
            typer.echo(line)
    for option, path, write in (
        ("--report", report, lambda path: reports.write(result, path)),
        ("--save", save, result.scan.save),
    ):
        try:
            if path is not None:
                write(path)
        except OSError as error:
            _fail(f"{option} {path}: {error.strerror}")
    raise typer.Exit({ATTACKED: FOUND, INCONCLUSIVE: UNDECIDED}.get(result.verdict.outcome, 0))


def _check_output(option: str, path: Path | None, *inputs: Path) -> None:
    """Refuse, before anything runs, a path where no file can be written, or where one of the inputs lies."""
    from . import files
    from .settings import shown

    if path is None:
        return
    said = f"{option} {shown(str(path))}"
    try:
        folder = path.absolute().parent
        if not folder.is_dir():
            _fail(f"{said}: no folder {folder}")
        if (path.exists() or path.is_symlink()) and not path.is_file():
            _fail(f"{said}: no plain file; a file's name is needed")
        for given in inputs:
            inside = given.is_dir() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(given))
            if path.exists() and (inside or (given.exists() and path.samefile(given))):
                _fail(f"{said}: it is read, and would be overwritten; give another")
        if path.exists() and any(os.path.samestat(path.stat(), os.fstat(stream)) for stream in (1, 2)):
            _fail(f"{said}: what is printed goes there; give another")
        files.check_writable(path)
    except OSError as error:
        _fail(f"{said}: {error.strerror}")


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(help="A YAML grid, such as data/grids/digits.yml.")],
    out: Annotated[Path | None, typer.Option(help="The table; default: data/results/<grid>.parquet.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 1,
    device: DEVICE = "auto",
    check: Annotated[
        bool, typer.Option("--check", help="Only say which rows the present code did not make.")
    ] = False,
    verify: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Run N old rows of every detector and data set again, and compare."
        ),
    ] = None,
) -> None:
    """Run every row of a grid that the table lacks; resumable after any kill.

    With --check or --verify the table stays as it is, and the exit status is 1 unless every row was made by the
    present code or stands for its detector and data set among rows that came out the same.
    """
    from .experiments import sweep as sweeps
    from .experiments.grids import read_grid
    from .experiments.tables import attack_summary, works

    tasks, where = read_grid(grid), _device(device)
    if out is None:
        out = Path("data/results") / f"{grid.stem}.parquet"
    if check or verify:
        raise typer.Exit(0 if _stands(tasks, out, verify, where) else FAILED)
    if out.parent == Path("data/results"):
        out.parent.mkdir(parents=True, exist_ok=True)
    _check_output("--out", out, grid)
    try:
        table = sweeps.run(tasks, out, workers=workers, device=where)
    except RuntimeError as error:
        typer.echo(f"redbook: {error}", err=True)
        raise typer.Exit(FAILED) from None
    if "clean_cta" in table:  # a grid of attacks
        typer.echo(attack_summary(table).to_string(float_format="{:.3f}".format))
        typer.echo(f"{int(works(table).sum())} of {len(table)} classifiers meet both marks")
    typer.echo(f"{len(table)} rows in {out}")


def _stands(tasks: "list[Task]", out: Path, verify: int | None, device: str) -> bool:
    """Print what today's code has to do with a table, after running `verify` old rows of every stratum again."""
    from .experiments import checks

    if not out.is_file():
        _fail(f"--out {out}: there is no such table")

    def tell(again: checks.Again) -> None:
        typer.echo(f"{again.row}: {again.outcome}, apart by {again.difference:.2g}")

    found = (
        checks.verify(tasks, out, verify, device=device, tell=tell) if verify else checks.check(tasks, out)
    )
    for stratum in found.strata:
        typer.echo(f"{stratum.name}: {stratum.state}")
    if found.strays:
        typer.echo(f"{found.strays} rows of {out} are of no task of this grid")
    typer.echo(f"{out}: {found.state}")
    return found.stands


@app.command()
def bench(
    data: DATA = "digits",
    network: Annotated[str, typer.Option(help="An architecture.")] = "small",
    n: Annotated[int, typer.Option("-n", min=1, help="Clean images per class.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="How long to measure.")] = 3.0,
    device: DEVICE = "auto",
    scans: Annotated[
        bool, typer.Option("--scans", help="Every kind of detector on five networks, on one core and on all.")
    ] = False,
) -> None:
    """Image-gradients per second of one step of a scan of all classes: what a scan's seconds come from."""
    from .audit import bench as measured
    from .book.runner import cores

    if scans:
        for threads in sorted({1, cores()}):
            for pace in measured.scans(seconds=seconds, threads=threads):
                where = (
                    f"{pace.network:10} {pace.detector:16} {threads} {'core' if threads == 1 else 'cores'}"
                )
                rates = f"{pace.gradients:9,.0f} image-gradients and {pace.answers:9,.0f} answers a second"
                typer.echo(f"{where}: {rates}, {pace.share:4.0%} of the floor")
        return
    on = _device(device)
    rate, batch = measured.throughput(network, data, n=n, seconds=seconds, device=on)
    where = f"{network}, {data}, n = {n}, {on}"
    typer.echo(f"{rate:,.0f} image-gradients per second, {batch:,} per step ({where})")


def _device(name: str) -> str:
    """A device to compute on, tried out; the same check for every command."""
    import torch

    from .settings import shown

    said = f"--device {shown(name)}"
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,4})?", name, re.ASCII):
        _fail(f"{said}: allowed are auto, cpu, cuda, cuda:0, cuda:1, ..., mps")
    try:
        torch.ones(1, device=name).sum().item()
    except (RuntimeError, AssertionError, ImportError):
        _fail(f"{said}: not on this machine")
    return name


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    from .settings import shown, typed

    if text is None:
        return None
    try:
        found: tuple[float, ...] = typed(text, tuple[float, ...])
    except ValueError:
        found = ()
    return found or _fail(
        f"{option} {shown(text)}: numbers with commas between them are needed, as in 0.5,0.5,0.5"
    )


def _pairs(texts: list[str]) -> dict[str, str]:
    """Names and values of `-p name=value`."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            _fail(f"-p {text}: give a name and a value, as in -p n_seeds 3")
        if name in found:
            _fail(f"-p {name}: it stands twice")
        found[name] = value
    return found


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
    with warnings.catch_warnings():
        # one line each, without the place in the code
        warnings.showwarning = lambda message, *place: typer.echo(f"redbook: {message}", err=True)
        code = _status(command, _joined(sys.argv[1:] if argv is None else argv))
    if code == INTERRUPTED:
        typer.echo("redbook: interrupted; the same command goes on from here", err=True)
    return code


def _status(command: Any, words: list[str]) -> int:
    try:
        return command.main(args=words, prog_name="redbook", standalone_mode=False) or 0
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else BAD_INPUT if done.code else 0
    except (ValueError, OSError) as error:
        typer.echo(f"redbook: {error}", err=True)
        return BAD_INPUT
    except MemoryError as error:
        typer.echo(f"redbook: not enough memory for this ({error})", err=True)
        return BAD_INPUT
    except Exception as error:  # never 0 or 1, which are verdicts
        if hasattr(error, "format_message"):  # typer's, of the words on the command line
            return _usage(error)
        if "allocate memory" in str(error) or "out of memory" in str(error):  # PyTorch's are RuntimeErrors
            typer.echo(f"redbook: not enough memory for this ({str(error).splitlines()[0]})", err=True)
            return BAD_INPUT
        traceback.print_exc()
        return BROKEN


def _usage(error: Any) -> int:
    """What was wrong with the words of a command, with the word itself, in one line."""
    from .settings import shown

    if not (message := error.format_message()):  # no command at all
        error.show()
        return BAD_INPUT
    checked: list[Any] = getattr(error.__cause__, "errors", list)()  # pydantic's, with what was given
    given = f" (given was {shown(checked[0]['input'])})" if checked else ""
    of = error.ctx.command_path if getattr(error, "ctx", None) else "redbook"
    typer.echo(f"redbook: {message.rstrip('.')}{given}; see {of} --help", err=True)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
