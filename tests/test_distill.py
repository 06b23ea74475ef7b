"""Distillation: a student that edits in few steps as its teacher does in many."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import losses_of, random_clip

from rvedit.io.errors import UserError
from rvedit.losses.consistency import consistency_loss, phase_times
from rvedit.pipelines.checkpoints import find_checkpoint, load_checkpoint
from rvedit.training.distill import DistillTask
from rvedit.training.distributed import Processes
from rvedit.training.run import train

DISTILL = [
    "task=distill", "alignment.weight=0", "model.frozen=[connector,mllm,text_encoder]", "model.vae_from=null",
    "distillation.student_steps=2", "distillation.substeps=4", "steps=4",
]  # fmt: skip


def test_times_cover_each_phase_in_equal_steps():
    boundaries = torch.tensor([1.0, 0.75, 0.0])
    t, r, e = phase_times(torch.arange(6) / 6 + 1e-4, boundaries, substeps=3)
    torch.testing.assert_close(t, torch.tensor([1, 11 / 12, 10 / 12, 0.75, 0.5, 0.25]))
    torch.testing.assert_close(r, torch.tensor([11 / 12, 10 / 12, 0.75, 0.5, 0.25, 0.0]))
    assert e.tolist() == [0.75] * 3 + [0.0] * 3
    t, r, e = phase_times(torch.tensor([0.999999]), boundaries, substeps=3)
    assert r == e == 0


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(-1, 1, 1, 1, 1)


def test_the_target_is_the_teachers_step_and_the_students_jump():
    """By hand: from t = 1 to r = 0.75 at velocity 2, then from 0.5 to e = 0 at the velocity x + t."""
    noisy = column(3.0)
    t, r, e = torch.tensor([1.0]), torch.tensor([0.75]), torch.tensor([0.0])
    student = lambda x, t: x + t[:, None, None, None, None]  # noqa: E731
    loss = consistency_loss(student, lambda x, t: torch.full_like(x, 2.0), noisy, t, r, e)
    x_r = 3 - 0.25 * 2
    target = 0.25 * 2 + 0.75 * (x_r + 0.75)
    assert float(loss) == pytest.approx((4 - target) ** 2)


def test_at_the_end_of_a_phase_the_target_is_the_teachers_alone():
    t, end = torch.tensor([0.25]), torch.tensor([0.0])
    loss = consistency_loss(lambda x, t: x * 5, lambda x, t: x * 2, column(1.0), t, end, end)
    assert float(loss) == pytest.approx(9.0)


def test_there_is_no_gradient_through_the_target():
    weight = torch.tensor(3.0, requires_grad=True)
    times = (torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.0]))
    student = lambda x, t: weight * x  # noqa: E731
    consistency_loss(student, lambda x, t: x, column(1.0), *times).backward()
    target = 0.5 * 1 + 0.5 * 3 * 0.5
    assert float(weight.grad) == pytest.approx(2 * (3 - target))


def test_a_teacher_of_straight_paths_is_its_own_student():
    """dx/dt constant along a path: one jump is as good as many steps, and the loss is 0."""
    teacher = lambda x, t: (x - 1) / t[:, None, None, None, None].clamp(min=1e-6)  # noqa: E731  # towards 1
    uniform = torch.arange(8) / 8
    times = phase_times(uniform, torch.tensor([1.0, 0.6, 0.0]), 4)
    noisy = torch.randn(8, 2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    assert float(consistency_loss(teacher, teacher, noisy, *times)) == pytest.approx(0, abs=1e-10)


@pytest.mark.slow
def test_a_student_is_trained_and_edits_in_its_steps(tmp_path: Path, recipe_of) -> None:
    """From the embedded model; only the transformer changes, and an interrupted run goes on equally."""
    _, recipe = recipe_of("student", "model.init_from=nano", *DISTILL)
    list(train(recipe, tmp_path / "whole", "cpu"))
    assert recipe.checkpoint_every == 2
    _, half = recipe_of("student", "model.init_from=nano", *DISTILL, "steps=2")
    list(train(half, tmp_path / "parts", "cpu"))
    list(train(recipe, tmp_path / "parts", "cpu"))
    assert losses_of(tmp_path / "whole", "student") == losses_of(tmp_path / "parts", "student")
    student, teacher = (
        load_checkpoint(find_checkpoint(name)) for name in (str(tmp_path / "whole" / "student"), "nano")
    )
    assert (student.config.default_steps, student.config.default_guidance) == (2, 1.0)
    for name in ("connector", "mllm", "text_encoder", "vae"):
        for a, b in zip(
            getattr(student, name).parameters(), getattr(teacher, name).parameters(), strict=True
        ):
            assert torch.equal(a, b.to(a.dtype)), name
    pairs = zip(student.transformer.parameters(), teacher.transformer.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    student.set_progress_bar_config(disable=True)
    assert student(random_clip(5, 128, 128), "make it sepia").frames.shape == (1, 5, 128, 128, 3)
    assert student.num_timesteps == 2


def test_what_distillation_cannot_train_is_refused(recipe_of) -> None:
    for changes, said in (
        (["alignment.weight=0.5"], r"alignment\.weight: distillation has no reference branch"),
        (["model.frozen=[mllm,text_encoder]"], r"model\.frozen: .* but connector\.queries is trained"),
    ):
        _, recipe = recipe_of("refused", "model.init_from=nano", *DISTILL, *changes)
        with pytest.raises(UserError, match=said):
            DistillTask(recipe, Processes(device="cpu"))
