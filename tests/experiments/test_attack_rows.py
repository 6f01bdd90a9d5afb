"""What an attack does, as a row of a table, and over the whole image."""

import pytest
import torch
from torch import nn

from lib import data, train, zoo
from lib.attacks import AttackError, BadNets
from lib.classifier import Classifier
from lib.experiments import sweep, tasks
from lib.experiments.heat_map import heat_map

pytestmark = pytest.mark.long

SPEC = zoo.Spec(n_train=120, recipe=train.Recipe(epochs=1, batch_size=32, lr=1e-3))


@pytest.mark.parametrize("name", ["global", "two labels", "input-aware"])
def test_a_row_says_what_an_attack_does(name, tmp_path):
    row = tasks.AttackTask(spec=SPEC, name=name).run(zoo_folder=tmp_path)
    assert row["attack"] == name and row["dataset"] == "digits"
    assert all(0 <= row[rate] <= 1 for rate in ("asr", "cta", "clean_cta")) and row["norm"] > 0
    assert (row["cross_trigger"] is not None) == (name == "input-aware")


def test_a_table_of_few_takes_known_rows_as_they_stand_and_makes_the_others(tmp_path, monkeypatch):
    made = tasks.varied(SPEC, BadNets(target=1, rate=0.1), rate=[0.1, 0.2])
    monkeypatch.setattr(tasks.AttackTask, "run", lambda task, **_: {"key": task.key, "asr": 0.25})
    sweep.run(made[:1], tmp_path / "known.parquet", progress=False)
    monkeypatch.setattr(tasks.AttackTask, "run", lambda task, **_: {"key": task.key, "asr": 0.75})
    table = sweep.table_of(made, known=tmp_path / "known.parquet")
    assert table["asr"].tolist() == [0.25, 0.75] and table["rate"].tolist() == [0.1, 0.2]
    assert sweep.table_of(made)["asr"].tolist() == [0.75, 0.75]
    with pytest.raises(ValueError, match="there is no table"):
        sweep.table_of(made, known=tmp_path / "unknown.parquet")


def test_unknown_attacks_and_settings_are_named_before_anything_is_trained():
    with pytest.raises(AttackError, match="no attack 'badnet'"):
        tasks.of_gallery(SPEC, names=["badnet"])
    with pytest.raises(AttackError, match="BadNets has no setting 'amplitude'"):
        tasks.varied(SPEC, BadNets(target=1, rate=0.1), amplitude=[1])


def test_the_heat_map_finds_where_a_planted_patch_works():
    class Corner(nn.Module):
        """Says class 1 when the top-left 2x2 square is white, else class 0."""

        def forward(self, x):
            lit = (x[:, 0, :2, :2].mean((1, 2)) > 0.99).float()
            return torch.stack([1 - lit, lit], 1)

    digits = data.load("digits", classes=(0, 1), n_test=20)
    classifier = Classifier(name="planted", model=Corner(), dataset=digits)
    attack = BadNets(size=2, colour="white", at="bottom-right", target=1, rate=0.1)
    hits = heat_map(classifier, attack)
    assert hits.shape == (15, 15) and hits[0, 0] == 1 and hits.sum() == 1
