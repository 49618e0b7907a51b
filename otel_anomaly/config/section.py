"""What all blocks of the configuration share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """One block of the configuration: unknown keys are errors, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_block(cls, value: object) -> object:
        """A block whose keys are all commented out is null in YAML and means its defaults."""
        return {} if value is None else value
