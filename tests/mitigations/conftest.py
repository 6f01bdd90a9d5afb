"""The two planted classifiers, each with its trigger."""

import backdoors
import pytest

from lib.mitigations import Trigger


@pytest.fixture(params=backdoors.KINDS)
def backdoored(request: pytest.FixtureRequest) -> tuple[backdoors.Planted, Trigger]:
    return backdoors.Planted(request.param), backdoors.trigger_of(request.param)
