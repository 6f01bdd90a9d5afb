"""Killed inside a write, at every step of it: nothing, the old, or the new is there, and the same command goes on."""

import kill
import pytest

pytestmark = pytest.mark.long

# What `kill_at_every_step` wants: act(root), look(root), and before(root) where act replaces something.
WRITERS = {
    "a file": """
from lib import files
def before(root): (root / "f").write_text("old" * 100)
def act(root):
    with files.written(root / "f") as partial:
        partial.write_text("new" * 100)
def look(root): return (root / "f").read_text()
""",
    "a folder": """
from lib import files
def fill(root, text):
    with files.written(root / "d") as partial:
        partial.mkdir()
        for name in "ab":
            (partial / name).write_text(text)
def before(root): fill(root, "old")
def act(root): fill(root, "new")
def look(root):
    d = root / "d"
    return [[p.name, p.read_text()] for p in sorted(d.iterdir())] if d.exists() else None
""",
    "a zoo entry": """
import hashlib, json
import torch
from lib import attacks, train, zoo
torch.set_num_threads(1)
recipe = train.Recipe(epochs=1, batch_size=64, lr=5e-3)
spec = zoo.Spec(recipe=recipe, n_train=64, attack=attacks.InputAware(target=1))  # which learns something
made = zoo.trained(spec, spec.load_data(), device="cpu", name="made", progress=False)
zoo.trained = lambda *_, **__: made
def act(root): zoo.get(spec, zoo=root)
def look(root):
    entries = [p for p in root.iterdir() if "." not in p.name and p.name != "locks"]
    if not entries:
        return None
    (path,) = entries
    record = json.loads((path / "entry.json").read_text())
    recorded = {"model.safetensors": record["sha256"], "attack.safetensors": record["attack_sha256"]}
    for name, digest in recorded.items():
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest
    return [sorted(p.name for p in path.iterdir()), record["sha256"]]
""",
    "a scan": """
import torch
from lib.detectors import Scan
from lib.models import Cost
def scan(norm):
    x = torch.full((4,), norm)
    rest = dict(settings={}, norm_name="n", pattern=torch.zeros(4, 1, 8, 8), cost=Cost())
    each = {name: x.clone() for name in ("norms", "success", "reached", "converged")}
    return Scan(detector="D", **each, **rest)
def before(root): scan(1.0).save(root / "s")
def act(root): scan(2.0).save(root / "s")
def look(root): return Scan.load(root / "s").norms.tolist()
""",
    "a report": """
from lib.audit import report
report.to_html = lambda words: words * 1000
def before(root): report.write("old", root / "r.html")
def act(root): report.write("new", root / "r.html")
def look(root): return (root / "r.html").read_text()
""",
    "a sweep": """
from dataclasses import dataclass, field
import pandas as pd, pyarrow.dataset, pyarrow.parquet
from lib import zoo
from lib.experiments import sweep
@dataclass
class Task:
    key: str
    spec: zoo.Spec = field(default_factory=zoo.Spec)
    def run(self, **_): return {"key": self.key, "norms": [float(ord(self.key))] * 10}
def swept(root, names): sweep.run([Task(name) for name in names], root / "t.parquet", progress=False)
def before(root): swept(root, "a")
def act(root): swept(root, "ab")
def rows(path): return [[key, list(norms)] for key, norms in pd.read_parquet(path)[["key", "norms"]].values]
def look(root):
    for row in (root / "t.parquet.rows").glob("*.parquet"):
        assert rows(row) == [[row.stem, [float(ord(row.stem))] * 10]]
    return rows(root / "t.parquet")
""",
    "images, decoded": """
import os
import PIL.Image, PIL.PngImagePlugin, torchvision.datasets
from safetensors.torch import load_file
from lib import data
from test_data import folder_of_images
def before(root):
    folder_of_images(root / "pets")
    os.environ["REDBOOK_DATA"] = str(root / "kept")
def act(root): data.load(str(root / "pets"), root=root / "kept")
def look(root):
    kept = list((root / "kept").rglob("*.safetensors"))
    return [[k, v.sum().item()] for k, v in sorted(load_file(*kept).items())] if kept else None
""",
    "a chapter": """
from pathlib import Path
import nbformat, papermill
from lib.book import kernel, notebooks
from small_book import make_root
def execute(notebook, out, on_cell_executed, **_):  # as papermill does, which writes after each cell
    book = notebooks.read(Path(notebook))
    for cell in book.cells[:2]:
        cell.metadata["papermill"] = {}
        Path(out).write_text(nbformat.writes(book))
        on_cell_executed()
papermill.execute_notebook = execute
def run(root, stamp): kernel.execute(root / "notebooks/01_a.ipynb", root / "out.ipynb", {}, cwd=root, stamp=stamp)
def before(root):
    make_root(root, {"01_a": "1"})
    run(root, {"key": "old"})
def act(root): run(root, {"key": "new"})
def look(root):
    book = notebooks.read(root / "out.ipynb")
    return [book.metadata.redbook.key, len(book.cells), any("papermill" in c.metadata for c in book.cells)]
""",
    "pages": """
from lib.book import jupyter_book
from small_book import make_root
def sphinx(stage, build):
    made = build / "pages" / "_build" / "html"
    jupyter_book.shutil.rmtree(made, ignore_errors=True)
    (made / "book").mkdir(parents=True)
    words = (stage / "book/intro.md").read_text()
    for name in ("index.html", "book/intro.html", "search.js"):
        (made / name).write_text(f"<p>{name} {words} <script>const THEBE_JS_URL</script>")
    return made
jupyter_book._sphinx = sphinx
def render(root): jupyter_book.render(root, [], output=root)
def before(root):
    make_root(root, {})
    render(root)
def act(root):
    (root / "book/intro.md").write_text("new words")
    render(root)
def look(root):
    html = root / "_build/html"
    pages = [p for p in sorted(html.rglob("*")) if p.is_file()]
    return [[p.name, p.read_text()] for p in pages] if html.exists() else None
""",
}

