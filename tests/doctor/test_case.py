"""README's first screen: what its data say is what the network and the doctor do, beyond what a processor rounds."""

from __future__ import annotations

import copy
import json

import pytest
from tools import doctor_case

import normkit as nk
from tests.surgery.foreign import imagenet_mobilenet_v2

DATA = json.loads(doctor_case.DATA.read_text(encoding="utf-8"))


def test_the_screen_shows_the_worst_and_fits() -> None:
    screen = doctor_case.first_screen()
    assert "MobileNetV2: 52 norms, 128 images" in screen
    assert "of the gap is" in screen
    assert screen.count("error NK") == 1
    assert len(screen.splitlines()) < 25


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_the_network_is_as_sick_as_the_data_say() -> None:
    imagenet_mobilenet_v2()  # skips where it is not installed
    model = doctor_case.fine_tuned()
    assert abs(doctor_case.right(model) - DATA["evaluation"]) < 0.15
    healed = copy.deepcopy(model)
    nk.recalibrate(healed, doctor_case.batches(), progress=False)
    assert doctor_case.right(healed) > doctor_case.right(model) + 0.4
    assert DATA["healed"] > DATA["evaluation"] + 0.4
