"""What only people can say about a model: owner, uses, prohibited uses, prompts of the EU AI Act, risk register, expiry. A YAML form.

Everything may be left blank; the check ``declaration`` says what is. Nothing here can be measured, and nothing measured belongs here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dinodomain.audit.finding import Risk, blank_as_default
from dinodomain.audit.forms import leave, read_form

RISKS: Final = {
    "R1": "Surveillance of people or places",
    "R2": "Biometric inference about people",
    "R3": "Military perception",
    "R4": "Automated inspection that replaces human judgement",
}


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    _blank = field_validator("*", mode="before")(blank_as_default)


class Prohibited(_Form):
    """A use that the owner forbids."""

    use: str
    risk: Literal["R1", "R2", "R3", "R4"] = Field(description="The risk it belongs to, by which measured findings are weighed.")


class ActPrompts(_Form):
    """Prompts of the EU AI Act, each answered in words; no answer is taken for a legal opinion."""

    article_5_1_g: str = Field(default="", description="Biometric categorisation that infers sensitive attributes: how is it kept out?")
    annex_iii_1_a: str = Field(default="", description="Remote biometric identification: does any use come near?")
    annex_iii_1_b: str = Field(default="", description="Biometric categorisation by sensitive attributes: does any use come near?")
    annex_iii_1_c: str = Field(default="", description="Emotion recognition: does any use come near?")
    medical_device: str = Field(default="", description="Is any use a medical device, and by which route?")
    article_2_3: str = Field(default="", description="Is any use exclusively military, defence or national security?")
    article_2_6: str = Field(default="", description="Is the model put to use solely for scientific research?")


class Living(_Form):
    """What keeps the audit from growing old unseen."""

    expires: str = Field(default="", description="Date (YYYY-MM-DD) after which the audit no longer counts.")
    incident_contact: str = ""
    indicators: tuple[str, ...] = Field(default=(), description="What is watched in use, and by whom.")


class Licences(_Form):
    """SPDX expressions, or names of agreements, where the lineage does not hold them."""

    data: tuple[str, ...] = ()
    base_weights: tuple[str, ...] = ()
    output: str = Field(default="", description="Licence under which weights or embeddings are given away.")


class Declaration(_Form):
    """The whole form."""

    owner: str = ""
    users: str = ""
    affected_groups: str = ""
    deployment: str = Field(default="", description="Where and how it runs, and who oversees it.")
    intended_uses: tuple[str, ...] = ()
    out_of_scope: tuple[str, ...] = ()
    prohibited: tuple[Prohibited, ...] = ()
    eu_ai_act: ActPrompts = ActPrompts()
    risks: dict[Literal["R1", "R2", "R3", "R4"], Risk] = Field(default_factory=dict)
    living: Living = Living()
    licences: Licences = Licences()
    energy_kwh: float | None = Field(default=None, ge=0, description="Energy of the training, where it was measured.")


def read_declaration(path: str | os.PathLike[str]) -> Declaration:
    """Reads a declaration.

    Raises:
        UserError: Not there, not YAML, or with keys or values that are not allowed (all of them at once).
    """
    return read_form(path, "audit.declaration", Declaration)


def write_blank(folder: Path) -> Path:
    """Writes an empty form ``declaration.yaml``; one that is already there stays as it is."""
    return leave(folder / "declaration.yaml", _blank_text())


def _blank_text() -> str:
    prompts = "\n".join(f"  {name}: ''  # {item.description}" for name, item in ActPrompts.model_fields.items())
    blanks = [name for name in Risk.model_fields if name not in ("relevant", "evidence")]
    rows = "\n".join(
        f"  {name}:  # {words}\n    relevant:  # true or false; false needs a reason\n    evidence: []  # ids of findings\n"
        + "\n".join(f"    {blank}: ''" for blank in blanks)
        for name, words in RISKS.items()
    )
    return f"""# What only people can say about this model. Blanks are reported as blanks; nothing here is taken for measured.
owner: ''
users: ''
affected_groups: ''
deployment: ''  # where and how it runs, and who oversees it
intended_uses: []
out_of_scope: []
prohibited: []  # for example: - {{use: telling who a person is, risk: R2}}
eu_ai_act:
{prompts}
risks:
{rows}
living:
  expires: ''  # YYYY-MM-DD
  incident_contact: ''
  indicators: []
licences:
  data: []  # SPDX expressions, where the lineage does not hold them
  base_weights: []
  output: ''  # licence under which weights or embeddings are given away
energy_kwh:  # of the training, where it was measured
"""