IN_PLACE = """
import contextlib, pathlib, shutil
from lib import files
@contextlib.contextmanager
def in_place(path):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    yield path
files.written = in_place
"""


@pytest.mark.parametrize("what", WRITERS)
def test_killed_at_every_step_nothing_is_half_there_and_the_same_command_goes_on(what, tmp_path):
    assert kill.kill_at_every_step(WRITERS[what], tmp_path) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("what", WRITERS)
def test_writing_in_place_is_noticed(what, tmp_path):
    """The test above, of a version that is wrong."""
    with pytest.raises(AssertionError, match=r"killed|failed"):
        kill.kill_at_every_step(WRITERS[what] + IN_PLACE, tmp_path)


TRAINING = """
import hashlib
from lib import train, zoo
spec = zoo.Spec(recipe=train.Recipe(epochs=4, batch_size=64, lr=5e-3), n_train=256)
def act(root): zoo.get(spec, zoo=root)
def look(root):
    entries = [p for p in root.iterdir() if "." not in p.name and p.name != "locks"]
    return [hashlib.sha256((p / "model.safetensors").read_bytes()).hexdigest() for p in entries] or None
"""
SWEEPING = """
import pandas as pd, pyarrow.dataset, pyarrow.parquet
from pathlib import Path
from lib.experiments import grids, sweep
grid = Path("{folder}") / "grid.yml"
grid.write_text('''
classifiers: [{{dataset: digits, network: small, recipe: smoke, groups: [C-0], seeds: 1}}]
detectors:
  - {{name: u-red, n: 1, settings: {{delta: 0.1}}}}
  - {{name: u-red, n: 1, settings: {{delta: 0.2}}}}
  - {{name: l-red, n: 1, settings: {{delta: 0.2}}}}
''')
tasks = grids.read_grid(grid)
def swept(root, workers):
    sweep.run(tasks, root / "t.parquet", workers=workers, zoo_folder=grid.parent / "zoo", progress=False)
def norms(path):
    return [[key, [round(x, 4) for x in row]] for key, row in pd.read_parquet(path)[["key", "norms"]].values]
swept(grid.parent, 1)
alone = norms(grid.parent / "t.parquet")
def act(root):
    swept(root, {workers})
    assert norms(root / "t.parquet") == alone
def look(root):
    for row in (root / "t.parquet.rows").glob("*.parquet"):
        assert norms(row)[0][0] == row.stem
    return norms(root / "t.parquet") if (root / "t.parquet").exists() else None
"""
few_and_many = pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.slow)])


@few_and_many
def test_a_training_killed_at_random_goes_on(kills, tmp_path):
    kill.kill_at_random(TRAINING, tmp_path, kills=kills, seed=kills)


@few_and_many
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sweep_killed_at_random_goes_on(workers, kills, tmp_path):
    setup = SWEEPING.format(folder=tmp_path, workers=workers)
    kill.kill_at_random(setup, tmp_path, kills=kills, seed=kills + workers)
