"""Settings: a value of another type is refused with its name, in whatever class and field; bounds are whole."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import get_args, get_origin, get_type_hints

import numpy as np
import pytest

from lib import attacks, detectors, mitigations, train, zoo
from lib.attacks.base import Attack
from lib.detectors import PRESETS
from lib.experiments.grids import AttackEntry, ClassifierEntry, DetectorEntry, GroupEntry
from lib.settings import Settings, choice, in_words, number, share

detector = detectors.URED()
one = attacks.BadNets(target=1, rate=0.1)
KNOWN = (
    zoo.Spec(classes=(0, 1)), train.recipe("smoke"), mitigations.Strip(), mitigations.KLScore(), mitigations.ActivationFilter(),
    mitigations.Unlearning(), mitigations.Pruning(), mitigations.DetectAndPatch(detector=detector), mitigations.PatchEveryLabel(),
    attacks.Combined(parts=(one, replace(one, target=2))), attacks.LocalSquare(amplitude=3, at=(1, 1), target=1, rate=0.1),
    attacks.group("paper", "mnist"), attacks.group("paper", "fashion-mnist"), attacks.Cross(amplitude=4, target=1, rate=0.1),
    *attacks.gallery((3, 32, 32)).values(), attacks.group("L-3", "cifar10"), attacks.group("C", "cifar10"),
    ClassifierEntry(seeds=(1, 2)), AttackEntry(), GroupEntry(group="G-3"), DetectorEntry(name="l-red"), *PRESETS.values(), *(kind() for kind in detectors.DETECTORS.values()),
)  # fmt: skip
OBJECTS = list({type(settings): settings for settings in KNOWN}.values())


def kinds(of: type) -> set[type]:
    below = set().union(*map(kinds, of.__subclasses__()))
    ours = of.__module__.startswith("lib.") and not inspect.isabstract(of) and is_dataclass(of)
    return below | {of} if ours else below


def test_the_table_has_every_class_of_settings():
    never_alone = {"Additive", "Crafted", "Descent", "Walk", "_RED", "Ascent", "Entry"}
    missing = {kind.__name__ for kind in kinds(Settings)} - {type(o).__name__ for o in OBJECTS}
    assert missing <= never_alone


def wrong_for(hint: object) -> list[object]:
    """Values that are of none of the types a field is declared with."""
    inner = get_args(hint) if get_origin(hint) not in (tuple, dict, Callable) else ()
    types = set(inner or (hint,))
    wrong: list[object] = [object(), b"bytes", math.nan, 1 + 2j]
    if get_origin(hint) is not dict:
        wrong.append({"a": 1})
    if not types & {int, float}:
        wrong += [5, 0.5, -1]
    if float not in types:
        wrong += [0.5, math.inf, 1e300]
    if int in types or float in types:
        wrong += [10**400, -(10**400)]
    if int in types and float not in types:
        wrong += [2**63, np.float64(2.5)]
    if float in types:
        wrong += [1e300, 1e-300]
    if bool not in types:
        wrong += [True, np.True_]
    if bool in types:
        wrong += [1, 0, "no", "true", np.True_]
    if str not in types:
        wrong += ["3", "", "none"]
    if not any(get_origin(t) is tuple for t in types):
        wrong += [[1], (1, 2), range(3)]
    else:
        wrong += [(object(),), ((1, 2), 3), (math.nan, 1), [None], (True, False), {1, 2}]
    return wrong


EVERY = [(settings, f.name) for settings in OBJECTS for f in fields(settings)]


@pytest.mark.parametrize(
    ("settings", "name"), EVERY, ids=[f"{type(settings).__name__}.{name}" for settings, name in EVERY]
)
def test_a_value_of_another_type_is_refused_by_name(settings, name):
    hint = get_type_hints(type(settings))[name]
    [field] = (f for f in fields(settings) if f.name == name)
    nothing = [] if type(None) in get_args(hint) or field.default is None else [None]
    for value in (*wrong_for(hint), *nothing):
        with pytest.raises(ValueError, match=rf"^{name} = ") as refused:
            replace(settings, **{name: value})
        said = str(refused.value)
        assert len(said) < 600 and len(said.splitlines()) == 1 and "needed" in said, said
        if isinstance(settings, Attack):
            assert isinstance(refused.value, attacks.AttackError)


@pytest.mark.parametrize("settings", OBJECTS, ids=lambda o: type(o).__name__)
def test_numpy_and_lists_stand_for_plain_values(settings):
    for f in fields(settings):
        value = getattr(settings, f.name)
        if isinstance(value, tuple):
            assert getattr(replace(settings, **{f.name: list(value)}), f.name) == value
        if type(value) is int:
            again = getattr(replace(settings, **{f.name: np.int64(value)}), f.name)
            assert again == value and type(again) is int
        if type(value) is float:
            again = getattr(replace(settings, **{f.name: np.float64(value)}), f.name)
            assert again == value and type(again) is float


@dataclass(frozen=True, kw_only=True)
class Example(Settings):
    """Fields of every kind."""

    steps: int = number(3, least=1, most=9)
    seed: int = number(0, least=0)
    pi: float = share(0.5)
    radius: float = number(math.inf, above=0, most=math.inf)
    rate: float = number(0.1, above=0)
    how: str = choice("a", ("a", "b"))
    layer: str = "last"
    inner: "Example | None" = None
    sizes: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    rule: Callable[[float], float] | None = None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(steps=0), "steps = 0: a whole number from 1 and up to 9 is needed"), (dict(steps=10), "up to 9"),
        (dict(seed=2**63), "below 2**63"), (dict(seed=-1), "from 0"),
        (dict(pi=0), "pi = 0: a number above 0 and up to 1"), (dict(pi=1.5), "up to 1"),
        (dict(radius=-math.inf), "radius = -inf: a number above 0"), (dict(rate=math.inf), "rate = inf: a number above 0 and finite"),
        (dict(rate=1e39), "3.4e+38 in size"), (dict(rate=1e-39), "1.2e-38 to"), (dict(rate=10**400), "3.4e+38 in size"),
        (dict(how="c"), "how = 'c': a or b is needed"), (dict(layer=5), "layer = 5: a text is needed"),
        (dict(layer=None), "layer = None: a text is needed"), (dict(inner=3), "inner = 3: an Example or None"),
        (dict(sizes=(1.5,)), "sizes = (1.5,): a list of whole numbers"), (dict(sizes="12"), "sizes = '12': a list of whole numbers"),
        (dict(pair=(1, 2, 3)), "pair = (1, 2, 3): a list of 2 numbers"), (dict(rule=5), "rule = 5: a function or None"),
        (dict(layer=["x" * 10**6]), "layer = ["), (dict(steps=10**5000), "steps = a number too long to print"),
    ],
)  # fmt: skip
def test_the_message_says_what_is_allowed(given, words):
    with pytest.raises(ValueError) as refused:
        Example(**given)
    assert words in str(refused.value) and len(str(refused.value)) < 300


def test_bounds_themselves_are_inside():
    edge = Example(
        seed=2**63 - 1, pi=1, radius=math.inf, rate=3.4e38, steps=9.0, pair=[0, 2], sizes=range(3), rule=abs
    )
    assert edge.seed == 2**63 - 1 and edge.steps == 9 and type(edge.steps) is int and edge.pair == (0.0, 2.0)
    assert edge.sizes == (0, 1, 2) and edge.radius == math.inf and replace(edge, inner=edge).inner is edge
    assert in_words(fields(Example)[3]) == "a number above 0"
