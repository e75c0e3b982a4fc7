"""The NaN clinic: each patient shows its symptom, the instruments say what is known of them, and each repair heals and changes no more."""

import inspect
import math

import pytest
import torch

from sslcourse.course import clinic
from sslcourse.diagnostics.nonfinite import find_nonfinite
from sslcourse.errors import CourseError

pytestmark = pytest.mark.usefixtures("one_thread")

KNOWN = {  # what anomaly mode names, and what find_nonfinite calls the first culprit
    "NaN in the data": ("PowBackward0, output 0", "input: batch"),
    "NaN in the weights": ("PowBackward0, output 0", "parameter: layer.weight"),
    "poisoned statistics": ("PowBackward0, output 0", "buffer: loss.norm.running_mean"),
    "batch of one": ("PowBackward0, output 0", "output: aten.std"),
    "constant dimension": ("PowBackward0, output 0", "output: aten.div"),
    "eps outside the root": ("SqrtBackward0, output 0", "gradient: SqrtBackward0 (aten.div)"),
    "eps outside the power": ("PowBackward0, output 0", "gradient: PowBackward0 (aten.pow)"),
    "bare root": ("VarBackward0, output 0", "gradient: SqrtBackward0 (aten.div)"),
    "variance in one pass": ("PowBackward0, output 0", "output: aten.sqrt"),
    "eps too large": ("nothing", "nothing"),
    "row of zeros": ("DivBackward0, output 1", "output: aten.div"),
    "norm by hand": ("PowBackward0, output 0", "gradient: PowBackward0 (aten.pow)"),
    "exp, then log": ("LogBackward0, output 0", "output: aten.exp"),
    "exp in half precision": ("DivBackward0, output 1", "gradient: ToCopyBackward0 (aten._to_copy)"),
    "mask too low": ("nothing", "nothing"),
    "mask by multiplying": ("LogSoftmaxBackward0, output 0", "output: aten.mul"),
    "unused branch": ("SqrtBackward0, output 0", "output: aten.sqrt"),
    "mean of nothing": ("nothing", "output: aten.mean"),
    "overflowing gradient": ("nothing", "gradient: MmBackward0 (aten.mm)"),
    "correlation in half precision": ("nothing", "output: aten.mm"),
}
NEVER_HARMLESS = {"mask too low", "mask by multiplying"}
each_fault = pytest.mark.parametrize("name", list(clinic.faults()))


def test_there_are_more_than_a_dozen_faults_with_everything_said_about_them():
    assert set(clinic.faults()) == set(KNOWN) and len(KNOWN) >= 12
    for name, fault in clinic.faults().items():
        assert fault.name == name and fault.what_is_wrong and fault.symptom and fault.instrument and fault.repair


@each_fault
def test_the_patient_shows_its_symptom(name):
    assert clinic.examine(name).symptom == clinic.faults()[name].symptom


@each_fault
def test_the_instruments_say_what_is_known_of_this_version_of_torch(name):
    seen = clinic.examine(name)
    anomaly, culprit = KNOWN[name]
    if seen.anomaly != anomaly and not torch.__version__.startswith(("2.11", "2.15")):
        pytest.skip(f"torch {torch.__version__} names {seen.anomaly}; {anomaly} was measured with 2.11 and 2.15")
    assert (seen.anomaly, seen.culprit) == (anomaly, culprit)


@each_fault
def test_the_repaired_twin_is_finite_and_gives_the_same_value_on_a_harmless_batch(name):
    well = clinic.twin(name)
    loss = well(well.batch)
    loss.backward()
    assert loss.isfinite() and well.layer.weight.grad.isfinite().all()
    assert find_nonfinite(well, well.batch) is None
    seen = clinic.examine(name)
    assert seen.healed and seen.same is (None if name in NEVER_HARMLESS else True)


@each_fault
def test_examining_changes_nothing_and_gives_the_same_again(name):
    state = torch.get_rng_state()
    first, second = clinic.examine(name), clinic.examine(name)
    assert torch.equal(state, torch.get_rng_state())
    assert str(first) == str(second)
    assert (first.loss == second.loss) or (math.isnan(first.loss) and math.isnan(second.loss))


def test_an_examination_prints_what_was_measured():
    text = str(clinic.examine("constant dimension"))
    for words in ("constant dimension", "loss NaN", "PowBackward0, output 0", "output: aten.div", "eps inside the root", "finite"):
        assert words in text
    assert "never without the fault" in str(clinic.examine("mask by multiplying"))


def test_symptoms_that_no_patient_has_yet():
    x = clinic.rows()
    assert clinic.symptom(clinic.Patient(clinic.distance, x)) == clinic.ALL_FINITE
    assert clinic.symptom(clinic.Patient(lambda z: z.sum() * 3e38 * 3e38, x)) == clinic.LOSS_INF


def test_the_quiet_fault_costs_what_the_field_guide_says():
    ill, well = (make("eps too large") for make in (clinic.patient, clinic.twin))
    z = torch.nn.functional.batch_norm(ill.batch, None, None, training=True, eps=clinic.EPS)
    assert 0.2 < z.std(0, correction=0).mean() < 0.4  # for a standard deviation of 1e-3
    assert ill(ill.batch) > well(well.batch) + 1


def test_poisoned_statistics_spoil_evaluation_and_not_training():
    ill = clinic.patient("poisoned statistics")
    assert ill(ill.batch).isnan()
    ill.train()
    assert ill(ill.batch).isfinite()
    assert not ill.loss.norm.running_mean.isfinite().all()


def test_unknown_patients():
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


def test_a_name_that_is_not_known():
    for function in (clinic.patient, clinic.twin, clinic.examine):
        with pytest.raises(CourseError, match="There is no fault 'flu' in the clinic. It knows NaN in the data"):
            function("flu")


def test_the_file_can_be_read_in_one_sitting():
    assert len(inspect.getsource(clinic).splitlines()) <= 400
