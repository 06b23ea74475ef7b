"""The paper's scores of a configuration, in its recipe."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of a recipe; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AxisScores(Section):
    """A category's row of Table 3."""

    ic: float = Field(description="instruction compliance, 1-100")
    cf: float = Field(description="consistency and detail fidelity, 1-100")
    vq: float = Field(description="visual quality, 1-100")


class PaperRow(Section):
    """The paper's results for this configuration, under its Qwen judge; not used in training."""

    label: str = Field(description="name of the row in the paper")
    tables: tuple[str, ...] = Field(description="tables with this row, such as 2a")
    table2: dict[str, float] | None = Field(None, description="overall and per category; null: no such row")
    table3: dict[str, AxisScores] | None = Field(None, description="per category and axis; null: no such row")
