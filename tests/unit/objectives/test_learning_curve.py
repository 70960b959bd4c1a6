"""The training loss that is reported, and the curve, whatever the number of steps."""

import pytest

from hpo_cluster.objectives.lora.learning_curve import COARSE_POINTS, POINTS, coarse_curve, final_loss, learning_curve
from hpo_cluster.text import in_blocks


@pytest.mark.parametrize(("steps", "counted"), [(1, 1), (9, 9), (10, 10), (99, 10), (100, 10), (101, 11), (3000, 300)])
def test_the_loss_is_the_mean_of_the_last_tenth_or_of_ten(steps: int, counted: int) -> None:
    losses = [1.0] * (steps - counted) + [0.25] * counted
    assert final_loss(losses) == 0.25
    assert final_loss([0.0, *losses[1:]]) < 0.25 or steps > counted


@pytest.mark.parametrize("steps", [1, 2, POINTS - 1, POINTS, POINTS + 1, 399, 400, 401, 3000, 12345])
def test_a_curve_has_every_step_in_one_of_its_points(steps: int) -> None:
    losses = [1 / (step + 1) for step in range(steps)]
    curve = learning_curve(losses, steps, lambda step: step / steps)
    ends = [point["step"] for point in curve]
    assert len(curve) <= POINTS
    assert len(curve) >= min(steps, POINTS // 2)
    assert ends == sorted(set(ends))
    assert ends[-1] == steps
    weights = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    assert len(set(weights[:-1])) <= 1, "equally far apart"
    total = sum(weight * point["train_loss"] for weight, point in zip(weights, curve, strict=True))
    assert total == pytest.approx(sum(losses))
    assert [point["learning_rate"] for point in curve] == [(end - 1) / steps for end in ends]


@pytest.mark.parametrize("known", [1, 3, 17, 500, 999])
def test_a_curve_of_the_last_steps_is_the_end_of_the_whole_one(known: int) -> None:
    losses = [1 / (step + 1) for step in range(1000)]
    whole = learning_curve(losses, 1000, float)
    part = learning_curve(losses[-known:], 1000, float)
    assert part[1:] == whole[len(whole) - len(part) + 1 :]
    assert part[0]["step"] == whole[len(whole) - len(part)]["step"]


def test_blocks() -> None:
    assert in_blocks([3.0, 2.0, 1.0]) == "█▅▁"
    assert in_blocks([1.0, 1.0]) == "▁▁"
    assert len(in_blocks([float(number) for number in range(1000)])) == 40


@pytest.mark.parametrize("steps", [0, 1, 39, 40, 41, 1000])
def test_the_curve_that_a_job_reports_is_short_and_has_every_step(steps: int) -> None:
    losses = [float(step) for step in range(steps)]
    curve = coarse_curve([None, *losses])
    assert len(curve) <= COARSE_POINTS
    assert curve == sorted(curve)
    assert len(curve) > min(steps, COARSE_POINTS) // 2 or not steps
