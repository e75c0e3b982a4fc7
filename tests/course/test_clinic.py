"""The NaN clinic: each patient shows its symptom, the instruments say what is known of them, and each repair heals and changes no more."""

import pytest
import torch

from sslcourse.course import clinic
from sslcourse.diagnostics import find_nonfinite
from sslcourse.errors import CourseError

pytestmark = pytest.mark.usefixtures("one_thread")

KNOWN = {  # what anomaly mode names, and what find_nonfinite calls the first culprit
    "NaN in the data": ("PowBackward0, output 0", "input: batch"),
    "NaN in the weights": ("PowBackward0, output 0", "parameter: layer.weight"),
    "poisoned statistics": ("PowBackward0, output 0", "buffer: loss.norm.running_mean"),
    "batch of one": ("PowBackward0, output 0", "output: aten.std"), "constant dimension": ("PowBackward0, output 0", "output: aten.div"),
    "eps outside the root": ("SqrtBackward0, output 0", "gradient: SqrtBackward0 (aten.div)"),
    "eps outside the power": ("PowBackward0, output 0", "gradient: PowBackward0 (aten.pow)"),
    "bare root": ("VarBackward0, output 0", "gradient: SqrtBackward0 (aten.div)"),
    "variance in one pass": ("PowBackward0, output 0", "output: aten.sqrt"), "eps too large": ("nothing", "nothing"),
    "row of zeros": ("DivBackward0, output 1", "output: aten.div"),
    "norm by hand": ("PowBackward0, output 0", "gradient: PowBackward0 (aten.pow)"),
    "exp, then log": ("LogBackward0, output 0", "output: aten.exp"),
    "exp in half precision": ("DivBackward0, output 1", "gradient: ToCopyBackward0 (aten._to_copy)"),
    "mask too low": ("nothing", "nothing"), "mask by multiplying": ("LogSoftmaxBackward0, output 0", "output: aten.mul"),
    "unused branch": ("SqrtBackward0, output 0", "output: aten.sqrt"), "mean of nothing": ("nothing", "output: aten.mean"),
    "overflowing gradient": ("nothing", "gradient: MmBackward0 (aten.mm)"), "correlation in half precision": ("nothing", "output: aten.mm"),
}
NEVER_HARMLESS = {"mask too low", "mask by multiplying"}


@pytest.mark.parametrize("name", KNOWN)
def test_a_patient_shows_its_symptom_the_instruments_what_is_known_and_its_repaired_twin_is_finite(name):
    state = torch.get_rng_state()
    seen = clinic.examine(name)
    assert torch.equal(state, torch.get_rng_state()) and str(seen) == str(clinic.examine(name))
    anomaly, culprit = KNOWN[name]
    if seen.anomaly == anomaly or torch.__version__.startswith(("2.11", "2.15")):  # others may name other operations
        assert (seen.anomaly, seen.culprit) == (anomaly, culprit)
    assert seen.symptom == clinic.faults()[name].symptom
    assert seen.healed and seen.same is (None if name in NEVER_HARMLESS else True)
    well = clinic.patient(name, repaired=True)
    loss = well(well.batch)
    loss.backward()
    assert loss.isfinite() and well.layer.weight.grad.isfinite().all()
    assert find_nonfinite(well, well.batch) is None


def test_every_fault_is_known_and_unknown_patients_have_one_of_the_suspects():
    assert set(clinic.faults()) == set(KNOWN)
    with pytest.raises(CourseError, match="flu"):
        clinic.examine("flu")
    seen = set()
    for seed in range(24):
        name, ill = clinic.drawn(seed)
        seen.add(name)
        assert clinic.symptom(ill) == clinic.faults()[name].symptom
        assert torch.equal(clinic.unknown(seed).batch, ill.batch) or ill.batch.isnan().any()
        assert name not in repr(clinic.unknown(seed)) and not any(name == value for value in vars(ill).values())
        if torch.__version__.startswith("2.15"):
            assert clinic.anomaly_mode(ill, ill.batch) == "PowBackward0, output 0"  # of all of them: that is the point
    assert seen == set(clinic.SUSPECTS) <= set(clinic.faults())
